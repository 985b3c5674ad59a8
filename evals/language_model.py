"""Language-model evaluation: loss, perplexity, bits per byte and accuracy of a text, in total and by source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike

from common.errors import UserError
from evals.scoring import score_tokens
from model.gpt import GPT
from model.modes import evaluating

MAX_EXPONENT = math.log(np.finfo(np.float64).max)  # about 709.8: the exponential of more overflows float64


class Windows(Protocol):
    """A text in windows of T tokens in which each token is predicted once, such as `data.eval_windows.EvalRange`."""

    @property
    def n_windows(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def windows(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs, targets (-1: ignored) and source ids of windows i to j - 1, int64 (j - i, T) each."""
        ...


@dataclass
class Sums:
    """Sums from which the metrics are computed, in float64, so that batch size and number of processes do not matter.

    Attributes:
        by_source: (4, sources): tokens, nats, correct predictions and bytes of each source.
        spread: (4,): the sums over windows of 1, n^2, n s and s^2, with n tokens and s nats in a window.
    """

    by_source: np.ndarray
    spread: np.ndarray

    @classmethod
    def zero(cls, n_sources: int) -> Sums:
        return cls(np.zeros((4, n_sources)), np.zeros(4))

    def add(
        self, targets: np.ndarray, losses: np.ndarray, correct: np.ndarray, width: np.ndarray, source: np.ndarray
    ) -> None:
        """Add one batch. All arrays are (B, T); `width` holds the bytes of each target."""
        counted = targets != -1
        for row, weights in enumerate((counted, losses, correct, width)):
            self.by_source[row] += np.bincount(source[counted], weights[counted], self.by_source.shape[1])
        n, s = counted.sum(axis=1).astype(np.float64), losses.sum(axis=1)
        self.spread += ((n > 0).sum(), n @ n, n @ s, s @ s)

    def all_reduce(self, device: torch.device | str) -> None:
        """Sum over the processes of torch.distributed, if it is initialised."""
        if dist.is_available() and dist.is_initialized():
            flat = torch.from_numpy(np.concatenate((self.by_source.ravel(), self.spread))).to(device)
            dist.all_reduce(flat)
            by_source, self.spread = np.split(flat.cpu().numpy(), [self.by_source.size])
            self.by_source = by_source.reshape(self.by_source.shape)

    def loss_se(self) -> float | None:
        """Return the standard error of the loss, in nats; None for a single window.

        Windows are the units, because the tokens of a window are correlated. The loss is the ratio of two sums over
        windows, sum(s) / sum(n), and this is the linearised standard error of a ratio. For windows of equal length it is
        the standard deviation of their means divided by sqrt(windows).
        """
        windows, nn, ns, ss = (float(value) for value in self.spread)
        if windows < 2:
            return None
        tokens, nats = (float(value) for value in self.by_source[:2].sum(axis=1))
        loss = nats / tokens
        squares = max(ss - 2 * loss * ns + loss * loss * nn, 0.0)  # with NaN first, max returns NaN
        return _finite(math.sqrt(squares * windows / (windows - 1)) / tokens)


def evaluate(
    model: GPT,
    windows: Windows,
    token_bytes: ArrayLike,
    sources: Sequence[str],
    micro_batch: int,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[Any]],
    stop: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Evaluate `model` on every target of `windows`.

    Args:
        token_bytes: UTF-8 bytes of each token id, (n_vocab,).
        sources: Source labels by source id.
        micro_batch: Windows in a forward pass.
        autocast: Returns the context manager of a forward pass.
        stop: Called before each batch; it may raise an exception to end the evaluation.

    Returns a dict of JSON values:

    - tokens, bytes: number of predicted tokens, and of their bytes
    - loss: mean over all predicted tokens, in nats per token; loss_se: its standard error (see `Sums.loss_se`)
    - perplexity: e^loss
    - bits_per_byte: total nats / ln 2 / total bytes; end-of-text contributes nats and 0 bytes
    - accuracy: fraction of tokens with the highest logit
    - by_source: {label: tokens, loss, perplexity, bits_per_byte, accuracy} of each source that occurs
    - fingerprint: fingerprint of the windows

    A non-finite value (a diverged model, a perplexity beyond float64, bits per byte of a text with 0 bytes) is None, because
    JSON has neither infinity nor NaN.

    With torch.distributed, each process evaluates a part of the windows, and all return the same result; `stop` must then
    raise in all processes or in none. Raises UserError if there is no token to predict.
    """
    sums = Sums.zero(len(sources))
    begin, end = _share(windows.n_windows)
    width = np.asarray(token_bytes)
    with evaluating(model):
        for i in range(begin, end, micro_batch):
            if stop is not None:
                stop()
            x, y, source = windows.windows(i, min(i + micro_batch, end))
            scores = score_tokens(model, x, y, device, autocast)
            sums.add(y, scores.nats, scores.greedy, width[y], source)
    sums.all_reduce(device)
    if not sums.by_source[0].any():
        raise UserError("the text to evaluate on has no token to predict; give a text of at least two tokens")
    return _figures(sums.by_source.sum(axis=1)) | {
        "bytes": int(sums.by_source[3].sum()),
        "loss_se": sums.loss_se(),
        "by_source": {
            name: _figures(column) for name, column in zip(sources, sums.by_source.T, strict=True) if column[0]
        },
        "fingerprint": windows.fingerprint,
    }


def _share(n_windows: int) -> tuple[int, int]:
    """Return the windows [begin, end) of this process: a contiguous range, so that the corpus is read sequentially."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, n_windows
    rank, world = dist.get_rank(), dist.get_world_size()
    return n_windows * rank // world, n_windows * (rank + 1) // world


def _figures(sums: np.ndarray) -> dict[str, Any]:
    """Return the metrics of a column of `Sums.by_source`: tokens, nats, correct predictions, bytes."""
    tokens, nats, correct, n_bytes = (float(value) for value in sums)
    loss = nats / tokens
    return {
        "tokens": int(tokens),
        "loss": _finite(loss),
        "perplexity": _finite(math.exp(loss)) if loss <= MAX_EXPONENT else None,
        "bits_per_byte": _finite(nats / math.log(2) / n_bytes) if n_bytes else None,
        "accuracy": correct / tokens,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
