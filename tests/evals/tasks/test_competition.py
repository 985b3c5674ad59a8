"""Tests of the competition's file: its three tasks, and what is refused in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from evals.scoring import Score
from evals.tasks.competition import load_competition
from evals.tasks.task import Generated, TaskOptions


def question(
    own: Any, answer: Any = 1, texts: tuple[str, ...] = ("東京", "大阪", "京都", "奈良", "神戸")
) -> dict[str, Any]:
    choices = [{"choice_id": number, "text": text} for number, text in enumerate(texts, 1)]
    return {"id": own, "task_type": "multiple_choice", "text": "日本の首都は?", "choices": choices, "answer": answer}


def summary(own: Any, answer: Any = "雨が降る。", **changed: Any) -> dict[str, Any]:
    return {"id": own, "task_type": "summarization", "text": "長い記事。", "answer": answer, **changed}


def free(own: Any, answer: Any = None) -> dict[str, Any]:
    return {"id": own, "task_type": "generation", "text": "物語を書いて。", "answer": answer}


def saved(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "items.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def load(tmp_path: Path, rows: Any, name: str = "competition", **changed: Any) -> list[Any]:
    return load_competition(name, TaskOptions("competition", path=saved(tmp_path, rows), **changed))


def scores(*logprobs: float) -> list[Score]:
    return [Score(logprob, 2, 6, False) for logprob in logprobs]


def test_a_file_gives_a_task_for_each_type(tmp_path: Path) -> None:
    quiz, summaries, texts = load(tmp_path, [free(2), question(0), summary("s1", choices=[]), question(5, None)])
    assert [task.name for task in (quiz, summaries, texts)] == ["multiple_choice", "summarization", "generation"]
    assert [[item.id for item in task.items] for task in (quiz, summaries, texts)] == [["0", "5"], ["s1"], ["2"]]
    assert [request.continuation for request in quiz.items[0].requests] == [" 東京", " 大阪", " 京都", " 奈良", " 神戸"]
    assert {request.context for request in quiz.items[0].requests} == {"日本の首都は?"}
    assert (quiz.chance, summaries.items[0].prompt, texts.items[0].prompt) == (
        0.2,
        "長い記事。\nTL;DR:",
        "物語を書いて。",
    )
    assert [task.name for task in load(tmp_path, [summary(1)])] == ["summarization"]


def test_a_task_named_by_a_type_has_its_items_and_options(tmp_path: Path) -> None:
    rows = [question(0), summary(1), free(2)]
    (task,) = load(tmp_path, rows, "summarization", template=r"{text}\n要約:", stop=(r"\n",))
    assert (task.name, task.items[0].prompt, task.options.stop) == ("summarization", "長い記事。\n要約:", ("\n",))
    with pytest.raises(UserError, match=r"no item has the task_type generation; leave generation out of tasks="):
        load(tmp_path, rows[:2], "generation")


def test_answers_of_the_quiz_are_choice_ids(tmp_path: Path) -> None:
    same = ("a", "b", "b", "c", "d")
    (quiz,) = load(tmp_path, [question(0, 3), question(1, None), question(2, 2, same), question(3, 3, same)])
    answers = [scores(-5, -4, -1, -3, -2), scores(-1, -2, -3, -4, -5), scores(-9, -1, -1.1, -9, -9), scores(*[-2] * 5)]
    marks = [quiz.mark(item, answer) for item, answer in zip(quiz.items, answers, strict=True)]
    assert [(mark["gold"], mark["answer"], mark["score"]) for mark in marks] == [
        (3, 3, 1.0),
        (None, 1, None),
        (2, 2, 1.0),
        (3, 1, 0.0),  # all are equally likely: the lowest id
    ]
    figures = quiz.figures(marks)
    assert (figures["right"], figures["identical"], figures["ties"], figures["without_answer"]) == (2, 2, 2, 1)
    judged = [quiz.judge(item, mark["answer"]) for item, mark in zip(quiz.items, marks, strict=True)]
    assert all(
        mark[key] == value for mark, shorter in zip(marks, judged, strict=True) for key, value in shorter.items()
    )
    assert quiz.figures(judged) == {"right": 2, "identical": 2, "without_answer": 1}


def test_the_quiz_is_scored_as_multiple_choice_is(tmp_path: Path) -> None:
    (quiz,) = load(tmp_path, [question(0)], score="letter", template="質問: {text}\n{choices}\n答え:")
    assert [request.continuation for request in quiz.items[0].requests] == [" A", " B", " C", " D", " E"]
    assert quiz.items[0].requests[0].context.startswith("質問: 日本の首都は?\nA. 東京\nB. 大阪")
    with pytest.raises(UserError, match=r"task.score=generate does not choose among choices; allowed: sum"):
        load(tmp_path, [question(0)], score="generate")


def test_texts_without_reference_are_written_out(tmp_path: Path) -> None:
    summaries, texts = load(tmp_path, [summary(0), summary(1, None), free(2), free(3, "はい")])
    assert [summaries.mark(item, Generated("雨が降る。 ", 5))["score"] for item in summaries.items] == [1.0, None]
    assert [texts.mark(item, Generated(" はい", 2))["score"] for item in texts.items] == [None, 1.0]


INVALID = [
    ({"id": 0}, r"item 0: no key task_type and no key text and no key answer; its keys are id"),
    (
        {key: value for key, value in free(1).items() if key != "answer"},
        "item 1: no key answer; .* write null where it is",
    ),
    ({key: value for key, value in free(1).items() if key != "id"}, "entry 1: no key id"),
    (free(None), "entry 1: id is None; write a whole number or a text"),
    (free(True), "item True: id is True"),
    (free(1.5), "item 1.5: id is 1.5"),
    (free(""), "item '': id is ''"),
    ("text", "entry 1: 'text' is not an object"),
    (
        {**free(1), "task_type": "quiz"},
        "item 1: task_type is 'quiz'; allowed: multiple_choice, summarization, generation",
    ),
    ({**free(1), "task_type": ["generation"]}, r"item 1: task_type is \['generation'\]"),
    ({**free(1), "text": " "}, "item 1: text is empty"),
    ({**free(1), "text": 3}, "item 1: text is 3, not a text"),
    ({**free(1), "text": "\ud83d"}, r"item 1: text has half a surrogate pair, '\\ud83d'"),
    (question(1, 0), "item 1: answer is 0; allowed: the number of a choice, 1 to 5"),
    (question(1, 6), "item 1: answer is 6;"),
    (question(1, "1"), "item 1: answer is '1';"),
    (question(1, True), "item 1: answer is True;"),
    (question(1, 1.0), "item 1: answer is 1.0;"),
    (question(1, texts=("a", "b", "c", "d")), "item 1: 4 choices, but most questions of the file have 5"),
    (question(1, texts=tuple("abcdef")), "item 1: 6 choices, but most questions of the file have 5"),
    (question(1, texts=("a",)), "item 1: 1 choices; allowed: 2 to 100"),
    (question(1, texts=("a", "", "c", "d", "e")), "item 1: the text of choice 2 is empty"),
    ({**question(1), "choices": None}, "item 1: choices is None; a question has a list"),
    ({**question(1), "choices": ["a"] * 5}, "item 1: choice 1 is 'a', not an object with choice_id and text"),
    (
        {**question(1), "choices": [{"choice_id": number, "text": "a"} for number in range(5)]},
        "item 1: the choice_id of choice 1 is 0; they count from 1",
    ),
    (summary(1, ""), "item 1: answer is empty"),
    (summary(1, 3), "item 1: answer is 3, not a text"),
    (
        summary(1, choices=question(0)["choices"]),
        r"item 1: choices is .*, but a summarization has none; leave them out",
    ),
]


@pytest.mark.parametrize(("row", "message"), INVALID)
def test_invalid_items_are_named_by_file_and_id(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps([row, question(90), question(91), summary(92)]))
    with pytest.raises(UserError, match=f"^{path}: {message}") as caught:
        load_competition("competition", TaskOptions("competition", path=str(path)))
    assert len(caught.value.messages) == 1


def test_all_problems_are_shown_at_once_ten_at_most(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, [free("same"), free("same"), free(1), free("1"), *(question(i, 9) for i in range(10, 20))])
    messages = caught.value.messages
    assert [": item 'same': this id occurs 2 times" in message for message in messages[:2]] == [True, False]
    assert ": item 1: this id occurs 2 times" in messages[1]  # 1 and "1" would have the same answer
    assert (len(messages), messages[-1]) == (11, "... and 3 more")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": 1}', r"holds \{'id': 1\}, not a list; write a JSON list"),
        (b"[]", "holds an empty list"),
        (b"[{]", r"not valid JSON \("),
        (b"[" * 100_000, r"not valid JSON \(it is nested too deep"),
        ('[{"text": "é"}]'.encode("latin-1"), "not valid UTF-8 at byte 11; convert it"),
    ],
)
def test_files_that_hold_no_items_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "items.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_competition("competition", TaskOptions("competition", path=str(path)))
    assert str(path) in str(caught.value)


def test_skipping_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a submission needs every item"):
        load(tmp_path, [question(0)], bad_items="skip")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"missing.json cannot be read \(No such file or directory\); correct task.path"
    ):
        load_competition("competition", TaskOptions("competition", path=str(tmp_path / "missing.json")))
    with pytest.raises(UserError, match=r"tasks=competition needs task.path=FILE"):
        load_competition("competition", TaskOptions("competition"))


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps([free(1)]), encoding="utf-8-sig")
    assert len(load_competition("competition", TaskOptions("competition", path=str(path)))) == 1
