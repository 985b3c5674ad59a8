"""The noise of a metric: its variation between runs that differ only in their seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def squares_within(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Return the sum of squared deviations from the mean of each group, and its degrees of freedom, over all groups.

    sqrt(squares / freedom) is the pooled standard deviation; a group of one value adds nothing to either.
    """
    squares, freedom = 0.0, 0
    for values in groups:
        mean = sum(values) / len(values)
        squares += sum((value - mean) ** 2 for value in values)
        freedom += len(values) - 1
    return squares, freedom
