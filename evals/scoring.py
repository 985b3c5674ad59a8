"""Log-probabilities of tokens given their context, the basis of all evaluations.

`score_tokens` scores windows of a text. `Scorer.score` scores continuations of contexts: the sentences of a minimal pair, the
answers to a multiple-choice question, the labels of a text.

Shape letters: B rows of T tokens, D = n_embd, V = vocab_size, R targets in a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import MachineError, UserError
from common.format import shortened
from data.tokenizers.tokenizer import Tokenizer
from evals.packing import Row, pack
from model.attention import RowLayout
from model.gpt import GPT
from model.modes import evaluating

# Most elements of a slice of logits: 32 MiB in float32. glibc gets larger blocks from the system each time, and the first access
# to their pages takes longer than the loss itself.
MAX_LOGITS = 2**23
MOST_ROW = 2  # longest row of packed sequences, in windows: bounds the memory of its attention mask


class NotFinite(MachineError):
    """A log-probability is NaN or infinite."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of the targets of B rows.

    Attributes:
        nats: -log p(target | all tokens before it in the row), float64 (B, T); 0 if the target is -1.
        greedy: Whether the target has the highest logit, bool (B, T); False if the target is -1.
    """

    nats: np.ndarray
    greedy: np.ndarray


def score_hidden(model: GPT, hidden: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return -log p in nats (float64) and whether the target has the highest logit, (R,) each.

    `hidden` (R, D) are the states that predict `targets` (R,). Logits are computed in slices of at most MAX_LOGITS elements, so
    that their memory does not grow with the batch. Call it inside autocast.
    """
    rows = max(1, MAX_LOGITS // model.shape.vocab_size)
    nats, greedy = [], []
    for hidden_slice, target_slice in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.unembed(hidden_slice).float()  # (rows, V)
        nats.append(F.cross_entropy(logits, target_slice, ignore_index=-1, reduction="none"))
        greedy.append(logits.argmax(dim=-1) == target_slice)
    return torch.cat(nats).cpu().numpy().astype(np.float64), torch.cat(greedy).cpu().numpy()


def score_tokens(
    model: GPT,
    inputs: np.ndarray,
    targets: np.ndarray,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> TokenScores:
    """Score `targets` given `inputs`, int64 (B, T) each. Call it inside `model.modes.evaluating`."""
    flat = torch.from_numpy(targets).to(device).flatten()  # (B * T,)
    with autocast():
        hidden = model.hidden(torch.from_numpy(inputs).to(device)).flatten(0, 1)  # (B, T, D) -> (B * T, D)
        nats, greedy = score_hidden(model, hidden, flat)
    return TokenScores(nats.reshape(targets.shape), greedy.reshape(targets.shape))


@dataclass(frozen=True)
class Request:
    """A continuation to be scored after a context. Both are text; the context may be empty."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Score:
    """How likely a continuation is after its context.

    Attributes:
        logprob: Sum of the log-probabilities of its tokens, in nats.
        tokens: Number of its tokens.
        bytes: Its length in UTF-8.
        greedy: Whether greedy decoding gives it.
        cut: Tokens of the context that were cut off because the model's window is too short.
        unknown: What the tokenizer does not know in the context and the continuation: tokens that stand for text outside its
            vocabulary, and characters that it drops.
    """

    logprob: float
    tokens: int
    bytes: int
    greedy: bool
    cut: int = 0
    unknown: int = 0


class TooLong(UserError):
    """A request or prompt is longer than the model's window; `remedy` is the value of task.too_long that scores it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Encoded:
    """A request as tokens.

    Attributes:
        windows: (tokens, scored): the last `scored` of these ids are scored, given those before them. There are several
            windows only with `Scorer.too_long="roll"`.
        bytes, cut, unknown: As in `Score`.
    """

    windows: tuple[tuple[np.ndarray, int], ...]
    bytes: int
    cut: int
    unknown: int


@dataclass(frozen=True)
class Scorer:
    """A model with what is needed to score requests with it.

    Attributes:
        autocast: Returns the context manager of a forward pass.
        micro_batch: Sequences of block_size tokens in a forward pass. It affects speed and memory, not the scores.
        prefix: Where end-of-text is put first: `empty` (before empty contexts, as lm-evaluation-harness does) or `always`.
        too_long: What happens to a request that is longer than the window: `refuse`; `cut` the context from the left; `roll`:
            score the continuation in several windows, as lm-evaluation-harness does for the perplexity of documents.
    """

    model: GPT
    tokenizer: Tokenizer
    device: torch.device | str
    autocast: Callable[[], AbstractContextManager[Any]]
    micro_batch: int = 16
    prefix: str = "empty"
    too_long: str = "refuse"

    def score(self, requests: Sequence[Request]) -> list[Score]:
        """Return the scores of `requests`, in their order. Raises as `encode` and `score_encoded` do."""
        return self.score_encoded(self.encode(requests))

    def encode(self, requests: Sequence[Request]) -> list[Encoded]:
        """Return the tokens of requests.

        Context and continuation are encoded as one text, and the continuation's tokens are those behind the number of tokens
        of the context alone. Spaces at the end of the context count to the continuation. lm-evaluation-harness does the same
        (`TemplateLM._encode_pair`). Raises UserError for a continuation without tokens, and TooLong for the request that needs
        the strongest remedy.
        """
        lengths: dict[str, int] = {}  # tokens of each context: the answers to a question share theirs
        encoded: list[Encoded] = []
        too_long: list[TooLong] = []
        for request in requests:
            context = request.context.rstrip() or request.context
            if context not in lengths:
                lengths[context] = len(self.tokenizer.encode(context))
            try:
                encoded.append(self._encode(request, lengths[context]))
            except TooLong as error:
                too_long.append(error)
        if too_long:
            raise max(too_long, key=lambda each: each.remedy == "roll")
        return encoded

    def _encode(self, request: Request, before: int) -> Encoded:
        """Encode a request whose context alone has `before` tokens."""
        text = request.context + request.continuation
        tokens = self.tokenizer.encode(text)
        scored, unknown = len(tokens) - before, self.tokenizer.dropped(text)
        if scored < 1:
            raise UserError(
                f"the continuation {shortened(request.continuation)} has no token of its own after {shortened(request.context)};"
                " give it a text that the tokenizer knows and does not join with the context"
            )
        if self.tokenizer.unknown is not None:
            unknown += int((tokens == self.tokenizer.unknown).sum())
        if before == 0 or self.prefix == "always":
            tokens = np.insert(tokens, 0, self.tokenizer.eot)
        longest = self.model.shape.block_size
        if self.too_long != "roll" and scored > longest:
            raise TooLong(
                f"a continuation of {scored} tokens is longer than the model's window of {longest}:"
                f" {shortened(request.continuation)}; set task.too_long=roll to score it in several windows",
                "roll",
            )
        if self.too_long == "refuse" and len(tokens) - 1 > longest:
            raise TooLong(
                f"{len(tokens) - 1} tokens are more than the model's window of {longest}: {shortened(text)}; set"
                " task.too_long=cut to cut contexts from the left",
                "cut",
            )
        windows = [*_windows(tokens, scored, longest)]
        cut = len(tokens) - scored - (len(windows[0][0]) - windows[0][1])
        return Encoded(tuple(windows), len(request.continuation.encode(errors="replace")), cut, unknown)

    def score_encoded(self, encoded: Sequence[Encoded]) -> list[Score]:
        """Return the scores of encoded requests, in their order.

        Requests are computed in batches of similar length, and what their beginnings have in common once (evals/packing.py).
        Raises NotFinite if a log-probability is not finite.
        """
        windows = [(number, *window) for number, each in enumerate(encoded) for window in each.windows]
        owner = np.asarray([number for number, _, _ in windows], dtype=np.int64)
        scored = [count for _, _, count in windows]
        block_size = self.model.shape.block_size
        rows = pack([tokens[:-1].tolist() for _, tokens, _ in windows], MOST_ROW * block_size, self.model.shape.n_embd)
        nats, greedy = np.zeros(len(encoded)), np.ones(len(encoded), dtype=bool)
        with evaluating(self.model):
            for batch in _batches(rows, self.micro_batch * block_size):
                targets = {
                    number: windows[number][1][-scored[number] :] for row in batch for number, _ in row.sequences
                }
                numbers, batch_nats, hits = self._score_rows(batch, targets)
                np.add.at(nats, owner[numbers], batch_nats)
                np.logical_and.at(greedy, owner[numbers], hits)
        if not np.isfinite(nats).all():
            raise NotFinite(
                "the model's log-probabilities are not finite: its weights have diverged, or device.precision is too low for"
                " them; evaluate an earlier checkpoint (checkpoint=outputs/NAME/checkpoint/step-N), or use"
                " device.precision=float32"
            )
        return [
            Score(
                -float(nats[i]),
                sum(count for _, count in each.windows),
                each.bytes,
                bool(greedy[i]),
                each.cut,
                each.unknown,
            )
            for i, each in enumerate(encoded)
        ]

    def _score_rows(
        self, rows: Sequence[Row], targets: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the numbers of the sequences in `rows`, the nats of the `targets` of each, and whether greedy decoding gives
        them."""
        T = max(len(row.tokens) for row in rows)
        layout = RowLayout(
            self._tensor([_padded(row.positions, T, 0) for row in rows]),
            self._tensor([_padded(row.previous, T, -1) for row in rows]),
            self._tensor(np.stack([row.mask(T, self.model.shape.eot) for row in rows])[:, None]),
        )
        tokens = self._tensor([_padded(row.tokens, T, 0) for row in rows])
        sequences = [(number, i * T + indices) for i, row in enumerate(rows) for number, indices in row.sequences]
        lengths = np.asarray([len(targets[number]) for number, _ in sequences])
        # The hidden state of a token predicts the next one of its sequence. Sequences that share tokens share predictions.
        places = np.concatenate([indices[-len(targets[number]) :] for number, indices in sequences])
        wanted = np.concatenate([targets[number] for number, _ in sequences])
        V = self.model.shape.vocab_size
        pairs, inverse = np.unique(places * V + wanted, return_inverse=True)
        with self.autocast():
            hidden = self.model.hidden(tokens, layout=layout).flatten(0, 1)  # (B, T, D) -> (B * T, D)
            nats, hits = score_hidden(self.model, hidden[self._tensor(pairs // V)], self._tensor(pairs % V))
        begins = np.cumsum(lengths) - lengths
        return (
            np.asarray([number for number, _ in sequences]),
            np.add.reduceat(nats[inverse], begins),
            np.logical_and.reduceat(hits[inverse], begins),
        )

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values)).to(self.device)


def _windows(tokens: np.ndarray, scored: int, longest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield windows of at most `longest` inputs in which each of the last `scored` tokens is scored once.

    Each window scores as many tokens as it can, and begins as early as it can.
    """
    begin = len(tokens) - scored
    while begin < len(tokens):
        end = min(begin + longest, len(tokens))
        yield tokens[max(0, end - 1 - longest) : end], end - begin
        begin = end


def _padded(values: Sequence[int], length: int, fill: int) -> list[int]:
    return [*values, *[fill] * (length - len(values))]


def _batches(rows: Sequence[Row], most_tokens: int) -> Iterator[Sequence[Row]]:
    """Yield rows, which are sorted by length, in batches of at most `most_tokens` tokens with padding."""
    begin = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - begin) * len(rows[end].tokens) > most_tokens:
            yield rows[begin:end]
            begin = end
