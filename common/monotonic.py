"""The only module that reads a clock. A test fails if any other file imports time, datetime or timeit."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path


def now() -> float:
    """Return the seconds of a clock that never goes back; where the system allows, it includes suspended time."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def timestamp() -> str:
    """Return the date and time in UTC for people; it is never used for arithmetic."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_start() -> float:
    """Return when this process began, on the scale of now(), as the kernel reports it; otherwise the time of this call."""
    try:
        # Field 22 of /proc/self/stat, in clock ticks since boot; the name in field 2 may contain spaces, so split
        # after it.
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now()


_runs_begun = 0


def run_start() -> float:
    """Return when the current run began: with the process, or now for a later run in the same process (a sweep)."""
    global _runs_begun
    _runs_begun += 1
    return process_start() if _runs_begun == 1 else now()
