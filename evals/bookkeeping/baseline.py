"""An evaluation that is kept in a file, and later ones that are compared with it.

The total of an evaluation is the sum over tasks of score / baseline score, so the baseline's is the number of its tasks. A task
that was not evaluated counts as in the baseline. The overlay of a task is the total with the answers to this task alone laid over
the baseline: the score of a task where only totals are published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checksum import verify_checksum
from common.errors import MachineError, UserError
from common.json_io import is_number, write_json
from common.safe_read import load_json
from evals.statistics import compared_parts, paired_difference
from evals.tasks.task import MACRO_F1, MEAN, Task

LARGEST = 1 << 28  # bytes of a file; 67,000 marks take about 12 MB

Marks = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Baseline:
    """A kept evaluation.

    Attributes:
        path: Its file.
        evaluation: As described in evals/evaluation.py.
        marks: The marks of each task, with the keys that `compared_parts` keeps.
    """

    path: Path
    evaluation: dict[str, Any]
    marks: dict[str, list[dict[str, Any]]]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The figures of each task."""
        tasks: dict[str, dict[str, Any]] = self.evaluation["tasks"]
        return tasks


def read_baseline(path: Path) -> Baseline | None:
    """Read a kept evaluation; None if the file does not exist. Raises UserError if it is not one."""
    try:
        content = verify_checksum(load_json(path, LARGEST))
        baseline = Baseline(path, content["evaluation"], content["marks"])
        _check(baseline)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"baseline={path} cannot be read ({error.strerror}); give another file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"baseline={path} is not a kept evaluation, or damaged ({reason}); give another file, or one that does not exist to"
            " keep this evaluation there"
        ) from None
    return baseline


def write_baseline(path: Path, evaluation: Mapping[str, Any], marks: Mapping[str, Marks]) -> None:
    """Keep an evaluation as the baseline of later ones. Raises MachineError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"evaluation": evaluation, "marks": compared_parts(marks)}, checksummed=True)
    except OSError as error:
        raise MachineError(
            f"baseline={path} cannot be written ({error.strerror}); the answers are kept: repeat the command with another file"
        ) from None


def check_items(baseline: Baseline, tasks: Sequence[Task]) -> None:
    """Raise UserError for tasks that cannot be compared with the baseline: they have other items, or another statistic."""
    problems = [line for task in tasks if task.name in baseline.tasks for line in _differences(baseline, task)]
    if problems:
        raise UserError(*problems)


def _differences(baseline: Baseline, task: Task) -> Iterator[str]:
    instead = f"leave the task out with skip=[{task.name}], or give another baseline"
    ours, theirs = [item.id for item in task.items], [mark["id"] for mark in baseline.marks[task.name]]
    missing, added = set(theirs) - set(ours), set(ours) - set(theirs)
    if missing or added:
        example = next(each for each in (*theirs, *ours) if each in missing or each in added)
        yield (
            f"{task.name}: of the {len(theirs):,} items in baseline={baseline.path}, {len(missing):,} are missing here, and"
            f" {len(added):,} items are new, e.g. {example!r}; score the same items (limit=, fraction=, task.path=), {instead}"
        )
    if (used := baseline.tasks[task.name]["statistic"]) != task.statistic:
        yield f"{task.name}: its score is {task.statistic}, and {used} in baseline={baseline.path}; {instead}"


def compare(baseline: Baseline, tasks: Mapping[str, Mapping[str, Any]], marks: Mapping[str, Marks]) -> dict[str, Any]:
    """Compare the figures and marks of an evaluation with the baseline; see `comparison` in evals/evaluation.py.

    `check_items` must have found no problem. Tasks without known right answers are left out.
    """
    n_tasks = sum(figures["score"] is not None for figures in baseline.tasks.values())
    compared = {}
    for name, figures in tasks.items():
        if name not in baseline.tasks or baseline.tasks[name]["score"] is None:
            continue
        difference = paired_difference(marks[name], baseline.marks[name], figures["statistic"])
        if difference is not None:
            compared[name] = _compared(figures["score"], baseline.tasks[name]["score"], difference, n_tasks)
    ratios = [each["ratio"] for each in compared.values()]
    return {
        "baseline": str(baseline.path),
        "kept": False,
        "tasks": compared,
        "not_compared": [
            name for name, figures in tasks.items() if name not in compared and figures["score"] is not None
        ],
        "unchanged": [
            name for name, figures in baseline.tasks.items() if name not in compared and figures["score"] is not None
        ],
        "total": None if None in ratios else total(ratios, n_tasks),
    }


def ratio(score: float, baseline: float) -> float | None:
    """Score / baseline score; None if the baseline's is 0."""
    return score / baseline if baseline else None


def total(ratios: Sequence[float], n_tasks: int) -> float:
    """The sum over the tasks of a baseline of score / baseline score. Tasks without a ratio here are unchanged and count 1."""
    return sum(ratios) + n_tasks - len(ratios)


def undefined_ratios(comparison: Mapping[str, Any]) -> list[str]:
    """The lines for tasks whose ratio, and so the total, is undefined."""
    return [
        f"{name}: its score in baseline={comparison['baseline']} is 0, so score / baseline and the total are undefined; give"
        f" another baseline, or leave the task out with skip=[{name}]"
        for name, each in comparison.get("tasks", {}).items()
        if each["ratio"] is None
    ]


def _compared(
    score: float, baseline: float, difference: tuple[float, tuple[float, float]], n_tasks: int
) -> dict[str, Any]:
    share = ratio(score, baseline)
    return {
        "score": score,
        "baseline": baseline,
        "delta": difference[0],
        "interval": list(difference[1]),
        "ratio": share,
        "overlay": None if share is None else total([share], n_tasks),
    }


def _check(baseline: Baseline) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError for content that is not a kept evaluation's."""
    if set(baseline.tasks) != set(baseline.marks):
        raise ValueError("its figures and marks are of different tasks")
    for name, figures in baseline.tasks.items():
        if figures["statistic"] not in (MEAN, MACRO_F1):
            raise ValueError(f"{name}: {figures['statistic']!r} is not a known statistic")
        for value in (figures["score"], *(mark["score"] for mark in baseline.marks[name])):
            if value is not None and not is_number(value):
                raise ValueError(f"{name}: {value!r} is not a score")
        if not all(isinstance(mark["id"], str) for mark in baseline.marks[name]):
            raise ValueError(f"{name}: an id is not a text")
