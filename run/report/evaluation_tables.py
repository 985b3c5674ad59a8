"""The console output of an evaluation of tasks; evals/evaluation.py describes its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.format import format_count, format_seconds
from run.report.console import Console

# Figures of a task that have a column of the table, or are not for people.
IN_TABLE = (
    "kind", "items", "score", "interval", "chance", "statistic", "seconds", "computed", "available", "options", "checkpoint",
    "size_adjusted", "warnings", "standard_error",
)  # fmt: skip
# Counts of what can go wrong, which are shown only if it did.
UNLESS_ZERO = (
    "cut", "items_cut", "unknown", "items_unknown", "skipped", "identical", "empty", "without_answer", "without_reference",
)  # fmt: skip
MOST_PARTS = 16  # entries of a figure with parts that are shown; BLiMP has 12 phenomena


def show_tasks(console: Console, evaluation: Mapping[str, Any]) -> None:
    """Print a table of the tasks, the figures of each kind, and the comparison with a baseline."""
    tasks = evaluation["tasks"]
    adjusted = any("size_adjusted" in figures for figures in tasks.values())
    columns = ["task", "items", "score", "95 % interval", "chance", *(["size-adjusted"] if adjusted else []), "seconds"]
    rows = [_row(name, figures, adjusted) for name, figures in tasks.items()]
    console.table(evaluation["checkpoint"] or evaluation["answers"], columns, rows)
    for name, figures in tasks.items():
        for line in _details(figures):
            console.say(f"{name}: {line}")
    if evaluation["comparison"]:
        _show_comparison(console, evaluation["comparison"])
    for line in [
        *evaluation["warnings"],
        *(f"{name}: {line}" for name, each in tasks.items() for line in each.get("warnings", [])),
    ]:
        console.warn(line)


def _row(name: str, figures: Mapping[str, Any], adjusted: bool) -> tuple[str, ...]:
    items, available = f"{figures['items']:,}", figures["available"]
    return (
        name,
        items if available == figures["items"] else f"{items} of {available:,}",
        percent(figures["score"]),
        span(figures["interval"]),
        percent(figures["chance"]),
        *((percent(figures.get("size_adjusted")),) if adjusted else ()),
        format_seconds(figures["seconds"]) if figures["computed"] else "-",
    )


def _details(figures: Mapping[str, Any]) -> list[str]:
    """The figures of a kind: single ones in one line, those with a few parts in a line each; others are in the files."""
    own = {
        key: value
        for key, value in figures.items()
        if key not in IN_TABLE and value is not None and (value or key not in UNLESS_ZERO)
    }
    single = [f"{_words(key)} {_number(value)}" for key, value in own.items() if _is_single(value)]
    parts = [
        f"{_words(key)}: " + ", ".join(f"{part} {_number(value)}" for part, value in each.items() if value is not None)
        for key, each in own.items()
        if isinstance(each, dict) and 0 < len(each) <= MOST_PARTS and all(map(_is_single, each.values()))
    ]
    return [*([", ".join(single)] if single else []), *parts]


def _show_comparison(console: Console, comparison: Mapping[str, Any]) -> None:
    if comparison["kept"]:
        console.say(f"kept as the baseline: {comparison['baseline']}")
        return
    columns = ["task", "score", "baseline", "delta", "95 % interval", "score / baseline", "total with it alone"]
    rows = [
        (
            name,
            percent(each["score"]),
            percent(each["baseline"]),
            f"{each['delta']:+.2%}",
            span(each["interval"], "{:+.2%}"),
            _shown(each["ratio"], "{:.5f}"),
            _shown(each["overlay"], "{:.5f}"),
        )
        for name, each in comparison["tasks"].items()
    ]
    console.table(f"compared with {comparison['baseline']}", columns, rows)
    if comparison["total"] is not None:
        unchanged = comparison["unchanged"]
        note = f"; not evaluated here, so counted as 1 each: {', '.join(unchanged)}" if unchanged else ""
        console.say(f"total {comparison['total']:.5f} (baseline {len(rows) + len(unchanged)}){note}")
    if comparison["not_compared"]:
        console.say(f"not in the baseline: {', '.join(comparison['not_compared'])}")


def percent(share: float | None) -> str:
    """A share of 1 as a percentage, or a dash."""
    return _shown(share, "{:.2%}")


def span(ends: tuple[float, float] | None, form: str = "{:.2%}") -> str:
    """An interval of shares, or a dash."""
    return "-" if ends is None else f"{form.format(ends[0])} to {form.format(ends[1])}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _is_single(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return format_count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
