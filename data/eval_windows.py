"""Windows of the validation split: the same tokens for every model, whatever its block size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from common.errors import UserError
from data.shards import Split

HASH_TOKENS = 1 << 20


# Tokens in a row of an evaluation. Short, because tokens of one document are alike: 16,384 tokens from 128 places of a
# split are a better sample of it than from 8. Not the block size, so that models of different block sizes are scored on
# the same tokens.
CHUNK_TOKENS = 128


class EvalRange:
    """Tokens spread evenly over a split, in windows of `block_size`; each of them is predicted exactly once.

    The split is cut into stretches of STRETCH tokens, which have a fixed order (`_spread`). A range holds the first of
    them, so that it is spread evenly whatever its size, and a larger range contains every smaller one. A split is often
    ordered by source, so that its first tokens alone would speak for one source.

    The windows are those of the whole split, as far as they hold a token of the range; their other targets are -1. The
    context of a token is what stands before it in its window, the same in a range of any size. It is end-of-text for the
    very first: so the first word of the first document counts as well, and the bytes of the text are the bytes of the
    predicted tokens.

    Attributes:
        n_tokens: Predicted tokens.
        n_windows: Windows with a token of the range. A window longer than a stretch may hold few of them.
        sources: Labels that the source ids of `windows` stand for.
    """

    def __init__(self, split: Split, block_size: int, max_tokens: int | None = None, eot: int | None = None) -> None:
        """`eot` is the id of end-of-text; None means the last token of the first shard, as every document ends with it.

        Raises UserError for a split without tokens.
        """
        if not split.n_tokens:
            raise UserError(f"the {split.name} split has no tokens to evaluate; give more text with data.path=")
        self.sources = split.sources
        self._split, self._block_size = split, block_size
        self._ends = np.cumsum([len(shard) for shard in split.shards], dtype=np.int64)
        self._eot = int(split.shards[0][-1]) if eot is None else eot
        self.n_tokens = split.n_tokens if max_tokens is None else min(max_tokens, split.n_tokens)
        # The range as pieces [start, stop) of the split, in the split's order, and where in the range each piece ends.
        self._starts, self._stops = _pieces(self.n_tokens, split.n_tokens)
        self._piece_ends = np.cumsum(self._stops - self._starts)
        first, last = self._starts // block_size, (self._stops - 1) // block_size
        self._windows = np.unique(np.concatenate([np.arange(i, j + 1) for i, j in zip(first, last, strict=True)]))
        self.n_windows = len(self._windows)

    @classmethod
    def from_tokens(
        cls, tokens: np.ndarray, source_ids: np.ndarray, sources: list[str], block_size: int, eot: int | None = None
    ) -> EvalRange:
        """Of plain arrays, (n,) each: tokens of documents, each ended by end-of-text, and the source of every token.

        Give `eot` where the last document may be cut off. Raises UserError where there are no tokens.
        """
        changes = np.flatnonzero(np.diff(source_ids)) + 1
        starts = np.concatenate([np.zeros(min(1, len(tokens)), dtype=np.int64), changes])
        return cls(Split("given", [tokens], [starts], [source_ids[starts]], sources), block_size, eot=eot)

    def windows(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows i to j-1: inputs, targets and the source of each target, int64 of shape (j - i, block_size).

        Targets and sources are -1 where the token is not of the range; inputs are end-of-text after the end of the split.
        """
        window = self._windows[i:j, None] * self._block_size + np.arange(self._block_size)
        x = np.full(window.shape, self._eot, dtype=np.int64)
        y, sources = np.full_like(x, -1), np.full_like(x, -1)
        known = (window > 0) & (window < self._split.n_tokens)  # nothing stands before the split's first token
        x[known] = self._tokens(window[known] - 1)
        piece = np.searchsorted(self._starts, window, side="right") - 1
        chosen = window < self._stops[piece]
        y[chosen], sources[chosen] = self._tokens(window[chosen]), self._sources(window[chosen])
        return x, y, sources

    def _positions(self, start: int, stop: int) -> np.ndarray:
        """Where in the split tokens start to stop-1 of the range are."""
        index = np.arange(start, stop, dtype=np.int64)
        piece = np.searchsorted(self._piece_ends, index, side="right")
        return index + (self._stops - self._piece_ends)[piece]

    def _by_shard(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each shard that holds some of `positions`: its number, which ones, and where in it they are."""
        owner = np.searchsorted(self._ends, positions, side="right")
        for number in np.unique(owner):
            here = np.flatnonzero(owner == number)
            yield int(number), here, positions[here] - (self._ends[number] - len(self._split.shards[number]))

    def _tokens(self, positions: np.ndarray) -> np.ndarray:
        out = np.empty(len(positions), dtype=np.int64)
        for number, here, within in self._by_shard(positions):
            out[here] = self._split.shards[number][within]
        return out

    def _sources(self, positions: np.ndarray) -> np.ndarray:
        out = np.empty(len(positions), dtype=np.int64)
        for number, here, within in self._by_shard(positions):
            document = np.searchsorted(self._split.starts[number], within, side="right") - 1
            out[here] = self._split.source_ids[number][document]
        return out

    @cached_property
    def fingerprint(self) -> str:
        """Hash over the predicted tokens, whatever their dtype and the block size."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, self.n_tokens, HASH_TOKENS):
            positions = self._positions(start, min(start + HASH_TOKENS, self.n_tokens))
            digest.update(self._tokens(positions).astype("<u4").tobytes())
        return digest.hexdigest()


def _spread(count: int, n: int) -> np.ndarray:
    """The first `count` of range(n) in bit-reversed order (van der Corput 1935), int64.

    For every `count` they are spread evenly: at most 2 n / count lie from one to the next. A larger `count` only adds to
    a smaller one.
    """
    bits = max(1, (n - 1).bit_length())
    # More than half of the numbers of so many bits are below n, and every second one in this order is.
    candidates = np.arange(min(2 * count, 1 << bits), dtype=np.int64)
    found = np.zeros_like(candidates)
    for bit in range(bits):
        found |= (candidates >> bit & 1) << (bits - 1 - bit)
    return found[found < n][:count]


def _pieces(n_tokens: int, of: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of a range of `n_tokens` in a split of `of` tokens, ascending, int64 each; what adjoins is one piece."""
    whole = of // CHUNK_TOKENS
    order = _spread(min(-(-n_tokens // CHUNK_TOKENS), whole), whole)
    if len(order) * CHUNK_TOKENS < n_tokens:
        order = np.append(order, whole)  # what is left over at the end of the split comes last
    starts, stops = order * CHUNK_TOKENS, (order + 1) * CHUNK_TOKENS
    stops[-1] -= len(order) * CHUNK_TOKENS - n_tokens  # the last one in the order may be taken in part
    ascending = np.argsort(starts)
    starts, stops = starts[ascending], stops[ascending]
    apart = starts[1:] != stops[:-1]
    return starts[np.r_[True, apart]], stops[np.r_[apart, True]]
