"""How a report writes its figures: with their error, their unit, beside what was planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from common.format import format_seconds
from common.json_io import is_number, number


def with_error(evaluation: Mapping[str, Any], key: str, digits: int, percent: bool = False) -> str:
    """A figure of an evaluation with its standard error, where one is known."""
    scale, unit = (100, " %") if percent else (1, "")
    value = evaluation[key]
    if not is_number(value):
        return "not finite"
    error = _standard_error(evaluation, key)
    shown = f"{value * scale:.{digits}f}"
    return shown + (f" ± {error * scale:.{digits}f}" if error is not None else "") + unit


def _standard_error(evaluation: Mapping[str, Any], key: str) -> float | None:
    """The recorded standard error; those of perplexity (e^loss) and bits per byte (~ loss) follow from the loss's."""
    if is_number(evaluation.get(f"{key}_se")):
        return float(evaluation[f"{key}_se"])
    loss, error = number(evaluation.get("loss"), 0), number(evaluation.get("loss_se"), math.nan)
    slope = {"perplexity": 1.0, "bits_per_byte": 1 / loss if loss else math.nan}.get(key, math.nan)
    derived = evaluation[key] * slope * error
    return derived if math.isfinite(derived) else None


def formatted(value: Any, form: Callable[[float], str]) -> str:
    """`value` as `form` writes it, or a dash where it is no number."""
    return form(value) if is_number(value) else "–"


def difference(planned: Any, reached: Any) -> str:
    """How far what was reached lies from what was planned, in percent of the plan."""
    if not (is_number(planned) and is_number(reached) and planned):
        return "–"
    return f"{reached / planned - 1:+.1%}"


def hours(hours: float) -> str:
    """Hours as people say them."""
    return format_seconds(hours * 3600) if hours else "0"


def scientific(value: float) -> str:
    """Three digits, and the power of ten of what is large."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share of 1 in percent."""
    return f"{share * 100:.3g} %"
