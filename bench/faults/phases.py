"""train.py, with a note of each phase that it enters: python -m bench.faults.phases FD KNOBS

The same run as train.py's, whose phases bench/faults/prove_faults.py can see from outside, so that it can kill in all of them. A note
is a line with the phase's name in the pipe FD; a phase may lie within another one, which is noted again when it is left.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

IMPORT = "import"  # of libraries; this and what lies between two phases
PHASES: dict[str, tuple[str, ...]] = {
    "preparing": ("training.setup.prepare_corpus",),
    IMPORT: ("training.setup.open_run_device",),  # loads torch
    "warm-up": ("train.compile_model",),
    "training": ("train.fit",),
    "checkpoint": ("train.save", "training.finalize.save"),
    "evaluation": ("training.evaluation.evaluate", "training.finalize.evaluate"),
    "report": ("training.finalize.write_report_of",),
}


def noted(function: Callable[..., Any], phase: str, inside: list[str], pipe: int) -> Callable[..., Any]:
    """The function, with a note when it is entered and another when it is left."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        inside.append(phase)
        os.write(pipe, f"{phase}\n".encode())
        try:
            return function(*arguments, **keywords)
        finally:
            inside.pop()
            os.write(pipe, f"{inside[-1]}\n".encode())

    return call


def main() -> None:
    pipe, inside = int(sys.argv.pop(1)), [IMPORT]
    os.write(pipe, f"{IMPORT}\n".encode())
    for phase, names in PHASES.items():
        for name in names:
            path, _, function = name.rpartition(".")
            module = importlib.import_module(path)
            setattr(module, function, noted(getattr(module, function), phase, inside, pipe))
    importlib.import_module("train").command()


if __name__ == "__main__":
    main()
