"""The processors that this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores this process may run on; fewer than the machine has under Slurm or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
