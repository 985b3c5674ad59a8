"""Tests of tasks that are answered in free text: what is read, and how answers are compared with references."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from evals.overlap import bigram_dice, rouge
from evals.tasks.registry import open_tasks
from evals.tasks.task import Generated, Task, TaskOptions


def load(tmp_path: Path, rows: Sequence[Any], kind: str = "generate", **changed: Any) -> Task:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return open_tasks("mine", TaskOptions(kind, path=str(path), **changed))[0]


def marks_of(task: Task, answers: Sequence[str]) -> list[dict[str, Any]]:
    return [task.mark(item, Generated(text, 3)) for item, text in zip(task.items, answers, strict=True)]


@pytest.mark.parametrize(
    ("answer", "reference", "dice"),
    [
        ("the cat", "the cat", 1.0),
        ("abc", "xyz", 0.0),
        ("a", "a", 0.0),  # one character has no pair
        ("", "abc", 0.0),
        ("aaaa", "aa", 1.0),  # repeated pairs count once
        ("abab", "ab", 2 / 3),  # {ab, ba} and {ab}
        ("night", "nacht", 0.25),  # {ni ig gh ht} and {na ac ch ht}
        ("今日は雨", "今日は晴れ", 4 / 7),  # {今日 日は は雨} and {今日 日は は晴 晴れ}
        ("a b", "a  b", 0.8),  # {"a ", " b"} and {"a ", "  ", " b"}
    ],
)
def test_dice_of_character_bigrams(answer: str, reference: str, dice: float) -> None:
    assert bigram_dice(answer, reference) == pytest.approx(dice, abs=1e-12)
    assert bigram_dice(reference, answer) == pytest.approx(dice, abs=1e-12)


def test_rouge_is_that_of_the_package_by_hand() -> None:
    pytest.importorskip("rouge_score")
    scores = rouge([("the cat sat", "The cat sat down."), ("no", "yes")])
    assert isinstance(scores, dict)
    # rouge1 and rougeL: 3 of 3 and 3 of 4 words; rouge2: 2 of 2 and 2 of 3 pairs; the second answer has none
    assert scores == pytest.approx({"rouge1": 6 / 7 / 2, "rouge2": 4 / 5 / 2, "rougeL": 6 / 7 / 2})


def test_rouge_says_why_it_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rouge([]) == "not computed: no item has a reference"
    assert "rouge-score keeps a-z and 0-9 only, 0% of" in str(rouge([("雨", "今日は雨")]))
    assert "too long" in str(rouge([("a " * 5000, "b " * 5000)]))
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    assert rouge([("a", "a")]) == "not computed: install the package rouge-score"


def test_answers_are_right_if_they_match_exactly(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "question": "2 + 2 =", "answer": 4},
        {"id": 7, "prompt": "Capital of France:", "reference": "Paris"},
        {"text": "Tell a story.", "answer": None},
        {"text": "Another one."},
    ]
    task = load(tmp_path, rows)
    assert [item.id for item in task.items] == ["x", "7", "2", "3"]
    assert [item.prompt for item in task.items] == ["2 + 2 =", "Capital of France:", "Tell a story.", "Another one."]
    marks = marks_of(task, [" 4\n", " paris", " Once.", ""])
    assert [mark["score"] for mark in marks] == [1.0, 0.0, None, None]
    assert [(mark["gold"], mark["answer"]) for mark in marks] == [
        ("4", "4"),
        ("Paris", "paris"),
        (None, "Once."),
        (None, ""),
    ]
    figures = task.figures(marks)
    assert (figures["right"], figures["without_reference"], figures["empty"], figures["tokens"]) == (1, 2, 1, 3)


def test_summaries_are_scored_by_dice_and_summed(tmp_path: Path) -> None:
    rows = [{"text": "Long.", "summary": "night"}, {"text": "Longer.", "summary": "abcd"}, {"text": "Unknown."}]
    task = load(tmp_path, rows, "summarise")
    assert task.items[0].prompt == "Long.\nTL;DR:"
    marks = marks_of(task, [" nacht ", "abcd", "anything"])
    assert [mark["score"] for mark in marks] == [0.25, 1.0, None]
    figures = task.figures(marks)
    assert (figures["sum"], figures["answer_characters"], figures["reference_characters"]) == (1.25, 4.5, 4.5)
    assert figures["without_reference"] == 1
    assert task.figures(marks[2:])["answer_characters"] is None


def test_prompts_that_were_cut_are_counted(tmp_path: Path) -> None:
    task = load(tmp_path, [{"text": "a"}, {"text": "b"}])
    marks = [task.mark(item, Generated("x", 1, cut)) for item, cut in zip(task.items, (5, 0), strict=True)]
    assert (task.figures(marks)["cut"], task.figures(marks)["items_cut"]) == (5, 1)


def test_templates_and_fields_can_be_named(tmp_path: Path) -> None:
    rows = [{"title": "News", "article": "It rains.", "highlights": "Rain."}]
    names = {"text_key": "article", "label_key": "highlights"}
    task = load(tmp_path, rows, "summarise", template=r"{title}: {text}\nSummary:", stop=(r"\n", "###"), **names)
    assert task.items[0].prompt == "News: It rains.\nSummary:"
    assert task.items[0].content["reference"] == "Rain."
    assert task.options.stop == ("\n", "###")


def test_tables_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('text,summary\n"a, b",c\nd,\n', encoding="utf-8")
    (task,) = open_tasks("mine", TaskOptions("summarise", path=str(path), template="{text}"))
    assert [(item.prompt, item.content["reference"]) for item in task.items] == [("a, b", "c"), ("d", None)]


def test_files_of_a_folder_keep_their_ids_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": 1, "text": "a"}\n')
    (task,) = open_tasks("mine", TaskOptions("generate", path=str(tmp_path)))
    assert [item.id for item in task.items] == ["one:1", "two:1"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"answer": "a"},
            r"items.jsonl:2: no field text or prompt or question; its fields are answer; set task.text_key",
        ),
        ({"text": 5}, r"items.jsonl:2: text is 5, not a text"),
        ({"text": " "}, r"items.jsonl:2: text is empty"),
        ({"text": "b", "answer": ["a"]}, r"items.jsonl:2: answer is \['a'\], not a text"),
        ({"text": "b", "answer": True}, r"items.jsonl:2: answer is True, not a text"),
        ({"text": "b", "id": None}, r"items.jsonl:2: id is None; write a text or a whole number"),
        ({"text": "b", "id": "0"}, r"items.jsonl:2: id '0' occurs 2 times, but ids must be unique"),
    ],
)
def test_invalid_items_are_refused_or_skipped(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows = [{"text": "a"}, row, {"text": "c"}]
    with pytest.raises(UserError, match=message):
        load(tmp_path, rows)
    task = load(tmp_path, rows, bad_items="skip")
    assert task.figures(marks_of(task, ["x"] * len(task.items)))["skipped"] == 3 - len(task.items) >= 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stop": ("x", "")}, "task.stop holds an empty text"),
        ({"text_key": "txt"}, r"task.text_key=txt: no item of .* has this field; its fields are text"),
        ({"label_key": "gold"}, "task.label_key=gold: no item"),
        ({"template": "{tex}"}, r"\{tex\} is not a field; allowed: .*; did you mean text"),
    ],
)
def test_options_that_do_not_fit_the_items_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, [{"text": "a"}], **changed)
    with pytest.raises(UserError, match=r"tasks=mine needs task.path=FILE"):
        open_tasks("mine", TaskOptions("generate"))
