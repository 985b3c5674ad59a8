"""Which tokens each optimizer step sees, and which ones an evaluation scores. Both are pure functions: no state, no
iterator, nothing to save in a checkpoint, nothing that an evaluation could disturb."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from data.shards import Split
from errors import UserError

ROUNDS = 4  # a Feistel network is a pseudorandom permutation from three rounds on (Luby & Rackoff 1988)


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers: the finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a random permutation of range(n), chosen by `key`, takes `indices`; O(1) memory whatever n.

    A Feistel network permutes the smallest square power of two that holds n; what lands outside range(n) is sent
    through again until it does not (cycle walking, Black & Rogaway 2002), which keeps it a permutation.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = _mix(np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key % 2**64))
    values = np.asarray(indices, dtype=np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        values[outside] = (left << shift) | right
        outside = values >= n
    return values.astype(np.int64)


class Windows:
    """Non-overlapping stretches of `block_size` tokens and the one after, inside each shard, by a running number."""

    def __init__(self, shards: Sequence[np.ndarray], block_size: int) -> None:
        self.shards, self.block_size = shards, block_size
        counts = [max(0, (len(shard) - 1) // block_size) for shard in shards]
        self.ends = np.cumsum(counts, dtype=np.int64)
        self.n = int(self.ends[-1]) if counts else 0

    def gather(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (the same, one token on) of the windows, int64 (len(numbers), block_size)."""
        rows = np.empty((len(numbers), self.block_size + 1), dtype=np.int64)
        which = np.searchsorted(self.ends, numbers, side="right")
        within = np.arange(self.block_size + 1)
        for shard in np.unique(which):
            mine = which == shard
            first = int(self.ends[shard - 1]) if shard else 0
            rows[mine] = self.shards[shard][(numbers[mine, None] - first) * self.block_size + within]
        return rows[:, :-1], rows[:, 1:]


class Loader:
    """Training batches. `batch(step)` depends on (seed, step) alone.

    Every window is seen once per epoch, in an order that is new in each, and none twice before all were seen, also
    where an epoch ends inside a batch. Micro-batches are slices of the batch, so their size changes nothing.
    """

    def __init__(self, split: Split, block_size: int, batch_size: int, seed: int) -> None:
        """`batch_size`: sequences per optimizer step. Raises UserError for a split shorter than one block."""
        self.windows = Windows(split.shards, block_size)
        if self.windows.n == 0:
            raise UserError(
                f"the training split has {split.n_tokens:,} tokens, fewer than one block of model.block_size={block_size}"
                f" needs ({block_size + 1}); lower model.block_size or give more text"
            )
        self.batch_size, self.seed = batch_size, seed

    @property
    def n_windows(self) -> int:
        return self.windows.n

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` steps."""
        return step * self.batch_size / self.n_windows

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of optimizer step `step` (from 0): int64, (batch_size, block_size) each."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.n_windows)
        numbers = np.empty_like(positions)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            numbers[mine] = permute(offsets[mine], self.n_windows, self._key(int(epoch)))
        return self.windows.gather(numbers)

    def _key(self, epoch: int) -> int:
        digest = hashlib.blake2b(f"{self.seed} {epoch}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


class EvalRange:
    """A fixed stretch of text in order, each token of it predicted exactly once, cut into windows of `block_size`.

    The first token of a shard is only seen, never predicted. `fingerprint` is a hash of the tokens: figures with the
    same fingerprint were measured on the same text.
    """

    def __init__(self, split: Split, block_size: int, max_tokens: int | None) -> None:
        """The first `max_tokens` predicted tokens of a split (None: all). UserError for a split of one token."""
        self.block_size, self.sources = block_size, list(split.sources)
        tokens, owners, left = [], [], max_tokens
        for shard, starts, ids in zip(split.shards, split.starts, split.source_ids, strict=True):
            wanted = len(shard) if left is None else min(len(shard), left + 1)
            if wanted < 2:
                break
            documents = np.searchsorted(starts, np.arange(wanted), side="right") - 1
            tokens.append(np.asarray(shard[:wanted]))
            owners.append(np.asarray(ids)[documents].astype(np.int32))
            left = None if left is None else left - (wanted - 1)
        self._fill(tokens, owners)

    @classmethod
    def from_tokens(
        cls, tokens: np.ndarray, source_ids: np.ndarray, sources: Sequence[str], block_size: int
    ) -> EvalRange:
        """The range of a plain array of tokens, with the source of each: what evaluate.py scores."""
        self = cls.__new__(cls)
        self.block_size, self.sources = block_size, list(sources)
        self._fill([tokens], [source_ids.astype(np.int32)])
        return self

    def _fill(self, tokens: list[np.ndarray], owners: list[np.ndarray]) -> None:
        self._tokens, self._owners = tokens, owners
        self.n_tokens = sum(len(stretch) - 1 for stretch in tokens)
        if self.n_tokens < 1:
            raise UserError("there is no text to evaluate on: it needs at least two tokens")
        counts = [-(-(len(stretch) - 1) // self.block_size) for stretch in tokens]
        self._ends = np.cumsum(counts)
        self.n_windows = int(self._ends[-1])
        digest = hashlib.sha256()
        for stretch in tokens:
            digest.update(stretch.astype("<u4").tobytes() + b"|")
        self.fingerprint = digest.hexdigest()

    def windows(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows i to j - 1: inputs, targets (-1: padding behind the end) and the source of each target; int64
        (j - i, block_size)."""
        size = self.block_size
        x = np.zeros((j - i, size), dtype=np.int64)
        y, source = np.full_like(x, -1), np.zeros_like(x)
        for row, number in enumerate(range(i, j)):
            stretch = int(np.searchsorted(self._ends, number, side="right"))
            first = (number - (int(self._ends[stretch - 1]) if stretch else 0)) * size
            tokens = self._tokens[stretch][first : first + size + 1]
            n = len(tokens) - 1
            x[row, :n], y[row, :n] = tokens[:-1], tokens[1:]
            source[row, :n] = self._owners[stretch][first + 1 : first + 1 + n]
        return x, y, source
