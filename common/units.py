"""Parse durations, counts and sizes as people write them: "1h30m", "10B", "500MB". common/format.py is the inverse.

Every function returns a number in a fixed unit, and raises ValueError with a phrase that says what is allowed.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
BYTES = {
    "": 1,
    "b": 1,
    **{f"{prefix}{end}": 1000**power for power, prefix in enumerate("kmgt", start=1) for end in ("", "b")},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
# At most 40 digits and an exponent of at most three: a Fraction of 1e999999999 would fill the memory.
NUMBER = r"(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:e[+-]?\d{1,3})?"
QUANTITY = re.compile(rf"([+-]?{NUMBER}) ?([a-z]*)")
DURATION = re.compile(rf"(-?)((?:{NUMBER} ?[dhms] ?)+)")
PART = re.compile(rf"({NUMBER}) ?([dhms])")

ALLOWED = {
    "hours": "not a duration; write hours as a number, or e.g. 3h, 90m, 45s, 1h30m, 2d",
    "seconds": "not a duration; write seconds as a number, or e.g. 45s, 10m, 1h30m",
    "count": "not a count; write a number, or e.g. 32k, 500M, 10B, 1T, 1e18",
    "bytes": "not a size; write bytes as a number, or e.g. 500MB, 1GB, 1GiB",
}


def parse_duration(text: str, unit: str = "hours") -> float:
    """A duration in `unit`, "hours" or "seconds": a plain number in that unit, or parts such as "1h30m", "2d", "45s"."""
    lower = text.strip().lower()
    if re.fullmatch(rf"[+-]?{NUMBER}", lower):
        return _finite(Fraction(lower), unit)
    if not (whole := DURATION.fullmatch(lower)):
        raise ValueError(ALLOWED[unit])
    parts = PART.findall(whole[2])
    seconds = sum((Fraction(number) * SECONDS[letter] for number, letter in parts), Fraction(0))
    return _finite((-seconds if whole[1] else seconds) / (SECONDS["h"] if unit == "hours" else 1), unit)


def parse_count(text: str) -> float:
    """A count: a plain number, or one with k (thousand), M (million), B (billion) or T (trillion)."""
    return _quantity(text, "count", COUNTS)


def parse_bytes(text: str) -> float:
    """A size in bytes: a plain number, or one with kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024)."""
    return _quantity(text, "bytes", BYTES)


def parse_unit(text: str, unit: str) -> float:
    """The number that `text` means for an option of this unit: "hours", "seconds", "count" or "bytes"."""
    if unit in ("hours", "seconds"):
        return parse_duration(text, unit)
    return parse_count(text) if unit == "count" else parse_bytes(text)


def _quantity(text: str, unit: str, sizes: dict[str, int]) -> float:
    match = QUANTITY.fullmatch(text.strip().lower())
    if not match or match[2] not in sizes:
        raise ValueError(ALLOWED[unit])
    return _finite(Fraction(match[1]) * sizes[match[2]], unit)


def _finite(value: Fraction, unit: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"too large; {ALLOWED[unit].partition('; ')[2]}") from None
    assert math.isfinite(number)
    return number
