"""What train.py hands to the launcher: the functions of a sweep, which load the rest of this folder when they are called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def run_job(config: Any, number: int, overrides: list[str], sweep_dir: str) -> float | None:
    """Run one job in a process of its own; returns the sweep's metric. Raises as `sweeps.engine.scheduler.run_alone` does."""
    from sweeps.engine.job import job_of
    from sweeps.engine.scheduler import run_alone

    return run_alone(job_of(config, number, overrides, sweep_dir))


def current_sweep() -> Path | None:
    """The folder of the sweep that this process launched, if it did."""
    record = sys.modules.get("sweeps.engine.hydra_callback")
    return None if record is None else record.CURRENT


def conclude_sweep() -> None:
    """Write the table and the report of the current sweep, if there is one."""
    if sweep := current_sweep():
        from sweeps.engine.report import conclude

        conclude(sweep)
