"""Training batches: a pure function of a corpus, a seed and a step.

The loader has no random state; it only caches what it could compute again. A batch is therefore the same after a resume, with
any micro-batch size, and whether or not an evaluation ran before it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from data.batch import Batch
from data.shards import Component, Split

# Four rounds turn a pseudo-random function into a pseudo-random permutation (Luby & Rackoff 1988). The halves can be as small
# as a few bits here (a small corpus), hence more rounds.
ROUNDS = 8
ORDER_BLOCK = 4096  # windows permuted at once; one at a time would take longer than reading their tokens


def mix(values: np.ndarray) -> np.ndarray:
    """Return the finaliser of SplitMix64 (Steele, Lea & Flood 2014) of uint64 values."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(indices: np.ndarray, n: int, seed: int | str, epoch: int) -> np.ndarray:
    """Map `indices` by a random permutation of range(n) with the key (seed, epoch); int64, same shape, O(1) memory.

    The permutation is a Feistel network on the next power of four. Values outside range(n) go through it again (cycle
    walking, Black & Rogaway 2002), so it remains a permutation.
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
            left, right = right, left ^ (mix(right + key) & low)
        out[outside] = (left << half) | right
        outside = out >= np.uint64(n)
    return out.astype(np.int64)


def windows_at(index: np.ndarray, n: int, key: int | str) -> np.ndarray:
    """Map positions in an endless sequence of epochs to windows in range(n), each once per epoch; int64, same shape."""
    epochs, index = index // n, index % n
    windows = np.empty_like(index)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        windows[in_epoch] = permuted(index[in_epoch], n, key, int(epoch))
    return windows


@dataclass(frozen=True)
class _Whole:
    """The order of a corpus without weights: all windows, then all in another order."""

    n_windows: int
    seed: int

    def windows(self, block: int) -> np.ndarray:
        position = np.arange(block * ORDER_BLOCK, (block + 1) * ORDER_BLOCK, dtype=np.int64)
        return windows_at(position, self.n_windows, self.seed)


@dataclass(frozen=True)
class _Mixed:
    """The order of a mix: every block has each source's share of windows, in a random order.

    Of the first N windows, floor(w N) are of a source with the weight w, and the rest are of the largest source. Its number
    in a block is never negative: the other sources, at most 63, have less than (1 - w) ORDER_BLOCK + 63 windows in a block,
    and w >= 1/64, so at least ORDER_BLOCK / 64 - 63 = 1 window is left. Each source has epochs of its own.

    Attributes:
        weights: The share of each source; they add up to 1.
        counts: Number of windows of each source.
    """

    weights: tuple[float, ...]
    counts: tuple[int, ...]
    seed: int

    def drawn(self, windows: int) -> np.ndarray:
        """Return how many of the first `windows` windows are of each source, int64 (sources,), at the end of a block."""
        counts = np.array([math.floor(weight * windows) for weight in self.weights], dtype=np.int64)
        largest = int(np.argmax(self.weights))
        counts[largest] += windows - counts.sum()
        return counts

    def sources(self, block: int) -> np.ndarray:
        """Return the source at each position of a block, int64 (ORDER_BLOCK,)."""
        own = self.drawn((block + 1) * ORDER_BLOCK) - self.drawn(block * ORDER_BLOCK)
        return np.repeat(np.arange(len(own)), own)[self._places(block)]

    def windows(self, block: int) -> np.ndarray:
        before = self.drawn(block * ORDER_BLOCK)
        own = self.drawn((block + 1) * ORDER_BLOCK) - before
        first = itertools.accumulate(self.counts, initial=0)
        in_turn = [
            start + windows_at(np.arange(begin, begin + number), n, f"{self.seed} {source}")
            for source, (start, begin, number, n) in enumerate(zip(first, before, own, self.counts, strict=False))
        ]
        return np.concatenate(in_turn)[self._places(block)]

    def _places(self, block: int) -> np.ndarray:
        return permuted(np.arange(ORDER_BLOCK), ORDER_BLOCK, f"{self.seed} mix", block)


class Loader:
    """Training batches of windows of `block_size` tokens; each window is used once per epoch, in a new order each epoch.

    In a mix, windows are drawn from the sources by their weights, and each source has epochs of its own.

    Attributes:
        n_windows: Number of windows in the split. They do not overlap or cross shards; each has one more token, the last
            target.
    """

    def __init__(self, split: Split, block_size: int, batch_size: int, seed: int, share: slice | None = None) -> None:
        """Index the windows of a split.

        Args:
            split: The split to read.
            block_size: Tokens in a window.
            batch_size: Sequences in an optimizer step, over all processes.
            seed: Seed of the order.
            share: The sequences of a batch that this process gets; None for all.

        Raises UserError if no shard, or no shard of a source of a mix, holds a whole window.
        """
        self._share = share or slice(0, batch_size)
        self._split, self._block_size, self._batch_size = split, block_size, batch_size
        self._orders: dict[int, np.ndarray] = {}  # the last two blocks: a batch may span both
        per_shard = [max(0, len(shard) - 1) // block_size for shard in split.shards]
        self._ends = np.cumsum(per_shard, dtype=np.int64)
        self.n_windows = int(self._ends[-1]) if per_shard else 0
        if self.n_windows < 1:
            longest = max(map(len, split.shards), default=0)
            raise UserError(
                f"the {split.name} split has {longest} tokens in its longest shard, but a training window needs "
                f"{block_size + 1}; set model.block_size below {max(longest, 2)} or give more text with data.path="
            )
        self._rule: _Whole | _Mixed = (
            _mixed(split.mix, per_shard, block_size, seed) if split.mix else _Whole(self.n_windows, seed)
        )

    def batch(self, step: int) -> Batch[np.ndarray]:
        """Return this process's sequences of an optimizer step, int64 (B, block_size), B being its share of batch_size."""
        first = step * self._batch_size + self._share.start
        last = step * self._batch_size + self._share.stop - 1
        blocks = range(first // ORDER_BLOCK, last // ORDER_BLOCK + 1)
        order = np.concatenate([self._order(block) for block in blocks])
        start = first - blocks[0] * ORDER_BLOCK
        tokens = self._gather(order[start : start + last - first + 1])  # (B, block_size + 1)
        return Batch(tokens[:, :-1], tokens[:, 1:])

    def _order(self, block: int) -> np.ndarray:
        """Return the windows at positions block * ORDER_BLOCK onwards of the training order, int64 (ORDER_BLOCK,)."""
        if block not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[block] = self._rule.windows(block)
        return self._orders[block]

    def tokens_by_source(self, step: int) -> list[int]:
        """Return how many tokens the steps before `step` drew from each source of the mix; an empty list without a mix."""
        if not isinstance(self._rule, _Mixed):
            return []
        block, rest = divmod(step * self._batch_size, ORDER_BLOCK)
        in_last = np.bincount(self._rule.sources(block)[:rest], minlength=len(self._split.mix))
        windows = self._rule.drawn(block * ORDER_BLOCK) + in_last
        return [int(number) * self._block_size for number in windows]

    def _gather(self, windows: np.ndarray) -> np.ndarray:
        """Return the tokens of windows, int64 (len(windows), block_size + 1)."""
        owner = np.searchsorted(self._ends, windows, side="right")  # index of each window's shard
        within = np.arange(self._block_size + 1)
        out = np.empty((len(windows), self._block_size + 1), dtype=np.int64)
        for shard in np.unique(owner):
            rows = owner == shard
            first = self._ends[shard - 1] if shard else 0
            starts = (windows[rows] - first) * self._block_size
            out[rows] = self._split.shards[shard][starts[:, None] + within]
        return out


def _mixed(mix: tuple[Component, ...], per_shard: list[int], block_size: int, seed: int) -> _Mixed:
    """Return the order of a mix whose shards hold `per_shard` windows each. Raises UserError for a source without a window."""
    shards = iter(per_shard)
    counts = tuple(sum(itertools.islice(shards, component.shards)) for component in mix)
    if short := [component for component, n in zip(mix, counts, strict=True) if not n]:
        raise UserError(
            f"{short[0].name} of data.mix has {short[0].tokens} training tokens, but a training window needs"
            f" {block_size + 1}; give it more text, leave it out, or set a smaller model.block_size"
        )
    return _Mixed(tuple(component.weight for component in mix), counts, seed)
