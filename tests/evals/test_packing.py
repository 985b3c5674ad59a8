"""Tests of rows in which sequences share their beginnings: each sequence is a path, and no row costs more than separate ones."""

from __future__ import annotations

import random

import numpy as np
import torch

from evals.packing import Row, pack
from model.attention import document_mask


def random_sequences(count: int) -> list[tuple[int, ...]]:
    """Sequences over a small alphabet, so that many begin alike; some are equal, some are beginnings of others."""
    draw = random.Random(0)
    return [tuple(draw.choices(range(3), k=draw.randrange(1, 12))) for _ in range(count)]


def find(rows: list[Row], number: int) -> tuple[Row, np.ndarray]:
    return next((row, indices) for row in rows for each, indices in row.sequences if each == number)


def test_every_sequence_is_a_path_through_one_row() -> None:
    sequences = random_sequences(200)
    rows = pack(sequences, 40, 16)
    assert sorted(number for row in rows for number, _ in row.sequences) == list(range(200))
    for number, sequence in enumerate(sequences):
        row, path = find(rows, number)
        assert [row.tokens[i] for i in path] == list(sequence)
        assert [row.positions[i] for i in path] == list(range(len(sequence)))
        assert [row.previous[i] for i in path] == [-1, *sequence[:-1]]


def test_tokens_attend_to_the_earlier_tokens_of_their_sequence_and_document() -> None:
    sequences = random_sequences(60)
    for eot in (None, 0):
        for row in pack(sequences, 40, 16):
            mask = row.mask(45, eot)
            seen = {}
            for number, path in row.sequences:
                tokens = torch.tensor([sequences[number]])
                expected = document_mask(tokens, eot if eot is not None else -1)[0, 0].numpy()
                for i, place in enumerate(path):
                    seen[int(place)] = set(path[: len(expected)][expected[i]].tolist())
            assert all(set(np.flatnonzero(mask[place])) == expected for place, expected in seen.items())
            assert (np.flatnonzero(mask[44]) == 44).all()  # padding attends to itself


def test_what_sequences_have_in_common_is_in_a_row_once() -> None:
    context = tuple(range(100, 160))
    (row,) = pack([(*context, 1, 2), (*context, 1, 3), (*context, 4), context], 128, 64)
    assert len(row.tokens) == 60 + 4


def test_rows_stay_within_their_longest_length_and_are_sorted() -> None:
    rows = pack(random_sequences(200), 15, 1 << 10)
    lengths = [len(row.tokens) for row in rows]
    assert max(lengths) <= 15
    assert lengths == sorted(lengths)


def cost(length: int, width: int) -> int:
    """FLOPs of a block for a row: its matrices and all pairs of tokens in attention."""
    return 24 * width**2 * length + 4 * width * length**2


def test_packing_never_costs_more_than_separate_rows() -> None:
    draw = random.Random(1)
    context = tuple(draw.choices(range(9), k=40))
    sequences = [(*context[: draw.randrange(41)], *draw.choices(range(9), k=20)) for _ in range(100)]
    for width in (4, 16, 64):
        rows = pack(sequences, 10_000, width)
        assert sum(cost(len(row.tokens), width) for row in rows) <= sum(cost(len(each), width) for each in sequences)
    assert len(pack(sequences, 10_000, 1 << 10)) < len(pack(sequences, 10_000, 4))


def test_sequences_without_a_common_beginning_get_rows_of_their_own() -> None:
    assert len(pack([(i, 1, 2) for i in range(5)], 100, 1 << 10)) == 5
    assert pack([], 100, 64) == []
