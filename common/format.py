"""Format durations, counts and shares for people."""

from __future__ import annotations

import math


def format_seconds(seconds: float) -> str:
    """Format a duration: "4.2 s", "2m03s", "1h02m", "3d04h"; "?" where it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    sign = "-" if seconds < 0 else ""
    seconds = abs(seconds)
    if round(seconds, 1) < 60:
        return f"{sign}{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{sign}{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 100 * 60:
        return f"{sign}{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{sign}{hours // 24}d{hours % 24:02d}h"


def format_count(number: float) -> str:
    """Format a count to three significant digits: "512", "24.3k", "4.19M", "3.4B", "9.5T", and "1.2e+18" from 1e15 on."""
    if not math.isfinite(number):
        return "?"
    if abs(number) < 1000 and float(number).is_integer():
        return str(int(number))
    # Round before choosing the unit, so that 999,999 becomes 1M and not 1000k.
    rounded = float(f"{number:.3g}")
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(rounded) < 1e15:
            return f"{rounded / size:.3g}{unit}" if abs(rounded) < 1e3 * size else f"{rounded / size:.0f}{unit}"
    return f"{rounded:.3g}"


def format_bytes(size: float) -> str:
    """Format a size to three significant digits in powers of 1000: "512B", "24.3kB", "1GB", "9.5TB"."""
    return f"{format_count(size).replace('B', 'G')}B"


def format_percent(share: float) -> str:
    """Format a share in [0, 1] as whole percents, rounded down so that "100 %" means done."""
    return f"{math.floor(share * 100 + 1e-9)} %" if math.isfinite(share) else "? %"


def format_number_of(count: int, noun: str) -> str:
    """Format a number of things: "1 layer", "2 layers"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(value: object) -> str:
    """Format a value of a file for a message, in at most 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
