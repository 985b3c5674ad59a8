"""Generate docs/benchmarks.md from bench/results/benchmarks.json: python -m bench.docs.benchmarks_page

The text of the page is in benchmarks.md.j2. A test compares the page with the results.
"""

from __future__ import annotations

from typing import Any

from bench.common import ROOT
from bench.docs.performance_page import read_results, render
from common.format import format_count

DOC = ROOT / "docs" / "benchmarks.md"


def text(results: dict[str, dict[str, Any]]) -> str:
    """Return the page as Markdown, from the content of the result files by name."""
    budgets = results["benchmarks"]["budgets"]
    minutes = [f"{budget['minutes']:g}" for budget in budgets]
    listed = f"{', '.join(minutes[:-1])} and {minutes[-1]}"
    sentiment = results["sentiment"]
    parameters = next(iter(sentiment["models"].values()))["parameters"]
    return render(
        "benchmarks.md.j2",
        minutes=listed,
        limit=f"{results['benchmarks']['items']:,}",
        table=table(budgets),
        bits=bits_table(budgets),
        sentiment=sentiment,
        sentiment_parameters=format_count(parameters),
        sentiment_table=sentiment_table(sentiment["models"]),
    )


def sentiment_table(models: dict[str, dict[str, Any]]) -> str:
    """A row for each model and each way to ask it."""
    rows = [["trained on", "asked with", "macro F1", "more than the majority class"], ["---"] * 4]
    for name, model in models.items():
        for template, scores in model["asked"].items():
            figures = scores["pmi"]
            more, (low, high) = figures["more_than_majority"]
            f1, (least, most) = figures["macro_f1"], figures["interval"]
            rows.append(
                [name, template, f"{f1:.3f} ({least:.3f} to {most:.3f})", f"{more:+.3f} ({low:+.3f} to {high:+.3f})"]
            )
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def table(budgets: list[dict[str, Any]]) -> str:
    """A row for each task, and a column for each budget."""
    heads = [
        f"{budget['minutes']:g} min, {budget['flops']:.1e} FLOPs, {budget['bits_per_byte']:.2f} bits per byte"
        for budget in budgets
    ]
    rows = [["task", "items", "chance", *heads], ["---"] * (3 + len(heads))]
    for name, first in budgets[0]["tasks"].items():
        cells = [outcome(budget["tasks"][name]) for budget in budgets]
        rows.append([name, f"{first['items']:,}", f"{first['chance']:.0%}", *cells])
    return markdown(rows)


def bits_table(budgets: list[dict[str, Any]]) -> str:
    """A row for each task with a right answer in text: its bits per byte, untrained and trained, by budget."""
    rows = [["task", *(f"{budget['minutes']:g} min" for budget in budgets)], ["---"] * (1 + len(budgets))]
    for name, first in budgets[0]["tasks"].items():
        if "bits_per_byte" in first:
            tasks = [budget["tasks"][name] for budget in budgets]
            cells = [f"{task['untrained']['bits_per_byte']:.2f} to {task['bits_per_byte']:.2f}" for task in tasks]
            rows.append([name, *cells])
    return markdown(rows)


def outcome(task: dict[str, Any]) -> str:
    """The score of a model, and its difference to that of the untrained one, in percent; bold if it beats it, and guessing."""
    low, high = (100 * end for end in task["delta_interval"])
    cell = f"{100 * task['score']:.1f} ({100 * task['delta']:+.1f}, {low:+.1f} to {high:+.1f})"
    return f"**{cell}**" if low > 0 and task["interval"][0] > task["chance"] else cell


if __name__ == "__main__":
    DOC.write_text(text(read_results()))
