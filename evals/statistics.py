"""Scores of a task from the marks of its items, and how certain they are.

Intervals are percentiles of the bootstrap (Efron 1979). Items are resampled within their groups, because the groups of a
benchmark (the paradigms of BLiMP) are fixed. n - 1 of the n items of a group are drawn, so that the variance is right for small
groups, too (Rao and Wu 1988); groups of one item are resampled together with those of the same weight, which are in supergroups
of as many groups. Items of a group with the same outcome are interchangeable, so that a resample is drawn as the number of times
that each outcome occurs, from a multinomial distribution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from evals.tasks.task import MACRO_F1, MEAN

RESAMPLES, SEED = 1000, 1337
COVERAGE = 0.95  # of every interval
MAX_DRAWN = 2**22  # numbers drawn at once: 32 MiB

COMPARED = ("id", "group", "supergroup", "score", "gold", "answer")  # what a comparison needs of a mark

Marks = Sequence[dict[str, Any]]
Group = tuple[Any, Any]  # supergroup and group, None for a task without them


def score_of(marks: Marks, statistic: str) -> float | None:
    """Return the score of a task, or None if no item has a known right answer."""
    known = _known(marks)
    return _value(_measure(known, statistic)) if known else None


def interval(marks: Marks, statistic: str) -> tuple[float, float] | None:
    """Return the bootstrap interval of the score, or None if no item has a known right answer."""
    known = _known(marks)
    return _ends(_resampled(_measure(known, statistic))) if known else None


def standard_error(marks: Marks, statistic: str) -> float | None:
    """Return the standard error of the score, or None if fewer than two items have a known right answer.

    For a mean it is computed from the variance within the groups, for other statistics from the resamples.
    """
    known = _known(marks)
    if len(known) < 2:
        return None
    measure = _measure(known, statistic)
    return measure.standard_error() if isinstance(measure, Mean) else float(_resampled(measure).std(ddof=1))


def paired_difference(marks: Marks, baseline: Marks, statistic: str) -> tuple[float, tuple[float, float]] | None:
    """Return the score minus that of `baseline`, and its interval over resamples of the items that both have.

    The groups are those of `marks`. None if they have no item in common.
    """
    ours, theirs = _common(marks, baseline)
    if not ours:
        return None
    difference = Difference(_measure(ours, statistic), MEASURES[statistic](theirs, _groups(ours)))
    return _value(difference), _ends(_resampled(difference))


def accuracy(right: Sequence[float]) -> dict[str, float | None]:
    """Return {value, standard_error} of the share of right answers, from 0 or 1 for each item, regardless of groups."""
    return {
        "value": math.fsum(right) / len(right),
        "standard_error": standard_error([{"score": each} for each in right], MEAN),
    }


def compared_parts(marks: Mapping[str, Marks]) -> dict[str, list[dict[str, Any]]]:
    """Return the marks of each task with only the keys in COMPARED."""
    return {
        name: [{key: mark[key] for key in COMPARED if key in mark} for mark in each] for name, each in marks.items()
    }


def groups_that_differ(marks: Marks, baseline: Marks) -> dict[str, int]:
    """Return in how many groups more items are better than in `baseline` than are worse, beyond luck, and the reverse.

    "Beyond luck" is a two-sided sign test at 5 % in each group separately, so luck alone makes up to 5 % of the groups differ.

    Returns {"groups", "better", "worse"}: numbers of groups.
    """
    signs: dict[Group, Counter[int]] = {}
    ours, theirs = _common(marks, baseline)
    for group, first, second in zip(_groups(ours), ours, theirs, strict=True):
        sign = (first["score"] > second["score"]) - (first["score"] < second["score"])
        signs.setdefault(group, Counter())[sign] += 1
    beyond = [counts for counts in signs.values() if sign_test(counts[1], counts[-1]) <= 1 - COVERAGE]
    better = sum(counts[1] > counts[-1] for counts in beyond)
    return {"groups": len(signs), "better": better, "worse": len(beyond) - better}


def sign_test(better: int, worse: int) -> float:
    """Return the p-value of the two-sided sign test: `better` of `better + worse` flips of a fair coin; ties are left out."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


class Measure(Protocol):
    """A statistic of marks as a function of sums over items, so that it can be computed for many resamples at once.

    Attributes:
        groups: The group of each item.
        outcomes: What the statistic needs of each item.
    """

    groups: Sequence[Group]
    outcomes: Sequence[Any]

    def features(self, outcomes: Sequence[Any]) -> np.ndarray:
        """Return what items with these outcomes add to the sums, float64 (len(outcomes), F)."""
        ...

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Return the statistic (R,) of sums over items (R, F)."""
        ...


class Mean:
    """The mean over supergroups of the mean over their groups of the mean score of a group's items."""

    def __init__(self, marks: Marks, groups: Sequence[Group]) -> None:
        self.groups = groups
        items = Counter(groups)
        members = Counter(supergroup for supergroup, _ in items)
        weights = {group: 1 / (len(members) * members[group[0]] * n) for group, n in items.items()}  # of an item
        self.outcomes: Sequence[Any] = [
            weights[group] * mark["score"] for group, mark in zip(groups, marks, strict=True)
        ]

    def features(self, outcomes: Sequence[float]) -> np.ndarray:
        """See `Measure`; the only sum is the statistic."""
        return np.asarray(outcomes)[:, None]

    def value(self, sums: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        return sums[:, 0]

    def standard_error(self) -> float:
        """Return sqrt(sum over groups of n s^2), with the sample variance s^2 of the weighted scores of n items."""
        variance = 0.0
        for outcomes, counts in _counted(self):
            n, mean = counts.sum(), np.average(outcomes, weights=counts)
            variance += n / max(1, n - 1) * (counts * (np.asarray(outcomes) - mean) ** 2).sum()
        return math.sqrt(variance)


class MacroF1:
    """The mean over labels of F1 = 2 TP / (2 TP + FP + FN).

    The labels are those of the items. An answer outside them is wrong and has no F1. A label that a resample has in
    neither items nor answers is left out.
    """

    def __init__(self, marks: Marks, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.outcomes: Sequence[Any] = [(str(mark["gold"]), str(mark["answer"])) for mark in marks]
        self.labels = np.asarray(sorted({gold for gold, _ in self.outcomes}))

    def features(self, outcomes: Sequence[tuple[str, str]]) -> np.ndarray:
        """See `Measure`; the sums are, for each label, TP and 2 TP + FP + FN (how often it is the label or the answer)."""
        gold, answer = np.asarray(outcomes).T[..., None] == self.labels  # (items, labels) each
        return np.hstack([gold & answer, gold.astype(np.float64) + answer])

    def value(self, sums: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        right, total = np.hsplit(sums, 2)
        occurs = total > 0
        return (2 * right / np.where(occurs, total, 1)).sum(axis=1) / occurs.sum(axis=1)


class Difference:
    """A statistic of some marks minus that of others of the same items, in the groups of the first."""

    def __init__(self, first: Measure, second: Measure) -> None:
        self.first, self.second = first, second
        self.groups = first.groups
        self.outcomes: Sequence[Any] = list(zip(first.outcomes, second.outcomes, strict=True))

    def features(self, outcomes: Sequence[tuple[Any, Any]]) -> np.ndarray:
        """See `Measure`; the sums of both, side by side."""
        first, second = zip(*outcomes, strict=True)
        return np.hstack([self.first.features(first), self.second.features(second)])

    def value(self, sums: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        width = self.first.features(self.first.outcomes[:1]).shape[1]
        return self.first.value(sums[:, :width]) - self.second.value(sums[:, width:])


MEASURES: dict[str, type[Mean] | type[MacroF1]] = {MEAN: Mean, MACRO_F1: MacroF1}


def _known(marks: Marks) -> Marks:
    """The marks of items with a known right answer."""
    return [mark for mark in marks if mark.get("score") is not None]


def _common(marks: Marks, baseline: Marks) -> tuple[Marks, Marks]:
    """The marks of the items that both have, in the same order."""
    theirs = {mark["id"]: mark for mark in _known(baseline)}
    ours = [mark for mark in _known(marks) if mark["id"] in theirs]
    return ours, [theirs[mark["id"]] for mark in ours]


def _groups(marks: Marks) -> list[Group]:
    return [(mark.get("supergroup"), mark.get("group")) for mark in marks]


def _measure(marks: Marks, statistic: str) -> Mean | MacroF1:
    return MEASURES[statistic](marks, _groups(marks))


def _counted(measure: Measure) -> Iterator[tuple[Sequence[Any], np.ndarray]]:
    """Yield the outcomes of each group and their counts; groups of one item and equal weight are taken together."""
    sizes = Counter(measure.groups)
    members = Counter(supergroup for supergroup, _ in sizes)
    groups: dict[Group | int, Counter[Any]] = {}
    for group, outcome in zip(measure.groups, measure.outcomes, strict=True):
        groups.setdefault(group if sizes[group] > 1 else members[group[0]], Counter())[outcome] += 1
    for counts in groups.values():
        yield list(counts), np.asarray(list(counts.values()))


def _value(measure: Measure) -> float:
    """The statistic of the items themselves."""
    sums = sum(counts @ measure.features(outcomes) for outcomes, counts in _counted(measure))
    return float(measure.value(np.asarray(sums)[None])[0])


def _resampled(measure: Measure) -> np.ndarray:
    """The statistic (RESAMPLES,) of items drawn with replacement within each group."""
    generator = np.random.default_rng(SEED)
    sums: Any = 0
    for outcomes, counts in _counted(measure):
        features, n = measure.features(outcomes), counts.sum()
        n_drawn = max(1, n - 1)
        rows = max(1, MAX_DRAWN // len(counts))
        sizes = [min(rows, RESAMPLES - begin) for begin in range(0, RESAMPLES, rows)]
        drawn = np.vstack([generator.multinomial(n_drawn, counts / n, size=size) @ features for size in sizes])
        sums = sums + n / n_drawn * drawn
    return measure.value(sums)


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return float(low), float(high)
