"""Evaluation windows: the same tokens of the validation split for every model, independent of its block size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from common.errors import UserError
from data.loader import mix
from data.shards import Split

HASH_TOKENS = 1 << 20  # tokens hashed at once
# Consecutive tokens that an evaluation takes from one place of the split. Tokens of one document are alike, so many short
# chunks are a better sample than a few long ones; but a chunk costs at least one window, of which it uses only a part where
# block_size is larger. The size does not depend on block_size, so models of different block sizes are scored on the same tokens.
CHUNK_TOKENS = 256


class EvalRange:
    """A sample of `max_tokens` tokens of a split, each predicted exactly once in windows of `block_size` tokens.

    Selection: the split is cut into chunks of CHUNK_TOKENS tokens, which are taken in a fixed order. A sample of any size
    is therefore spread evenly over the split, and a larger sample contains every smaller one. Taking the first tokens
    instead would sample few sources, because a split is often ordered by source.

    Windows: the split is also cut into consecutive windows of `block_size` tokens, and every window with a selected token
    is evaluated. The targets that are not selected are -1. The context of a token is the part of its window before it, so
    its loss is the same in a sample of any size. The very first token of the split is predicted from end-of-text, so a
    sample of the whole split predicts every byte of its text.

    Attributes:
        n_tokens: Number of predicted tokens.
        n_windows: Number of windows. A window longer than a chunk may hold few selected tokens.
        sources: Labels of the source ids that `windows` returns.
    """

    def __init__(self, split: Split, block_size: int, max_tokens: int | None = None, eot: int | None = None) -> None:
        """Select the tokens.

        Args:
            split: The split to sample.
            block_size: Tokens in a window.
            max_tokens: Tokens to predict at most; None for the whole split.
            eot: Id of end-of-text. None: the last token of the first shard, because every document ends with it.

        Raises UserError for a split without tokens.
        """
        if not split.n_tokens:
            raise UserError(f"the {split.name} split has no tokens to evaluate on; give more text with data.path=")
        self.sources = split.sources
        self._split, self._block_size = split, block_size
        self._ends = np.cumsum([len(shard) for shard in split.shards], dtype=np.int64)
        self._eot = int(split.shards[0][-1]) if eot is None else eot
        self.n_tokens = split.n_tokens if max_tokens is None else min(max_tokens, split.n_tokens)
        # The sample as ascending intervals [start, stop) of the split, and the number of sampled tokens up to each stop.
        self._starts, self._stops = _intervals(self.n_tokens, split.n_tokens)
        self._interval_ends = np.cumsum(self._stops - self._starts)
        first, last = self._starts // block_size, (self._stops - 1) // block_size
        self._windows = np.unique(np.concatenate([np.arange(i, j + 1) for i, j in zip(first, last, strict=True)]))
        self.n_windows = len(self._windows)

    @classmethod
    def from_tokens(
        cls, tokens: np.ndarray, source_ids: np.ndarray, sources: list[str], block_size: int, eot: int | None = None
    ) -> EvalRange:
        """Build a range from arrays: `tokens` (n,) of documents that end with end-of-text, and the source id of each token,
        `source_ids` (n,).

        Pass `eot` if the last document may be cut off. Raises UserError if there are no tokens.
        """
        changes = np.flatnonzero(np.diff(source_ids)) + 1
        starts = np.concatenate([np.zeros(min(1, len(tokens)), dtype=np.int64), changes])
        return cls(Split("given", [tokens], [starts], [source_ids[starts]], sources), block_size, eot=eot)

    def windows(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs, targets and the source id of each target for windows i to j - 1, int64 (j - i, block_size) each.

        Targets and sources are -1 for tokens that are not in the sample. Inputs beyond the ends of the split are
        end-of-text.
        """
        position = self._windows[i:j, None] * self._block_size + np.arange(self._block_size)  # of targets in the split
        x = np.full(position.shape, self._eot, dtype=np.int64)
        y, sources = np.full_like(x, -1), np.full_like(x, -1)
        has_input = (position > 0) & (position < self._split.n_tokens)
        x[has_input] = self._tokens(position[has_input] - 1)
        interval = np.searchsorted(self._starts, position, side="right") - 1
        selected = (interval >= 0) & (position < self._stops[interval])
        y[selected], sources[selected] = self._tokens(position[selected]), self._sources(position[selected])
        return x, y, sources

    def _positions(self, start: int, stop: int) -> np.ndarray:
        """Return the positions in the split of tokens start to stop - 1 of the sample."""
        index = np.arange(start, stop, dtype=np.int64)
        interval = np.searchsorted(self._interval_ends, index, side="right")
        return index + (self._stops - self._interval_ends)[interval]

    def _by_shard(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield, for each shard that holds some of `positions`: its index, the indices of those positions, and their offsets
        in the shard."""
        owner = np.searchsorted(self._ends, positions, side="right")
        for shard in np.unique(owner):
            rows = np.flatnonzero(owner == shard)
            yield int(shard), rows, positions[rows] - (self._ends[shard] - len(self._split.shards[shard]))

    def _tokens(self, positions: np.ndarray) -> np.ndarray:
        out = np.empty(len(positions), dtype=np.int64)
        for shard, rows, offsets in self._by_shard(positions):
            out[rows] = self._split.shards[shard][offsets]
        return out

    def _sources(self, positions: np.ndarray) -> np.ndarray:
        out = np.empty(len(positions), dtype=np.int64)
        for shard, rows, offsets in self._by_shard(positions):
            document = np.searchsorted(self._split.starts[shard], offsets, side="right") - 1
            out[rows] = self._split.source_ids[shard][document]
        return out

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the predicted tokens, which does not depend on their dtype or on block_size."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, self.n_tokens, HASH_TOKENS):
            positions = self._positions(start, min(start + HASH_TOKENS, self.n_tokens))
            digest.update(self._tokens(positions).astype("<u4").tobytes())
        return digest.hexdigest()


def _evenly_spread(count: int, n: int) -> np.ndarray:
    """Return the first `count` numbers of a fixed permutation of range(n), int64 (count,); larger counts extend smaller ones.

    The order is van der Corput's with Owen's scrambling (Owen 1995): the numbers are spread evenly for every `count`, at
    most 4 n / count apart. Without the scrambling the first of them would all be multiples of a large power of two, so
    that every chunk began at the beginning of a window and no token with a long context were sampled.
    """
    bits = max(1, (n - 1).bit_length())
    # More than a quarter of the first numbers in this order are below n, because n > 2^(bits - 1).
    index = np.arange(min(4 * count + 4, 1 << bits), dtype=np.int64)
    number = np.zeros_like(index)
    for bit in range(bits):  # from the highest binary digit of the number, which is the lowest of its index
        flip = mix((number + (1 << bit)).astype(np.uint64)) & np.uint64(
            1
        )  # a fixed coin for each choice of higher digits
        number = 2 * number + ((index >> bit & 1) ^ flip.astype(np.int64))
    return number[number < n][:count]


def _intervals(n_tokens: int, split_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ascending starts and stops, int64 (intervals,) each, of a sample of `n_tokens` in a split of `split_tokens`.

    Adjacent chunks are merged into one interval.
    """
    whole = split_tokens // CHUNK_TOKENS
    order = _evenly_spread(min(-(-n_tokens // CHUNK_TOKENS), whole), whole)
    if len(order) * CHUNK_TOKENS < n_tokens:
        order = np.append(order, whole)  # the incomplete chunk at the end of the split comes last
    starts, stops = order * CHUNK_TOKENS, (order + 1) * CHUNK_TOKENS
    stops[-1] -= len(order) * CHUNK_TOKENS - n_tokens  # the last chunk in this order may be used in part
    ascending = np.argsort(starts)
    starts, stops = starts[ascending], stops[ascending]
    apart = starts[1:] != stops[:-1]
    return starts[np.r_[True, apart]], stops[np.r_[apart, True]]
