"""Scores of a task from the marks of its items, and intervals by the bootstrap (Efron 1979).

Items are resampled within their groups, because the groups of a benchmark (the paradigms of BLiMP) are fixed. The draws depend on
the seed and the groups only, so that two models are compared on the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from evals.tasks.task import MACRO_F1, MEAN

RESAMPLES, SEED = 1000, 1337
COVERAGE = 0.95  # of every interval

Marks = Sequence[dict[str, Any]]


def score_of(marks: Marks, statistic: str) -> float | None:
    """Return the score of a task, or None if no item has a known right answer."""
    known = [mark for mark in marks if mark.get("score") is not None]
    return _statistic(known, statistic)(np.arange(len(known))) if known else None


def interval(marks: Marks, statistic: str) -> tuple[float, float] | None:
    """Return the bootstrap interval of the score, or None if no item has a known right answer."""
    known = [mark for mark in marks if mark.get("score") is not None]
    if not known:
        return None
    value = _statistic(known, statistic)
    return _ends([value(drawn) for drawn in resamples(known)])


def paired_difference(marks: Marks, baseline: Marks, statistic: str) -> tuple[float, tuple[float, float]] | None:
    """Return the score minus that of `baseline`, and its interval over resamples of the items that both have.

    None if they have no item in common.
    """
    theirs = {mark["id"]: mark for mark in baseline if mark.get("score") is not None}
    ours = [mark for mark in marks if mark.get("score") is not None and mark["id"] in theirs]
    if not ours:
        return None
    first, second = _statistic(ours, statistic), _statistic([theirs[mark["id"]] for mark in ours], statistic)
    everything = np.arange(len(ours))
    differences = [first(drawn) - second(drawn) for drawn in resamples(ours)]
    return first(everything) - second(everything), _ends(differences)


def resamples(marks: Marks) -> Iterator[np.ndarray]:
    """Yield RESAMPLES arrays of indices, drawn with replacement within each group."""
    groups: dict[Any, list[int]] = {}
    for index, mark in enumerate(marks):
        groups.setdefault(mark.get("group"), []).append(index)
    members = [np.asarray(indices) for indices in groups.values()]
    generator = np.random.default_rng(SEED)
    for _ in range(RESAMPLES):
        yield np.concatenate([indices[generator.integers(len(indices), size=len(indices))] for indices in members])


def _statistic(marks: Marks, statistic: str) -> Callable[[np.ndarray], float]:
    """Return the function from indices of items to the score."""
    return {MEAN: _mean, MACRO_F1: _macro_f1}[statistic](marks)


def _mean(marks: Marks) -> Callable[[np.ndarray], float]:
    """The mean over groups of the mean score of each group's items."""
    scores = np.asarray([mark["score"] for mark in marks], dtype=np.float64)
    _, groups = np.unique([str(mark.get("group")) for mark in marks], return_inverse=True)

    def value(drawn: np.ndarray) -> float:
        counts = np.bincount(groups[drawn])
        sums = np.bincount(groups[drawn], scores[drawn])
        return float((sums[counts > 0] / counts[counts > 0]).mean())

    return value


def _macro_f1(marks: Marks) -> Callable[[np.ndarray], float]:
    """The mean over labels of F1 = 2 TP / (2 TP + FP + FN); a label without text and prediction is left out."""
    names = sorted({str(mark["gold"]) for mark in marks} | {str(mark["answer"]) for mark in marks})
    index = {name: i for i, name in enumerate(names)}
    gold = np.asarray([index[str(mark["gold"])] for mark in marks])
    answer = np.asarray([index[str(mark["answer"])] for mark in marks])
    labels = np.unique(gold)  # an answer outside the labels is wrong, and no label of its own

    def value(drawn: np.ndarray) -> float:
        right = np.bincount(gold[drawn][gold[drawn] == answer[drawn]], minlength=len(names))
        total = np.bincount(gold[drawn], minlength=len(names)) + np.bincount(answer[drawn], minlength=len(names))
        counted = labels[total[labels] > 0]
        return float((2 * right[counted] / total[counted]).mean())

    return value


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return float(low), float(high)
