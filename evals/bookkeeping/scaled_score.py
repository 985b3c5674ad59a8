"""Scores in relation to the size of the model, as competitions for small models publish them."""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal


def scaled_score(score: float, parameters: int) -> float:
    """Return a score (0 to 1) in percent per million parameters, truncated to two decimals: 69.5 % and 125 M give 0.55.

    Published figures for models of the BabyLM challenge are truncated, not rounded. They show size more than skill, because
    guessing at minimal pairs gets 50 %: half as many parameters double it. `scaled_gain` shows what a model has learned.
    """
    return float(_per_million(score, parameters).quantize(Decimal("0.01"), ROUND_DOWN))


def scaled_gain(score: float, chance: float, parameters: int) -> float:
    """Return the points of percent by which a score exceeds that of guessing, per million parameters."""
    return float(_per_million(score, parameters) - _per_million(chance, parameters))


def size_adjusted(score: float | None, parameters: int, reference: float) -> float | None:
    """Return s (1 - r/2) with r = parameters / reference: (s + (1 - r) s) / 2, as in the Buzuzu-Mavi challenge of Zindi."""
    return None if score is None else score * (1 - parameters / reference / 2)


def _per_million(score: float, parameters: int) -> Decimal:
    """In decimal, and without the rounding errors of averages: in binary, 0.58 * 100 is less than 58."""
    return Decimal(repr(round(score, 12))) * 100 / (Decimal(parameters) / 1_000_000)
