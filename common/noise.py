"""The noise of a figure: how far runs lie apart that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def squares_within(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Sum of the squared deviations of values from the mean of their group, and its degrees of freedom, over all groups.

    sqrt(squares / freedom) is the pooled standard deviation of one value; a group of one says nothing of it.
    """
    squares, freedom = 0.0, 0
    for values in groups:
        mean = sum(values) / len(values)
        squares += sum((value - mean) ** 2 for value in values)
        freedom += len(values) - 1
    return squares, freedom
