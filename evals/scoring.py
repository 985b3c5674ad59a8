"""Log-probabilities of tokens given their context, the basis of all evaluations.

`score_tokens` scores windows of a text. `Scorer.score` scores continuations of contexts: the sentences of a minimal pair, the
answers to a multiple-choice question, the labels of a text.

Shape letters: B rows of T tokens, D = n_embd, V = vocab_size, R targets in a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from data.tokenizers.tokenizer import Tokenizer
from evals.packing import Row, pack
from model.attention import RowLayout
from model.gpt import GPT
from model.modes import evaluating

MAX_LOGITS = 2**26  # most elements of a slice of logits: 256 MiB in float32


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
        unknown: Its tokens, and those of the context, that stand for text which the tokenizer does not know.
    """

    logprob: float
    tokens: int
    bytes: int
    greedy: bool
    cut: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class Scorer:
    """A model with what is needed to score requests with it.

    Attributes:
        autocast: Returns the context manager of a forward pass.
        micro_batch: Sequences of block_size tokens in a forward pass. It affects speed and memory, not the scores.
        prefix: Where end-of-text is put first: `empty` (before empty contexts, as lm-evaluation-harness does) or `always`.
        too_long: What happens to a request that is longer than the window: `refuse`, or `cut` the context from the left.
    """

    model: GPT
    tokenizer: Tokenizer
    device: torch.device | str
    autocast: Callable[[], AbstractContextManager[Any]]
    micro_batch: int = 16
    prefix: str = "empty"
    too_long: str = "refuse"

    def encode(self, request: Request) -> Encoded:
        """Return the tokens of a request.

        Context and continuation are encoded as one text, and the continuation's tokens are those behind the number of tokens
        of the context alone. Spaces at the end of the context count to the continuation. lm-evaluation-harness does the same
        (`TemplateLM._encode_pair`). Raises UserError for a continuation without tokens, and for a request that is too long.
        """
        stripped = request.context.rstrip()
        continuation = request.context[len(stripped) :] + request.continuation if stripped else request.continuation
        context = stripped if stripped else request.context
        before = [int(token) for token in self.tokenizer.encode(context)]
        tokens = [int(token) for token in self.tokenizer.encode(context + continuation)]
        scored = len(tokens) - len(before)
        if scored < 1:
            raise UserError(f"the continuation {request.continuation!r} has no token to score")
        unknown = sum(token == self.tokenizer.unknown for token in tokens)
        if not before or self.prefix == "always":
            tokens = [self.tokenizer.eot, *tokens]
        excess = max(0, len(tokens) - 1 - self.model.shape.block_size)
        if excess and (self.too_long == "refuse" or scored > self.model.shape.block_size):
            raise UserError(
                f"{len(tokens)} tokens are more than the {self.model.shape.block_size} of the model's window, e.g."
                f" {(request.context + request.continuation)[:40]!r}; set task.too_long=cut to cut contexts from the left"
            )
        return Encoded(tuple(tokens[excess:]), scored, excess, unknown)

    def score(self, requests: Sequence[Request]) -> list[Score]:
        """Return the scores of `requests`, in their order.

        Requests are computed in batches of similar length, and what their beginnings have in common once (evals/packing.py).
        Raises UserError as `encode` does.
        """
        encoded = [self.encode(request) for request in requests]
        logprobs, greedy = self._score_encoded(encoded)
        return [
            Score(logprobs[i], each.scored, len(request.continuation.encode()), greedy[i], each.cut, each.unknown)
            for i, (request, each) in enumerate(zip(requests, encoded, strict=True))
        ]

    def _score_encoded(self, encoded: Sequence[Encoded]) -> tuple[list[float], list[bool]]:
        logprobs, greedy = [0.0] * len(encoded), [True] * len(encoded)
        block_size = self.model.shape.block_size
        rows = pack([each.tokens[:-1] for each in encoded], block_size)
        with evaluating(self.model):
            for batch in _batches(rows, self.micro_batch * block_size):
                for number, nats, hits in self._score_rows(batch, encoded):
                    logprobs[number], greedy[number] = -float(nats.sum()), bool(hits.all())
        return logprobs, greedy

    def _score_rows(
        self, rows: Sequence[Row], encoded: Sequence[Encoded]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the number of each sequence of `rows`, and nats and greedy hits of its scored tokens."""
        T = max(len(row.tokens) for row in rows)
        layout = RowLayout(
            self._tensor([_padded(row.positions, T, 0) for row in rows]),
            self._tensor([_padded(row.previous, T, -1) for row in rows]),
            self._tensor(np.stack([row.mask(T, self.model.shape.eot) for row in rows])[:, None]),
        )
        tokens = self._tensor([_padded(row.tokens, T, 0) for row in rows])
        # The hidden state of a token predicts the next one of its sequence.
        parts = [
            (number, i * T + indices[-encoded[number].scored :], encoded[number].tokens[-encoded[number].scored :])
            for i, row in enumerate(rows)
            for number, indices in row.sequences
        ]
        with self.autocast():
            hidden = self.model.hidden(tokens, layout=layout).flatten(0, 1)  # (B, T, D) -> (B * T, D)
            chosen = hidden[self._tensor(np.concatenate([indices for _, indices, _ in parts]))]  # (R, D)
            targets = self._tensor([token for _, _, scored in parts for token in scored])  # (R,)
            nats, hits = score_hidden(self.model, chosen, targets)
        begin = 0
        for number, indices, _ in parts:
            end = begin + len(indices)
            yield number, nats[begin:end], hits[begin:end]
            begin = end

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values)).to(self.device)


@dataclass(frozen=True)
class Encoded:
    """The tokens of a request with its prefix; the last `scored` of them are scored. `cut` and `unknown` as in `Score`."""

    tokens: tuple[int, ...]
    scored: int
    cut: int
    unknown: int


def _padded(values: Sequence[int], length: int, fill: int) -> list[int]:
    return [*values, *[fill] * (length - len(values))]


def _batches(rows: Sequence[Row], most_tokens: int) -> Iterator[Sequence[Row]]:
    """Yield rows, which are sorted by length, in batches of at most `most_tokens` tokens with padding."""
    begin = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - begin) * len(rows[end].tokens) > most_tokens:
            yield rows[begin:end]
            begin = end
