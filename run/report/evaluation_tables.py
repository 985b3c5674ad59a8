"""The console output of an evaluation of tasks; evals/evaluation.py describes its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any

from common.format import format_count, format_seconds
from common.json_io import is_number
from run.report.console import LINE_WIDTH, Console

MOST_PARTS = 16  # parts of a task that are shown; BLiMP has 12 phenomena
# What can go wrong with items, which is shown only if it did.
TROUBLES = {
    "ties": "ties: {:,}",
    "identical": "items with identical choices: {:,}",
    "skipped": "invalid items left out: {:,}",
    "empty": "empty: {:,}",
    "contradictory": "items whose text has another label elsewhere: {:,}",
    "without_answer": "items without a known answer: {:,}",
    "without_reference": "items without a reference, not scored: {:,}",
}
UNLESS_ZERO = (*TROUBLES, "cut", "items_cut", "unknown", "items_unknown")  # counts that are shown unless they are 0


def show_tasks(console: Console, evaluation: Mapping[str, Any]) -> None:
    """Print a table of the tasks, the figures of each kind, and the comparison with a baseline."""
    tasks = evaluation["tasks"]
    adjusted = any("size_adjusted" in figures for figures in tasks.values())
    columns = ["task", "items", "score", "95 % interval", "chance", *(["size-adjusted"] if adjusted else []), "seconds"]
    rows = [_row(name, figures, adjusted) for name, figures in tasks.items()]
    console.table(evaluation["checkpoint"] or evaluation["answers"], columns, rows)
    for name, figures in tasks.items():
        console.heading(name)
        for line in filter(None, (*DETAILS[figures["kind"]](figures), *_troubles(figures))):
            console.say(fill(line, LINE_WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
    if evaluation["comparison"]:
        console.say("")
        _show_comparison(
            console, evaluation["comparison"], [name for name, each in tasks.items() if each["score"] == 0]
        )
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


def _minimal_pairs(figures: Mapping[str, Any]) -> Iterator[str]:
    averages = {f"over {part}s": figures[f"score_by_{part}"] for part in ("phenomenon", "paradigm")}
    yield f"average {_shares(averages)}".replace("phenomenons", "phenomena")
    yield (
        f"{figures['paradigms']} paradigms: {figures['above_chance']} above chance, {figures['below_chance']} below"
        " (sign test, 5 %)"
    )
    yield f"margin {figures['margin']:.3g} ± {_shown(figures['margin_standard_error'], '{:.2g}')} nats (good - bad)"
    if "scaled_score" in figures:
        yield f"scaled by millions of parameters: score {figures['scaled_score']}, gain {figures['scaled_gain']:.4g}"
    parts = figures["by_phenomenon"] or figures["by_paradigm"]
    if 1 < len(parts) <= MOST_PARTS:
        yield _shares({name: part["score"] for name, part in parts.items()})


def _multiple_choice(figures: Mapping[str, Any]) -> Iterator[str]:
    if "right" in figures:
        yield f"{figures['right']:,} of {figures['items']:,} right"
    if "scored_by" not in figures:
        return  # answers from a file
    accuracy = {name: each["value"] for name, each in figures["accuracy"].items()}
    yield from _scored_by(figures["scored_by"], accuracy)
    if figures["bits_per_byte"] is not None:
        yield f"{figures['bits_per_byte']:.3f} bits per byte of the right answers"
    if len(figures["groups"]) <= MOST_PARTS:
        yield _shares({name: group["score"] for name, group in figures["groups"].items()})


def _classify(figures: Mapping[str, Any]) -> Iterator[str]:
    by, majority = figures["scored_by"], figures["majority"]
    yield (
        f"macro F1 {figures['macro_f1'][by]:.1%}, weighted F1 {figures['weighted_f1']:.1%}, accuracy"
        f" {figures['accuracy'][by]['value']:.1%}"
    )
    yield (f"always {majority['label']!r}: macro F1 {majority['macro_f1']:.1%}, accuracy {majority['accuracy']:.1%}")
    yield from _scored_by(by, figures["macro_f1"])
    if len(figures["by_label"]) <= MOST_PARTS:
        for label, each in figures["by_label"].items():
            yield (
                f"{label}: {each['support']:,} items, {each['answers']:,} answers, F1 {each['f1']:.1%}, precision"
                f" {each['precision']:.1%}, recall {each['recall']:.1%}"
            )
    for what, words in (("gold", "items whose label is not one of the labels"), ("answers", "answers without a label")):
        if count := figures["outside"][what]:
            yield f"{words}, counted as wrong: {count:,}"


def _free_text(figures: Mapping[str, Any]) -> Iterator[str]:
    scored = figures["items"] - figures["without_reference"]
    if "right" in figures and scored:
        yield f"{figures['right']:,} of {scored:,} exactly right"
    if "sum" in figures:
        yield f"sum of the scores {figures['sum']:.4f}"
    if "rouge" in figures:
        yield f"ROUGE {figures['rouge']}"
    elif "rouge1" in figures:
        yield _shares({name: figures[name] for name in ("rouge1", "rouge2", "rougeL")})
    lengths = (
        (figures["answer_characters"], "characters, of references {:.0f}".format(figures["reference_characters"] or 0)),
        (figures["tokens"], "tokens"),
    )
    for length, unit in lengths:
        if length is not None:
            yield f"mean length of answers: {length:.0f} {unit}"


def _metrics(figures: Mapping[str, Any]) -> Iterator[str]:
    shown = (f"{name} {_shown(value, '{:.4g}')}" for name, value in figures["metrics"].items() if is_number(value))
    yield f"main metric {figures['main_metric']}; " + ", ".join(shown)


# The lines about a task, by its kind.
DETAILS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "minimal_pairs": _minimal_pairs,
    "multiple_choice": _multiple_choice,
    "classify": _classify,
    "summarise": _free_text,
    "generate": _free_text,
    "lm_eval": _metrics,
}


def _troubles(figures: Mapping[str, Any]) -> Iterator[str]:
    if counts := [words.format(figures[name]) for name, words in TROUBLES.items() if figures.get(name)]:
        yield "; ".join(counts)
    for name, words in (("cut", "longer than the window: {} tokens of {:,} items were cut off"),
                        ("unknown", "unknown to the tokenizer: {} tokens of {:,} items")):  # fmt: skip
        if figures.get(name):
            yield words.format(format_count(figures[name]), figures[f"items_{name}"])


def _show_comparison(console: Console, comparison: Mapping[str, Any], without_score: Sequence[str]) -> None:
    if comparison["kept"]:
        console.say(f"kept as the baseline: {comparison['baseline']}")
        if without_score:
            console.warn(
                f"the score of {', '.join(without_score)} is 0, so later scores cannot be divided by it, and a comparison with"
                " this baseline fails: keep another evaluation, or leave these tasks out of it with skip="
            )
        return
    columns = ["task", "score", "baseline", "delta", "95 % interval", "score / baseline", "total if only it changed"]
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


def _shares(parts: Mapping[str, float | None]) -> str:
    """The shares of 1 that are known, with their names."""
    return ", ".join(f"{_words(name)} {share:.1%}" for name, share in parts.items() if share is not None)


def _scored_by(by: str, scores: Mapping[str, float | None]) -> Iterator[str]:
    """The value of task.score that made the score, and what the score would be by the others."""
    others = _shares({name: score for name, score in scores.items() if name != by})
    yield f"scored by {_words(by)}" + (f"; by the others: {others}" if others else "")
