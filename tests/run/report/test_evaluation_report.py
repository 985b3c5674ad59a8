"""The page of an evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from run.report.dot_plot import Dot, dot_plot
from run.report.evaluation_report import write_evaluation_report
from tests.run.report.test_run_report import HOSTILE, Page

LABELS = ("chanya", "hasi")
EVALUATION: dict[str, Any] = {
    "checkpoint": "outputs/small-1234",
    "note": "",
    "models": {"outputs/small-1234": {"parameters": 4_123_456}},
    "options": {"limit": None, "fraction": 0.1, "skip": ["arc_easy"]},
    "warnings": ["an answers file has an unreadable line"],
    "tasks": {
        "pairs": {
            "kind": "minimal_pairs", "items": 3, "score": 0.5, "interval": [0.2, 0.8], "chance": 0.5, "ties": 1,
            "by_paradigm": {f"paradigm {i}": {"items": 1, "score": i / 20, "margin": -0.5} for i in range(20)},
            "warnings": ["the tokenizer does not know some of the text"],
        },
        "mood": {
            "kind": "classify", "items": 3, "score": 0.4, "interval": [0.1, 0.7], "chance": 0.5,
            "skipped": 0, "cut": 7, "labels": {"hasi": "hasi"}, "outside": {"gold": 0, "answers": 0},
            "majority": {"label": "hasi", "accuracy": 0.625}, "weighted_f1": 0.45,
            "accuracy": {"sum": {"value": 0.4, "standard_error": 0.05}, "pmi": {"value": 0.6, "standard_error": 0.05}},
            "by_label": {label: {"precision": 0.25, "recall": 0.75, "f1": 0.375, "support": 2} for label in LABELS},
            "confusion": {"gold": list(LABELS), "answers": [*LABELS, "outside"], "counts": [[3, 0, 1], [2, 1234, 0]]},
        },
        "summaries": {"kind": "summarise", "items": 2, "score": 0.3, "interval": None, "chance": None, "rougeL": 0.123},
    },
    "comparison": {
        "baseline": "first.json", "kept": False, "total": 1.853, "not_compared": ["summaries"], "unchanged": ["arc_easy"],
        "tasks": {"pairs": {"score": 0.5, "baseline": 0.585, "delta": -0.085, "interval": [-0.125, -0.045], "ratio": 0.853,
                            "overlay": 1.85312}},
    },
}  # fmt: skip


def pair(number: int, good: float, bad: float, text: str = "") -> dict[str, Any]:
    requests = [
        {"context": "", "continuation": f"Good sentence {number} {text}", "logprob": good},
        {"context": "", "continuation": f"Bad sentence {number}", "logprob": bad},
    ]
    right, answer = float(good > bad), "good" if good > bad else "bad"
    about = {"id": f"p:{number}", "group": "p", "gold": "good", "answer": answer, "logprobs": [good, bad]}
    return {**about, "score": right, "requests": requests}


MARKS: dict[str, list[dict[str, Any]]] = {
    "pairs": [pair(0, -20.0, -30.0, HOSTILE), pair(1, -40.0, -10.0), pair(2, -12.0, -10.0)],
    "mood": [
        {"id": "0", "text": "Habari " * 200, "gold": "hasi", "answer": "chanya", "score": 0.0,
         "logprobs": {"chanya": -1.0, "hasi": -6.5}},
        {"id": "1", "text": HOSTILE, "gold": "hasi", "answer": "hasi", "score": 1.0},
    ],
    "summaries": [{"id": "s", "prompt": "Long text", "gold": "the reference", "answer": HOSTILE, "score": 0.3}],
}  # fmt: skip
BASELINE = {"marks": {
    "pairs": [{"id": f"p:{i}", "score": float(i == 1), "gold": "good", "answer": "good" if i == 1 else "bad"} for i in range(3)],
    "summaries": [{"id": "s", "score": 0.1, "answer": "the earlier answer"}],
}}  # fmt: skip


def written(folder: Path, evaluation: dict[str, Any], baseline: Any = None) -> str:
    write_evaluation_report(folder / "report.html", evaluation, MARKS, baseline)
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("page"), EVALUATION, BASELINE)


def test_the_head_says_what_was_scored_and_how_it_compares(page: str) -> None:
    text = Page(page).text
    for expected in (
        "Model small-1234", "Parameters 4.12M", "Tasks 3", "Items 8", "Total (baseline 2) 1.85300",
        "Baseline: first.json.", "Not in the baseline: summaries.", "Only 10 % of the items of each task were scored.",
        "an answers file has an unreadable line", "the tokenizer does not know some of the text",
        "pairs 3 50.0% 20.0 to 80.0 50.0% 58.5% -8.5 -12.5 to -4.5 0.85300 1.85312",
        "Cut 7", "RougeL 12.3%", "label hasi accuracy 62.5%",
    ):  # fmt: skip
        assert expected in text, expected
    for needless in ("Skipped", "Labels", "Outside"):  # zeros, and labels that stand for themselves
        assert needless not in text, needless


def test_wrong_items_come_in_the_order_of_their_margins(page: str) -> None:
    """The margin of item 1 is -30 and that of item 2 is -2; item 0 is right. Of the classified text it is -6.5 + 1."""
    text = Page(page).text
    assert "Worst items: 2 of 2 that are wrong" in text
    worst = text[text.index("Worst items") : text.index("Against the baseline")]
    assert worst.index("Good sentence 1") < worst.index("Good sentence 2")
    assert "-40.0 Good sentence 1 -10.0 Bad sentence 1 good bad -30.0" in worst
    assert "hasi chanya -5.5" in text


def test_items_gained_and_lost_against_the_baseline(page: str) -> None:
    text = Page(page).text
    assert "Of 3 items that both answered: gained 1, lost 1." in text
    gained, lost = text.index("Gained: 1 of 1"), text.index("Lost: 1 of 1")
    assert gained < text.index("Good sentence 0", gained) < lost < text.index("Good sentence 1", lost)


def test_names_of_figures_are_written_as_usual(page: str) -> None:
    assert "Weighted F1" in page
    assert "Weighted f1" not in page


def test_the_cells_of_the_confusion_matrix_are_shaded_by_their_share_of_the_row(page: str) -> None:
    cells = re.findall(r'--share:(\d+)%" title="[^"]*">([\d,]+)<', page)
    assert cells == [("75", "3"), ("0", "0"), ("25", "1"), ("0", "2"), ("100", "1,234"), ("0", "0")]


def test_answers_stand_beside_references_and_those_of_the_baseline(page: str) -> None:
    row = page[page.index("Long text") :]
    assert (
        row.index("the reference") < row.index("&lt;script&gt;") < row.index("the earlier answer") < row.index("30.0%")
    )


def test_texts_are_escaped_and_long_ones_folded(page: str) -> None:
    parsed = Page(page)
    assert not parsed.tags & {"script", "link", "iframe", "img", "object"}
    assert all(address.startswith("#") for address in parsed.addresses)
    assert parsed.text.count("evil.example") >= 3
    assert re.search(r"<details><summary dir=\"auto\">Habari .*?…</summary>", page)
    assert "By paradigm: table of 20" in parsed.text


@pytest.mark.parametrize(
    "evaluation",
    [
        {},
        {"tasks": None, "comparison": 3, "models": []},
        {"checkpoint": None, "tasks": {"pairs": {}, "mood": None, "new": {"kind": "lm_eval", "score": "x", "by": {"a": None}}}},
        {"tasks": {"mood": {"kind": "classify", "interval": [None, 1], "confusion": {"gold": ["a"], "counts": [None]}}}},
        {"tasks": {"pairs": EVALUATION["tasks"]["pairs"]}, "comparison": {"baseline": "b.json", "kept": True}},
    ],
)  # fmt: skip
def test_what_is_missing_or_strange_is_left_out(evaluation: dict[str, Any], tmp_path: Path) -> None:
    assert Page(written(tmp_path, evaluation)).tags


def test_marks_without_their_keys_do_not_break_the_page(tmp_path: Path) -> None:
    marks: dict[str, Any] = {
        "pairs": [{"score": 0.0}, {"id": 1, "score": 0.0, "logprobs": "x"}, 7],
        "mood": [{"id": "a", "gold": "b", "score": 0.0, "logprobs": {"b": None}}],
        "summaries": [{}],
    }
    write_evaluation_report(tmp_path / "a.html", EVALUATION, marks, {"marks": {"pairs": [{}, None]}})
    assert "Worst items: 2 of 2" in (tmp_path / "a.html").read_text()


def test_a_choice_given_as_an_index_is_shown_as_its_text(tmp_path: Path) -> None:
    requests = [{"context": "Sky?", "continuation": f" {word}", "logprob": -1.0} for word in ("green", "blue", "red")]
    mark = {
        "id": "q",
        "gold": 1,
        "answer": 0,
        "score": 0.0,
        "logprobs": [-1.0, -3.0, -9.0],
        "requests": [*requests, *requests],
    }
    evaluation = {"tasks": {"quiz": {"kind": "multiple_choice", "score": 0.0}}}
    write_evaluation_report(tmp_path / "a.html", evaluation, {"quiz": [mark]})
    text = Page((tmp_path / "a.html").read_text()).text
    assert "Sky? -1.0 green -1.0 blue -1.0 red blue green -2.0" in text


def test_a_label_of_a_plot_is_text_and_never_a_formula() -> None:
    svg = dot_plot("Score", [Dot("$\\frac{$ 中文 <b>", 0.5, (0.4, 0.6), 0.25, 0.3), Dot("x" * 200, 0.7)]).svg
    assert "$\\frac{$ 中文 &lt;b&gt;" in svg
    assert "x" * 100 not in svg
