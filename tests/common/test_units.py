"""Durations, counts and sizes as people write them."""

from __future__ import annotations

import pytest

from common.units import parse_bytes, parse_count, parse_duration


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("3", 3.0), ("0.05", 0.05), ("3h", 3.0), ("90m", 1.5), ("45s", 0.0125), ("2d", 48.0), ("1h30m", 1.5),
        ("1h 30m", 1.5), ("1.5h", 1.5), ("3H", 3.0), ("0.1h", 0.1), ("20m", 1 / 3), ("-1h", -1.0), ("1e-3h", 0.001),
    ],
)  # fmt: skip
def test_hours(text: str, hours: float) -> None:
    assert parse_duration(text) == hours  # exactly: the name of a run's folder depends on the number


def test_seconds() -> None:
    assert parse_duration("10m", "seconds") == 600
    assert parse_duration("8", "seconds") == 8


@pytest.mark.parametrize(
    ("text", "count"),
    [("10B", 1e10), ("500M", 5e8), ("32k", 32000), ("1T", 1e12), ("1e9", 1e9), ("3.4e18", 3.4e18), ("1.5k", 1500)],
)
def test_counts(text: str, count: float) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GB", 1e9),
        ("500MB", 5e8),
        ("1GiB", 2**30),
        ("64KiB", 65536),
        ("10kB", 1e4),
        ("12B", 12),
        ("7", 7),
        ("1.5 GB", 1.5e9),
    ],
)
def test_sizes(text: str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["3x", "", "h", "1h30", "1 2h", "nan", "inf", "1e9999", "3 hours", "9" * 50, "1d-2h"])
def test_what_is_no_duration_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"e\.g\. 3h, 90m, 45s"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["10X", "B", "1h", "1e400", "10BB", "nan", "1e999999999"])
def test_what_is_no_count_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="32k, 500M, 10B"):
        parse_count(text)
    with pytest.raises(ValueError, match="500MB, 1GB, 1GiB"):
        parse_bytes(text.replace("B", "Q"))
