"""The sweep functions that train.py passes to `cli.launch.launch`. They import the rest of this folder only when called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def run_job(composed: Any, number: int, overrides: list[str], sweep_dir: str) -> float | None:
    """Run one job in its own process and return the sweep's metric.

    Raises UserError for an invalid configuration, and what `scheduler.run_single_job` raises.
    """
    from cli.compose import checked_config
    from sweeps.engine.job import make_job
    from sweeps.engine.scheduler import run_single_job

    return run_single_job(make_job(checked_config(composed), number, overrides, sweep_dir))


def current_sweep() -> Path | None:
    """The folder of the sweep that this process started, or None."""
    callback = sys.modules.get("sweeps.engine.hydra_callback")
    return None if callback is None else callback.CURRENT


def conclude_sweep() -> None:
    """Write the table and the report of the current sweep, if there is one."""
    if sweep := current_sweep():
        from sweeps.engine.report import conclude

        conclude(sweep)
