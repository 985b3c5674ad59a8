"""The number of CPU cores available to this process."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the number of cores that this process may run on; under Slurm or in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
