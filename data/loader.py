"""Training batches: a pure function of a corpus, a seed and a step.

The loader has no random state; it only caches what it could compute again. A batch is therefore the same after a resume, with
any micro-batch size, and whether or not an evaluation ran before it.
"""

from __future__ import annotations

import hashlib

import numpy as np

from common.errors import UserError
from data.batch import Batch
from data.shards import Split

# Four rounds turn a pseudo-random function into a pseudo-random permutation (Luby & Rackoff 1988). The halves can be as small
# as a few bits here (a small corpus), hence more rounds.
ROUNDS = 8
ORDER_BLOCK = 4096  # windows permuted at once; one at a time would take longer than reading their tokens


def mix(values: np.ndarray) -> np.ndarray:
    """Return the finaliser of SplitMix64 (Steele, Lea & Flood 2014) of uint64 values."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
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


class Loader:
    """Training batches of windows of `block_size` tokens; each window is used once per epoch, in a new order each epoch.

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

        Raises UserError if no shard holds a whole window.
        """
        self._share = share or slice(0, batch_size)
        self._split, self._block_size, self._batch_size, self._seed = split, block_size, batch_size, seed
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
            first = block * ORDER_BLOCK
            position = np.arange(first, first + ORDER_BLOCK, dtype=np.int64)
            epochs, index = position // self.n_windows, position % self.n_windows
            windows = np.empty_like(index)
            for epoch in np.unique(epochs):
                in_epoch = epochs == epoch
                windows[in_epoch] = permuted(index[in_epoch], self.n_windows, self._seed, int(epoch))
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[block] = windows
        return self._orders[block]

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
