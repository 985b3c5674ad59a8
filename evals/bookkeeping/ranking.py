"""Ranks the jobs of a sweep over evaluate.py's options by score, e.g. over the templates of a task.

    python evaluate.py -m checkpoint=outputs/NAME tasks=[classify:test.tsv] 'task.template="A {text} {label}","B {text} {label}"'

The sweep may also be a file, here sweeps/templates.yaml, run with `python evaluate.py -cd sweeps -cn templates`:

    defaults: [evaluate, _self_]
    hydra:
      mode: MULTIRUN
      sweeper:
        params:
          task.template: '"A {text} {label}","B {text} {label}"'
    checkpoint: outputs/NAME
    tasks: [classify:test.tsv]

The jobs run one after the other and share their answers: a template computes only what was not asked before. A job that fails
does not end the sweep. The folder of the sweep, outputs/evaluations/NAME (hydra.sweep.dir), gets ranking.json, and
evaluation.json and report.html of each job.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import MachineError
from common.format import format_number_of
from common.json_io import write_json
from run.report.console import Console
from run.report.evaluation_report import write_evaluation_report

if TYPE_CHECKING:
    from evals.statistics import Marks

Interval = tuple[float, float]


@dataclass(frozen=True)
class Job:
    """One job of the sweep.

    Attributes:
        overrides: The options of the job, as on the command line.
        tasks: The figures of each task, as in evaluation.json.
        marks: The marks of each task.
        error: Why the job failed; empty if it has not.
    """

    number: int
    overrides: Sequence[str]
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    marks: Mapping[str, Marks] = field(default_factory=dict)
    error: str = ""

    @property
    def score(self) -> float | None:
        """The mean of the scores of the tasks; None if a task has no score."""
        scores = [figures.get("score") for figures in self.tasks.values()]
        return sum(scores) / len(scores) if scores and None not in scores else None  # type: ignore[arg-type]

    @property
    def interval(self) -> Interval | None:
        """The interval of the score; see `mean_interval`."""
        parts = [(figures.get("score"), figures.get("interval")) for figures in self.tasks.values()]
        return mean_interval([(score, tuple(ends)) for score, ends in parts if score is not None and ends], len(parts))


class SweepResults:
    """The jobs of the sweep that this process runs.

    Attributes:
        stream: Where the ranking is printed.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.folder = Path()
        self.stream = sys.stdout

    @contextmanager
    def job(self, number: int, overrides: Sequence[str], folder: Path) -> Iterator[Callable[..., Job]]:
        """Run a job: the context gets a function to call with its evaluation and its marks.

        A job whose context raises is kept as failed. Raises MachineError if its files cannot be written.
        """
        self.folder = folder

        def finished(evaluation: Mapping[str, Any], marks: Mapping[str, Marks]) -> Job:
            from evals.statistics import compared_parts  # imports torch, as in `difference`

            _write_job(folder / str(number), evaluation, marks)
            job = Job(number, overrides, evaluation["tasks"], compared_parts(marks))
            self.jobs.append(job)
            return job

        try:
            yield finished
        except Exception as error:
            self.jobs.append(Job(number, overrides, error=f"{error}" or type(error).__name__))
            raise

    def conclude(self) -> None:
        """Print the ranking and write ranking.json, if a job has ended. Raises MachineError if it cannot be written."""
        if not self.jobs:
            return
        rows, console = rank(self.jobs), Console(stream=self.stream)
        for names in dict.fromkeys(tuple(row["tasks"]) for row in rows if not row["error"]):
            group = [row for row in rows if not row["error"] and tuple(row["tasks"]) == names]
            console.table(f"{', '.join(names)}: {format_number_of(len(group), 'job')}", *_table(group, names))
        for row in rows:
            if row["error"]:
                console.say(f"job {row['job']} failed ({row['options']}): {row['error']}")
        path = self.folder / "ranking.json"
        with _writing(path):
            write_json(path, {"jobs": rows})
        console.say(f"wrote   {path}")


def _write_job(folder: Path, evaluation: Mapping[str, Any], marks: Mapping[str, Marks]) -> None:
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "evaluation.json", evaluation)
        write_evaluation_report(folder / "report.html", evaluation, marks)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written ({error.strerror}); the answers are kept: repeat the command with hydra.sweep.dir=FOLDER"
        ) from None


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of the jobs that scored the tasks `names`; a column for each task if there are several."""
    several = list(names) if len(names) > 1 else []
    columns = ["job", "options", *several, "score", "95 % interval", "minus best", "95 % interval"]
    cells = [
        [
            str(row["job"]),
            row["options"],
            *(_percent(row["tasks"][name]["score"]) for name in several),
            _percent(row["score"]),
            _span(row["interval"], ".2f"),
            _percent(row["difference"], "+.2f"),
            _span(row["difference_interval"], "+.2f"),
        ]
        for row in rows
    ]
    return columns, cells


def _percent(share: float | None, form: str = ".2f") -> str:
    return "-" if share is None else f"{100 * share:{form}} %"


def _span(ends: Interval | None, form: str) -> str:
    return "-" if ends is None else f"{100 * ends[0]:{form}} to {100 * ends[1]:{form}} %"


def rank(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the jobs as JSON values: those that scored the same tasks together, the best first, and failed jobs last.

    - job: its number; options: those that differ between jobs
    - score: the mean over its tasks, and interval; None if a task has none, or the job failed
    - difference: score minus that of the best job of the same tasks, on the items that both have, and difference_interval, by
      the paired bootstrap; None for the best job
    - tasks: the score and the interval of each task
    - error: why the job failed, or None
    """
    labels = labels_of(jobs)
    rows = []
    for group in _by_tasks(jobs):
        best = group[0]
        for job in group:
            compared = difference(job, best) if job is not best else None
            rows.append(
                {
                    "job": job.number,
                    "options": labels[job.number],
                    "score": job.score,
                    "interval": job.interval,
                    "difference": compared and compared[0],
                    "difference_interval": compared and compared[1],
                    "tasks": {
                        name: {key: figures.get(key) for key in ("items", "score", "interval")}
                        for name, figures in job.tasks.items()
                    },
                    "error": job.error or None,
                }
            )
    return rows


def labels_of(jobs: Sequence[Job]) -> dict[int, str]:
    """Return the options of each job that not all jobs have."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {job.number: " ".join(text for text in job.overrides if text not in common) for job in jobs}


def difference(job: Job, best: Job) -> tuple[float, Interval] | None:
    """Return the score of `job` minus that of `best` and its interval; None if a task has no items that both have."""
    # It imports torch, for which a command line with a mistake need not wait.
    from evals.statistics import paired_difference

    parts = [
        paired_difference(job.marks[name], best.marks[name], str(job.tasks[name]["statistic"])) for name in job.tasks
    ]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    ends = mean_interval(known, len(known))
    assert ends is not None
    return sum(value for value, _ in known) / len(known), ends


def mean_interval(parts: Sequence[tuple[float, Any]], count: int) -> Interval | None:
    """Return the interval of the mean of `count` independent values from the interval of each; None if one is missing.

    The distances from the mean to its ends are the roots of the sums of squares, as for sums of independent errors.
    """
    if not parts or len(parts) < count:
        return None
    mean = sum(value for value, _ in parts) / count
    below = math.hypot(*(value - low for value, (low, _) in parts)) / count
    above = math.hypot(*(high - value for value, (_, high) in parts)) / count
    return mean - below, mean + above


def _by_tasks(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs of each set of tasks, the best first and those without a score last; then the failed jobs."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault((bool(job.error), *sorted(job.tasks)), []).append(job)
    ordered = sorted(groups.items(), key=lambda entry: entry[0][0])
    return [sorted(group, key=_place) for _, group in ordered]


def _place(job: Job) -> tuple[bool, float, int]:
    score = job.score
    return score is None, -(score or 0.0), job.number
