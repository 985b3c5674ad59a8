"""Packs token sequences into rows, so that tokens which several sequences have in common are computed once.

The sequences of a row form a tree: each branches off from an earlier one behind their common beginning. The choices of a
question share its context; the two sentences of a minimal pair often share their first half. `model.attention.RowLayout` tells
the model which tokens belong to the same sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Row:
    """One row of tokens.

    Attributes:
        tokens: Token ids.
        positions: The position of each token in its own sequence.
        previous: The id of the token before each token in its own sequence; -1 for the first.
        segments: (begin, end, path): tokens begin to end - 1 continue the tokens at the indices in `path`.
        sequences: The number of each sequence of the row, and the indices of its tokens in the row.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    previous: list[int] = field(default_factory=list)
    segments: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    sequences: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def add(self, number: int, sequence: Sequence[int], path: np.ndarray) -> np.ndarray:
        """Add a sequence whose first tokens are those at the indices in `path`. Returns the indices of all its tokens."""
        begin, shared = len(self.tokens), len(path)
        new = list(sequence[shared:])
        self.tokens += new
        self.positions += range(shared, len(sequence))
        self.previous += [sequence[shared - 1] if shared else -1, *new[:-1]][: len(new)]
        if new:
            self.segments.append((begin, len(self.tokens), path))
        indices = np.concatenate((path, np.arange(begin, len(self.tokens))))
        self.sequences.append((number, indices))
        return indices

    def mask(self, length: int, eot: int | None) -> np.ndarray:
        """Return the attention mask of the row, padded to `length`, bool (length, length).

        With `eot`, a token attends only to tokens of its own document, as `model.attention.document_mask` has it.
        """
        mask = np.eye(length, dtype=bool)  # padding attends to itself: the softmax of an empty row would be NaN
        documents = np.zeros(length, dtype=np.int64)
        starts = np.asarray(self.tokens) == eot if eot is not None else np.zeros(len(self.tokens), dtype=bool)
        for begin, end, path in self.segments:
            mask[begin:end, path] = True
            mask[begin:end, begin:end] = np.tri(end - begin, dtype=bool)
            documents[begin:end] = (documents[path[-1]] if len(path) else 0) + np.cumsum(starts[begin:end])
        return mask & (documents[:, None] == documents[None, :]) if eot is not None else mask


def pack(sequences: Sequence[Sequence[int]], longest_row: int, width: int) -> list[Row]:
    """Pack sequences into rows, the shortest row first.

    Sequences are sorted by their tokens, which brings those with the same beginning together. Each then branches off from the
    one before it, if that takes less compute than a new row, and the row stays within `longest_row` tokens.

    Args:
        width: n_embd of the model, which determines what is cheaper.
    """
    rows: list[Row] = []
    path = np.zeros(0, dtype=np.int64)
    before: tuple[int, ...] = ()
    for number in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = tuple(sequences[number])
        shared = _common(before, sequence)
        if not rows or not _fits(len(rows[-1].tokens), shared, len(sequence) - shared, longest_row, width):
            rows.append(Row())
            shared = 0
        path = rows[-1].add(number, sequence, path[:shared])
        before = sequence
    return sorted(rows, key=lambda row: len(row.tokens))


def _fits(length: int, shared: int, new: int, longest_row: int, width: int) -> bool:
    """Return whether a sequence of `shared` + `new` tokens belongs behind a row of `length` tokens rather than into a new row.

    A block computes about 24 width^2 FLOPs per token in its matrices, and 4 width per pair of tokens of a row in attention,
    masked pairs included. The row saves the matrices for the shared tokens and costs more pairs.
    """
    pairs_here, pairs_apart = (length + new) ** 2 - length**2, (shared + new) ** 2
    return length + new <= longest_row and pairs_here < pairs_apart + 6 * width * shared


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of tokens with which both sequences begin."""
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)
