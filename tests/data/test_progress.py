"""Tests of the progress lines of a preparation without a terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from data.progress import BYTES_PER_LINE, PartsProgress
from data.sources.base import Part


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (10 * BYTES_PER_LINE, [f"corpus: {10 * tenth} %, so far" for tenth in range(1, 11)]),
        (100 * BYTES_PER_LINE, [f"corpus: {10 * tenth} %, so far" for tenth in range(1, 11)]),
        (2 * BYTES_PER_LINE, ["corpus: 50 %, so far", "corpus: 100 %, so far"]),
        (BYTES_PER_LINE - 1, []),
    ],
)
def test_one_line_per_tenth_and_none_for_a_small_corpus(size: int, expected: list[str]) -> None:
    lines: list[str] = []
    source: Any = SimpleNamespace(consumed=0)
    with PartsProgress("corpus", source, [Part("one", size)], True, lines.append) as progress:
        for step in range(1001):
            source.consumed = size * step // 1000
            progress.update(0, "so far")
        progress.update(1, "so far")
    assert lines == expected
