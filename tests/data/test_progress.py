"""Tests of what a preparation shows: lines without a terminal, a bar on one."""

from __future__ import annotations

import io
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from data import progress
from data.progress import BYTES_PER_LINE, PartsProgress
from data.sources.base import Part


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that the test sets, and a watching thread that never wakes up."""
    time = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "now", lambda: time.seconds)
    monkeypatch.setattr(progress, "PERIOD_S", 1e6)
    return time


def source_of(in_bytes: bool) -> Any:
    return SimpleNamespace(consumed=0, in_bytes=in_bytes)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (10 * BYTES_PER_LINE, [f"corpus: {10 * tenth} %, so far" for tenth in range(1, 11)]),
        (100 * BYTES_PER_LINE, [f"corpus: {10 * tenth} %, so far" for tenth in range(1, 11)]),
        (2 * BYTES_PER_LINE, ["corpus: 50 %, so far", "corpus: 100 %, so far"]),
        (BYTES_PER_LINE - 1, []),
    ],
)
def test_one_line_per_tenth_and_none_for_a_small_corpus(clock: Any, size: int, expected: list[str]) -> None:
    lines: list[str] = []
    source = source_of(in_bytes=False)
    with PartsProgress("corpus", source, [Part("one", size)], True, lines.append) as shown:
        shown.begin(0)
        shown.update("so far")
        for step in range(1001):
            source.consumed = size * step // 1000
            shown.show()
        shown.begin(1)
    assert lines == expected


def test_lines_tell_bytes_rate_and_time_left(clock: Any) -> None:
    lines: list[str] = []
    source = source_of(in_bytes=True)
    with PartsProgress("corpus", source, [Part("a", 1_000_000_000), Part("b", 3_000_000_000)], True, lines.append) as s:
        s.begin(0)
        clock.seconds, source.consumed = 29.0, 10_000_000
        s.show()
        assert lines == []
        clock.seconds, source.consumed = 40.0, 400_000_000
        s.update("7 tokens")
        s.show()
        s.begin(1)
        clock.seconds, source.consumed = 100.0, 0
        s.show()
        clock.seconds = 130.0  # the network hangs
        s.show()
    assert lines == [
        "corpus: 10 %, 0.4/4.0 GB, 10.0 MB/s, 6m00s left, 7 tokens",
        "corpus: 25 %, 1.0/4.0 GB, 10.0 MB/s, 5m00s left, 7 tokens",
        "corpus: 25 %, 1.0/4.0 GB, 7.7 MB/s, 6m30s left, 7 tokens",
    ]


def test_a_limit_is_what_there_is_to_read(clock: Any) -> None:
    """With data.max_bytes, a few files of a large data set are read."""
    lines: list[str] = []
    source = source_of(in_bytes=True)
    with PartsProgress("corpus", source, [Part("a", 10**12)], True, lines.append) as shown:
        shown.begin(0)
        clock.seconds, source.consumed = 30.0, 300_000_000
        shown.update("half", limit_share=0.5)
        shown.show()
    assert lines == ["corpus: 50 %, 300.0/600.0 MB, 10.0 MB/s, 30.0 s left, half"]


def test_what_an_earlier_preparation_read_does_not_count_for_the_rate(clock: Any) -> None:
    lines: list[str] = []
    source = source_of(in_bytes=True)
    with PartsProgress("corpus", source, [Part("a", 500), Part("b", 500)], True, lines.append) as shown:
        shown.begin(1)
        clock.seconds, source.consumed = 50.0, 100
        shown.show()
    assert lines == ["corpus: 60 %, 600/1.0 kB, 2 B/s, 3m20s left".replace("600/1.0 kB", "0.6/1.0 kB")]


def test_lines_appear_while_the_reading_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PERIOD_S", 0.001)
    monkeypatch.setattr(progress, "LONGEST_SILENCE_S", 0.0)
    seen = threading.Event()
    with PartsProgress("corpus", source_of(in_bytes=True), [Part("a", 9)], True, lambda line: seen.set()) as shown:
        shown.begin(0)
        assert seen.wait(60)


def test_the_bar_shows_bytes_only_where_the_unit_is_bytes(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for in_bytes in (True, False):
        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", terminal)
        source = source_of(in_bytes)
        with PartsProgress("corpus", source, [Part("a", 4_000_000_000)], True, print) as shown:
            shown.begin(0)
            source.consumed = 1_200_000_000
            shown.update("7 tokens")
            shown.show()
        monkeypatch.undo()
        assert ("1.2/4.0 GB" in terminal.getvalue()) == in_bytes
        assert "30%" in terminal.getvalue()
        assert "left" in terminal.getvalue()
        assert "7 tokens" in terminal.getvalue()
