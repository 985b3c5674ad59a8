"""Run scripts in forks of a process that has loaded their libraries: this saves two seconds for each.

A fork has its own memory, clock and exit status; its output is read from files. Tests of the start itself, and tests
that kill a run, start a new process instead.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

LOADED = (
    "tests.copies", "train", "torch", "training.build", "data.prepare", "data.tokenizers.tokenizer", "model.gpt",
    "model.optim.build", "hydra", "evals.language_model", "run.report.run_report", "run.report.plots", "matplotlib.figure",
    "matplotlib.backends.backend_svg", "jinja2",
)  # fmt: skip
COPIES = multiprocessing.get_context("forkserver")
COPIES.set_forkserver_preload(list(LOADED))


def copied(words: list[str], place: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run the command line `words`, script first, in the folder `place`. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        process = COPIES.Process(target=as_typed, args=(words, place, dict(os.environ), files))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, seconds)
        out, err = (path.read_text() if path.exists() else "" for path in files)
        return subprocess.CompletedProcess(words, process.exitcode or 0, out, err)


def as_typed(words: list[str], place: Path, environment: dict[str, str], files: list[Path]) -> None:
    """Run the script within the fork, as if it had been typed."""
    for number, path in enumerate(files, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
