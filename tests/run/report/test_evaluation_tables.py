"""The console output of an evaluation of tasks."""

from __future__ import annotations

import io
from typing import Any

from evals.tasks.registry import KINDS
from run.report.console import Console
from run.report.evaluation_tables import DETAILS, show_tasks

COMMON = {
    "items": 100,
    "available": 748,
    "score": 0.2,
    "interval": [0.1, 0.3],
    "chance": 0.25,
    "computed": 100,
    "seconds": 2.0,
}
QUIZ = {
    "kind": "multiple_choice",
    "scored_by": "per_byte",
    "accuracy": {name: {"value": value, "standard_error": 0.1} for name, value in (("sum", 0.15), ("per_byte", 0.2))},
    "bits_per_byte": 3.19899,
    "groups": {f"a_long_name_of_a_file_{i}": {"items": 25, "score": i / 8} for i in range(4)},
    "ties": 0,
    "skipped": 3,
    "cut": 2628,
    "items_cut": 19,
}
SENTIMENT = {
    "kind": "classify",
    "scored_by": "sum",
    "accuracy": {"sum": {"value": 0.4, "standard_error": 0.1}},
    "macro_f1": {"sum": 0.2},
    "weighted_f1": 0.35,
    "majority": {"label": "neutral", "accuracy": 0.58667, "macro_f1": 0.24649},
    "by_label": {"neutral": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 60, "answers": 30}},
    "outside": {"gold": 0, "answers": 7},
}


def shown(comparison: dict[str, Any] | None = None, **tasks: dict[str, Any]) -> str:
    stream = io.StringIO()
    evaluation = {
        "tasks": {name: COMMON | figures for name, figures in tasks.items()},
        "checkpoint": "outputs/mine",
        "comparison": comparison,
        "warnings": [],
    }
    show_tasks(Console(stream=stream), evaluation)
    return stream.getvalue()


def test_the_figures_of_a_task_are_short_lines_under_its_name() -> None:
    text = shown(quiz=QUIZ, tweets=SENTIMENT)
    lines = text.splitlines()
    quiz = lines[lines.index("quiz") + 1 : lines.index("tweets")]
    assert quiz[0] == "  scored by per byte; by the others: sum 15.0%"
    assert quiz[1] == "  3.199 bits per byte of the right answers"
    assert "invalid items left out: 3" in text
    assert "2.63k tokens of 19 items were cut off" in text
    assert "ties" not in text  # there are none
    assert "always 'neutral': macro F1 24.6%, accuracy 58.7%" in text
    assert "neutral: 60 items, 30 answers, F1 33.3%, precision 50.0%, recall 25.0%" in text
    assert "answers without a label, counted as wrong: 7" in text
    assert max(map(len, quiz)) <= 80


def test_a_score_of_0_is_no_baseline() -> None:
    text = shown({"baseline": "first.json", "kept": True}, quiz=QUIZ | {"score": 0.0}, other=QUIZ)
    assert (
        "kept as the baseline: first.json\nwarning: the score of quiz is 0, so later scores cannot be divided" in text
    )
    assert "warning" not in shown({"baseline": "first.json", "kept": True}, quiz=QUIZ)


def test_every_kind_of_task_has_its_lines() -> None:
    assert DETAILS.keys() == KINDS.keys() - {"competition"}  # whose tasks are of three other kinds
