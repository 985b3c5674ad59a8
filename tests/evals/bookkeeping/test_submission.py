"""Tests of submissions: what is written, read back, and scored without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import MachineError, UserError
from evals.bookkeeping.submission import (
    competition_rows,
    marks_of_submission,
    read_answers,
    refuse_incomplete,
    write_submission,
)
from evals.tasks.registry import open_tasks
from evals.tasks.task import TaskOptions

CHOICES = [{"choice_id": number, "text": text} for number, text in enumerate("甲乙丙丁戊", 1)]
ROWS: list[dict[str, Any]] = [
    {"id": 0, "task_type": "multiple_choice", "text": "何?", "choices": CHOICES, "answer": 2, "note": "kept"},
    {"id": 1, "task_type": "multiple_choice", "text": "誰?", "choices": CHOICES, "answer": None},
    {"answer": "nacht", "text": "記事", "task_type": "summarization", "id": "s1"},
    {"id": "g1", "task_type": "generation", "text": "書いて", "answer": None},
]
ANSWERS: dict[str, int | str] = {"0": 2, "1": 5, "s1": "night", "g1": "昔々\n「雨」"}


@pytest.fixture
def tasks(tmp_path: Path) -> list[Any]:
    (tmp_path / "items.json").write_text(json.dumps(ROWS))
    return open_tasks("competition", TaskOptions("competition", path=str(tmp_path / "items.json")))


def test_a_submission_is_the_file_with_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "submission.json"
    write_submission(path, ROWS, ANSWERS)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == [{**row, "answer": ANSWERS[str(row["id"])]} for row in ROWS]
    assert [list(row) for row in written] == [list(row) for row in ROWS]
    assert "昔々\\n「雨」" in path.read_text(encoding="utf-8")  # Japanese can be read
    assert [each.name for each in path.parent.iterdir()] == ["submission.json"]
    assert read_answers(path, ROWS) == ANSWERS


def test_a_submission_needs_all_answers(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write_submission(tmp_path / "s.json", ROWS, {"0": 2, "g1": "x"})
    (message,) = caught.value.messages
    assert message.startswith(
        f"submission={tmp_path}/s.json: 2 of {len(ROWS)} items have no answer, e.g. item 1; a submission"
    )
    assert not (tmp_path / "s.json").exists()
    refuse_incomplete(tmp_path / "s.json", ROWS, {"0", "1", "s1", "g1", "more"})


def test_a_disk_that_refuses_is_no_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"cannot be written .* the answers are kept"):
        write_submission(tmp_path / "file" / "s.json", ROWS, ANSWERS)


def test_a_submission_is_scored_without_a_model(tmp_path: Path, tasks: list[Any]) -> None:
    path = tmp_path / "submission.json"
    write_submission(path, competition_rows(tasks, "submission"), ANSWERS)
    marks = marks_of_submission(tasks, path)
    assert {name: [mark["score"] for mark in its] for name, its in marks.items()} == {
        "multiple_choice": [1.0, None],
        "summarization": [0.25],  # one of four bigrams each
        "generation": [None],
    }
    assert [(mark["id"], mark["answer"]) for its in marks.values() for mark in its] == list(ANSWERS.items())
    quiz, summaries, _ = tasks
    assert quiz.figures(marks["multiple_choice"])["right"] == 1
    assert summaries.figures(marks["summarization"])["sum"] == 0.25
    assert summaries.figures(marks["summarization"])["tokens"] is None


def edited(index: int, **changed: Any) -> list[Any]:
    entries = [{**row, "answer": ANSWERS[str(row["id"])]} for row in ROWS]
    entries[index] |= changed
    return entries


@pytest.mark.parametrize(
    ("entries", "messages"),
    [
        (edited(0)[:3], ["item 'g1' is missing"]),
        ([*edited(0), {**edited(0)[0], "id": 99}], ["item 99: the competition's file has no such item"]),
        ([*edited(0), edited(0)[0]], ["item 0: this id occurs 2 times, but ids must be unique"] * 2),
        (edited(0, answer="2"), ["item 0: answer is '2'; allowed: the number of a choice, 1 to 5"]),
        (edited(0, answer=6), ["item 0: answer is 6; allowed: the number of a choice, 1 to 5"]),
        (edited(0, answer=None), ["item 0: answer is None; allowed: the number of a choice, 1 to 5"]),
        (edited(2, answer=1), ["item 's1': answer is 1, not a text"]),
        (edited(3, answer=None), ["item 'g1': answer is None, not a text"]),
        (
            edited(2, task_type="generation"),
            ["item 's1': task_type is 'generation', but that of the item is 'summarization'"],
        ),
        ([*edited(0), 5], ["entry 5: not an object"]),
        ([*edited(0), {"answer": 1}], ["entry 5: no key id and no key task_type"]),
        (edited(1, id=None), ["entry 2: the competition's file has no such item", "item 1 is missing"]),
    ],
)
def test_submissions_that_do_not_fit_the_items_are_refused(tmp_path: Path, entries: Any, messages: list[str]) -> None:
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError) as caught:
        read_answers(path, ROWS)
    assert list(caught.value.messages) == [f"{path}: {message}" for message in messages]


def test_an_empty_text_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    write_submission(path, ROWS, {**ANSWERS, "s1": ""})
    assert read_answers(path, ROWS)["s1"] == ""


def test_tasks_of_no_competition_have_no_submission(tmp_path: Path, tasks: list[Any]) -> None:
    (tmp_path / "other.json").write_text(json.dumps(ROWS))
    others = open_tasks("competition", TaskOptions("competition", path=str(tmp_path / "other.json")))
    with pytest.raises(UserError, match=r"answers needs the tasks of one competition's file, but none was given"):
        marks_of_submission([], tmp_path / "submission.json")
    with pytest.raises(UserError, match=r"submission needs .* but they are from 2 files"):
        competition_rows([*tasks, *others], "submission")
