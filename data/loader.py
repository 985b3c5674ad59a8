"""Batches for training and windows for evaluation: pure functions of a corpus, a seed and a step.

Nothing is drawn, and nothing is remembered but what would be computed again, so a batch is the same after any resume, with
any micro-batch, and whatever was evaluated in between.
"""

from __future__ import annotations

import hashlib

import numpy as np

from common.errors import UserError
from data.batch import Batch
from data.shards import Split

# Luby & Rackoff (1988): four rounds make a pseudo-random permutation of a pseudo-random function; the halves are
# small here (a few bits for a small corpus), hence some more.
ROUNDS = 8


ORDERED_AT_ONCE = 4096  # positions; for one at a time the order would cost more than the tokens


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014), on uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a random permutation of range(n), keyed by (seed, epoch), takes `indices`; int64, same shape, O(1) memory.

    A Feistel network over the next even power of two; what falls outside range(n) goes through it again (cycle
    walking, Black & Rogaway 2002), which keeps it a permutation.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8")
    out = indices.astype(np.uint64)
    outside = np.ones(out.shape, dtype=bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & low
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & low)
        out[outside] = (left << half) | right
        outside = out >= np.uint64(n)
    return out.astype(np.int64)


class Loader:
    """Training batches: each window of `block_size` tokens once per epoch, in an order of its own each epoch.

    Attributes:
        n_windows: Windows in the split: non-overlapping, within a shard, each with one more token for the target.
    """

    def __init__(self, split: Split, block_size: int, batch_size: int, seed: int, share: slice | None = None) -> None:
        """`batch_size` counts the sequences of an optimizer step over all processes; `share` says which of them this
        process gets, None: all. Raises UserError where the split has no whole window."""
        self._share = share or slice(0, batch_size)
        self._split, self._block_size, self._batch_size, self._seed = split, block_size, batch_size, seed
        self._orders: dict[int, np.ndarray] = {}  # the last two, as a batch may lie across
        per_shard = [max(0, len(shard) - 1) // block_size for shard in split.shards]
        self._ends = np.cumsum(per_shard, dtype=np.int64)
        self.n_windows = int(self._ends[-1]) if per_shard else 0
        if self.n_windows < 1:
            longest = max(map(len, split.shards), default=0)
            raise UserError(
                f"the {split.name} split has {longest} tokens in one piece, fewer than the {block_size + 1} of one "
                f"block; choose model.block_size < {max(longest, 2)} or give more text with data.path="
            )

    def batch(self, step: int) -> Batch[np.ndarray]:
        """This process's sequences of an optimizer step: int64 arrays of shape (its share of batch_size, block_size)."""
        first = step * self._batch_size + self._share.start
        last = step * self._batch_size + self._share.stop - 1
        numbers = range(first // ORDERED_AT_ONCE, last // ORDERED_AT_ONCE + 1)
        order = np.concatenate([self._order(number) for number in numbers])
        start = first - numbers[0] * ORDERED_AT_ONCE
        tokens = self._gather(order[start : start + last - first + 1])
        return Batch(tokens[:, :-1], tokens[:, 1:])

    def _order(self, number: int) -> np.ndarray:
        """The windows that come at positions number * ORDERED_AT_ONCE and after, so many of them."""
        if number not in self._orders:
            first = number * ORDERED_AT_ONCE
            position = np.arange(first, first + ORDERED_AT_ONCE, dtype=np.int64)
            epochs, index = position // self.n_windows, position % self.n_windows
            windows = np.empty_like(index)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                windows[here] = permuted(index[here], self.n_windows, self._seed, int(epoch))
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[number] = windows
        return self._orders[number]

    def _gather(self, windows: np.ndarray) -> np.ndarray:
        """Tokens of windows, int64 of shape (len(windows), block_size + 1)."""
        owner = np.searchsorted(self._ends, windows, side="right")
        within = np.arange(self._block_size + 1)
        out = np.empty((len(windows), self._block_size + 1), dtype=np.int64)
        for number in np.unique(owner):
            here = owner == number
            first = self._ends[number - 1] if number else 0
            starts = (windows[here] - first) * self._block_size
            out[here] = self._split.shards[number][starts[:, None] + within]
        return out
