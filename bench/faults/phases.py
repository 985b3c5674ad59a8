"""Run train.py and report each phase that it enters: python -m bench.faults.phases FD KEY=VALUE ...

The phases let bench/faults/prove_faults.py kill the run in each of them. Entering a phase writes a line with its name to the
pipe FD. Phases may be nested; leaving the inner one writes the name of the outer one again.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

IMPORT = "import"  # imports of libraries, and the time between other phases
PHASES: dict[str, tuple[str, ...]] = {
    "preparing": ("training.setup.prepare_corpus",),
    IMPORT: ("training.setup.open_run_device",),  # loads torch
    "warm-up": ("train.compile_model",),
    "training": ("train.fit",),
    "checkpoint": ("train.save", "training.finalize.save"),
    "evaluation": ("training.evaluation.evaluate", "training.finalize.evaluate"),
    "report": ("training.finalize.write_report_of",),
}


def with_phase_notes(function: Callable[..., Any], phase: str, phases: list[str], pipe: int) -> Callable[..., Any]:
    """Wrap a function so that its phase is reported on entry and the outer phase on exit. `phases`: the stack of phases."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        phases.append(phase)
        os.write(pipe, f"{phase}\n".encode())
        try:
            return function(*arguments, **keywords)
        finally:
            phases.pop()
            os.write(pipe, f"{phases[-1]}\n".encode())

    return call


def main() -> None:
    pipe, phases = int(sys.argv.pop(1)), [IMPORT]
    os.write(pipe, f"{IMPORT}\n".encode())
    for phase, names in PHASES.items():
        for name in names:
            path, _, function = name.rpartition(".")
            module = importlib.import_module(path)
            setattr(module, function, with_phase_notes(getattr(module, function), phase, phases, pipe))
    importlib.import_module("train").command()


if __name__ == "__main__":
    main()
