"""Shared by the benchmarks: folders, result files, command lines, medians, and stint's scripts run as processes."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.json_io import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
TOKENIZER = "bpe-4096"
TRAIN_ONLY = ("eval.every=0",)  # no interim evaluations


def argument_parser(description: str | None, corpus: bool = False) -> argparse.ArgumentParser:
    """A parser that shows `description`, a module's docstring, unchanged. `corpus`: the first argument is a corpus folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if corpus:
        parser.add_argument("corpus", help="folder in SlimPajama's layout")
    return parser


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write a benchmark's result as JSON."""
    write_json(path, content)


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result file, or an empty dict if there is no file."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def corpus_options(folder: str | Path, tokenizer: str = TOKENIZER) -> tuple[str, ...]:
    """Options of train.py and plan.py for a folder in SlimPajama's layout."""
    return ("data=slimpajama", f"data.path={folder}", f"data.tokenizer={tokenizer}")


def run_script(script: str, options: Iterable[str], capture: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script of the project to its end, whatever its exit status. `capture`: collect the output instead of showing it."""
    command = [sys.executable, script, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=capture, text=True)


def train(options: Iterable[str]) -> None:
    """Run train.py. If it fails, exits with the end of its output."""
    options = list(options)
    done = run_script("train.py", options)
    if done.returncode:
        sys.exit(f"train.py {' '.join(options)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")


def result_of(folder: Path) -> dict[str, Any]:
    """The result.json of a finished run."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a finished run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each key over rows with the same keys."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def median_ratio(values: Iterable[float], others: Iterable[float]) -> float:
    """The median ratio of pairs that were measured in turn, because the speed of a shared machine changes over time."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))
