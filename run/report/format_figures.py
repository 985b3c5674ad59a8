"""Formats the figures of a report: with standard error and unit, and relative to the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from common.format import format_seconds
from common.json_io import is_number, number


def with_error(evaluation: Mapping[str, Any], key: str, digits: int, percent: bool = False) -> str:
    """A figure of an evaluation with its standard error, if known."""
    scale, unit = (100, " %") if percent else (1, "")
    value = evaluation[key]
    if not is_number(value):
        return "not finite"
    error = _standard_error(evaluation, key)
    shown = f"{value * scale:.{digits}f}"
    return shown + (f" ± {error * scale:.{digits}f}" if error is not None else "") + unit


def _standard_error(evaluation: Mapping[str, Any], key: str) -> float | None:
    """The recorded standard error. For perplexity (e^loss) and bits per byte (proportional to loss) it follows from the loss."""
    if is_number(evaluation.get(f"{key}_se")):
        return float(evaluation[f"{key}_se"])
    loss, error = number(evaluation.get("loss"), 0), number(evaluation.get("loss_se"), math.nan)
    slope = {"perplexity": 1.0, "bits_per_byte": 1 / loss if loss else math.nan}.get(key, math.nan)
    derived = evaluation[key] * slope * error
    return derived if math.isfinite(derived) else None


def formatted(value: Any, form: Callable[[float], str]) -> str:
    """`value` formatted by `form`, or a dash if it is not a number."""
    return form(value) if is_number(value) else "–"


def difference(planned: Any, reached: Any) -> str:
    """The deviation from the plan, in percent of the planned value."""
    if not (is_number(planned) and is_number(reached) and planned):
        return "–"
    return f"{reached / planned - 1:+.1%}"


def hours(hours: float) -> str:
    """Hours as a duration, e.g. 3m00s."""
    return format_seconds(hours * 3600) if hours else "0"


def scientific(value: float) -> str:
    """Three significant digits, with an exponent for large values."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share of 1 as a percentage."""
    return f"{share * 100:.3g} %"
