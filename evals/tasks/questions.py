"""Questions with choices, in the shapes in which benchmarks publish them.

Each entry of `SHAPES` names the fields of a shape and a function that reads a row of it. Which choice is the right answer:

- A letter (A for the first choice), the label of a choice, and the text of a choice are taken as they are. What fits two choices
  is refused.
- A number is the index of the choice and counts from 0, as in the files of MMLU, HellaSwag and PIQA; in WinoGrande's `answer`
  from 1. In the fields `label` and `gold` it may be written as a text ("2"), which CSV files and some published ones do, unless
  a choice has this label. In the other fields a text of digits has to be the label or the text of a choice.
- null or an empty text: the answer is not known, as in published test sets. The question is answered, but not scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase as LETTERS
from typing import Any

from common.errors import UserError
from common.format import shortened
from evals.tasks.rows import Row, read_each

QUESTION, AS_IT_IS = "Question: {question}\nAnswer:", "{question}"
MOST_CHOICES = 100
INDEX_FIELDS = ("label", "gold")  # a number in them may be a text
PLAIN = str | int | float  # the types of further fields that a template may use


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        id: The field `id`, if the row has one.
        place: Its file and line, for messages.
        text: The question, or a beginning that the choices continue.
        choices: The texts of the answers, at least two.
        gold: Index of the right answer, or None if it is not known.
        template: The template for questions of this shape.
        blank: What is before and behind a blank in `text` that the choices fill; None for other shapes.
        fields: Further fields for templates.
    """

    id: str | None
    place: str
    text: str
    choices: tuple[str, ...]
    gold: int | None
    template: str = QUESTION
    blank: tuple[str, str] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """Rows with the same fields.

    Attributes:
        fields: For each field its possible names. A row has this shape if it has one of each.
        read: Returns the question in a row, given the names of its fields in the order of `fields`.
    """

    fields: tuple[tuple[str, ...], ...]
    read: Callable[..., Question]

    def names(self, row: Row) -> list[str] | None:
        """Return the names of the fields in `row`, or None if it does not have this shape."""
        found = [next((name for name in names if name in row.values), None) for names in self.fields]
        return None if None in found else [name for name in found if name is not None]

    def __str__(self) -> str:
        return "{" + ", ".join("|".join(names) for names in self.fields) + "}"


def read_questions(rows: Sequence[Row | UserError], bad_items: str) -> tuple[list[Question], int]:
    """Return the questions, and the number of invalid rows that were skipped.

    Raises UserError for rows of unknown shape and, unless bad_items=skip, with a line for each invalid row.
    """
    valid = [row for row in rows if isinstance(row, Row)]
    shape = next((each for row in valid for each in SHAPES if each.names(row) is not None), None)
    if valid and shape is None:
        known = ", ".join(map(str, SHAPES))
        raise UserError(f"{valid[0].place}: fields {valid[0].fields}; a question has one of the shapes {known}")
    shape = shape or SHAPES[0]  # without a valid row, each is refused before its shape matters
    _refuse_indices_from_one(valid, shape)
    return read_each(rows, lambda row: _question(row, shape), bad_items)


def _question(row: Row, shape: Shape) -> Question:
    """Read and check a row."""
    names = shape.names(row)
    if names is None:
        raise UserError(f"{_place(row)}: not of the shape {shape} of the items before; its fields are {row.fields}")
    question = shape.read(row, *names)
    if not question.text.strip():
        raise UserError(f"{_place(row)}: the question is empty")
    if not 2 <= len(question.choices) <= MOST_CHOICES:
        raise UserError(f"{_place(row)}: {len(question.choices)} choices; allowed: 2 to {MOST_CHOICES}")
    for number, choice in enumerate(question.choices, 1):
        if not choice.strip():
            raise UserError(f"{_place(row)}: choice {number} is empty")
    return question


def _refuse_indices_from_one(rows: Sequence[Row], shape: Shape) -> None:
    """Raise UserError if indices of right answers reach the number of choices and none is 0: then they count from 1."""
    if shape.read is not _list_of_choices:
        return
    found = []
    for row in rows:
        if names := shape.names(row):
            index, choices = _index(row.values[names[2]], names[2]), row.values[names[1]]
            if index is not None and isinstance(choices, list):
                found.append((index, len(choices), row, names[2]))
    if found and min(index for index, *_ in found) == 1:
        for index, n_choices, row, name in found:
            if index == n_choices:
                raise UserError(
                    f"{_place(row)}: {name} is {index} with {n_choices} choices, and no {name} is 0: they count from 1; write"
                    " indices from 0, letters, or the texts of the choices"
                )


def _list_of_choices(row: Row, question: str, choices: str, answer: str) -> Question:
    texts, labels = _choices(row, row.values[choices])
    template = QUESTION if question in ("question", "question_stem") else AS_IT_IS
    gold, fields = _gold(row, answer, texts, labels), _further(row, question, choices, answer)
    return Question(_id(row), row.place, _text(row, question), texts, gold, template, fields=fields)


def _nested(row: Row, question: str, answer: str) -> Question:
    """ARC, OpenBookQA and CommonsenseQA as their authors publish them."""
    inner = row.values[question]
    if not isinstance(inner, dict) or not {"stem", "choices"} <= inner.keys():
        raise UserError(f"{_place(row)}: {question} is {shortened(inner)}, not an object with stem and choices")
    flat = Row(row.place, {**row.values, "question": inner["stem"], "choices": inner["choices"]})
    return _list_of_choices(flat, "question", "choices", answer)


def _hellaswag(row: Row, activity: str, first: str, second: str, endings: str, label: str) -> Question:
    """HellaSwag, with the texts cleaned as lm-evaluation-harness does it (tasks/hellaswag/utils.py)."""
    texts, labels = _choices(row, row.values[endings])
    context = f"{_text(row, activity)}: {_text(row, first)} {_text(row, second).capitalize()}"
    choices = tuple(map(_without_brackets, texts))
    gold = _gold(row, label, texts, labels)
    return Question(_id(row), row.place, _without_brackets(context), choices, gold, AS_IT_IS)


def _without_brackets(text: str) -> str:
    """Remove the marks of WikiHow's texts."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _lettered(row: Row, question: str, first: str, second: str, answer: str) -> Question:
    """MMLU's CSV files: the choices are in the fields A, B, C, ..."""
    letters = [first, second]
    while len(letters) < len(LETTERS) and LETTERS[len(letters)] in row.values:
        letters.append(LETTERS[len(letters)])
    texts = tuple(_text(row, letter) for letter in letters)
    fields = _further(row, question, answer, *letters)
    return Question(_id(row), row.place, _text(row, question), texts, _gold(row, answer, texts, letters), fields=fields)


def _piqa(row: Row, goal: str, first: str, second: str, label: str) -> Question:
    texts = (_text(row, first), _text(row, second))
    return Question(_id(row), row.place, _text(row, goal), texts, _gold(row, label, texts), "Goal: {question}\nAnswer:")


def _winogrande(row: Row, sentence: str, first: str, second: str, answer: str) -> Question:
    """The choices fill a blank, and what follows it is scored ("partial evaluation", Trinh and Le 2018, arXiv:1806.02847).

    One space is put before what follows, also before "'s", as lm-evaluation-harness and OLMES do.
    """
    text, texts = _text(row, sentence), (_text(row, first), _text(row, second))
    before, blank, behind = text.partition("_")
    if not blank or "_" in behind or not behind.strip():
        raise UserError(f"{_place(row)}: {sentence} is {shortened(text)}; it needs one blank _ with text behind it")
    value = row.values[answer]
    if value not in (None, "", 1, 2, "1", "2") or isinstance(value, bool):
        raise UserError(f"{_place(row)}: {answer} is {shortened(value)}; allowed: 1 and 2")
    gold = int(value) - 1 if value else None
    return Question(_id(row), row.place, text, texts, gold, AS_IT_IS, (before, f" {behind.strip()}"))


def _boolq(row: Row, question: str, passage: str, answer: str) -> Question:
    value = row.values[answer]
    truth = (
        value if isinstance(value, bool) else {"true": True, "false": False, "": None}.get(str(value).lower(), value)
    )
    if answer in INDEX_FIELDS and str(value) in ("0", "1"):
        truth = str(value) == "1"
    if not (truth is None or isinstance(truth, bool)):
        raise UserError(f"{_place(row)}: {answer} is {shortened(value)}; allowed: true and false")
    gold = None if truth is None else 0 if truth else 1
    template = "{passage}\nQuestion: {question}?\nAnswer:"
    text = _text(row, question).strip().removesuffix("?")
    return Question(_id(row), row.place, text, ("yes", "no"), gold, template, fields={"passage": _text(row, passage)})


def _sciq(row: Row, question: str, answer: str, *distractors: str) -> Question:
    """The choices are sorted by their text, because the right answer must not have a fixed letter."""
    right = _text(row, answer)
    texts = tuple(sorted((right, *(_text(row, name) for name in distractors))))
    fields = _further(row, question, answer, *distractors)
    return Question(_id(row), row.place, _text(row, question), texts, texts.index(right), fields=fields)


QUESTIONS, ANSWERS = ("question", "question_stem", "query", "ctx", "sentence"), ("answer", "answerKey", *INDEX_FIELDS)
SHAPES = (
    Shape((("activity_label",), ("ctx_a",), ("ctx_b",), ("endings",), ("label",)), _hellaswag),
    Shape((QUESTIONS, ("choices", "endings", "options"), ANSWERS), _list_of_choices),
    Shape((("question",), ("answerKey",)), _nested),
    Shape((("question",), ("A",), ("B",), ("answer",)), _lettered),
    Shape((("goal",), ("sol1",), ("sol2",), ("label",)), _piqa),
    Shape((("sentence",), ("option1",), ("option2",), ("answer",)), _winogrande),
    Shape((("question",), ("passage",), ("answer", "label")), _boolq),
    Shape((("question",), ("correct_answer",), ("distractor1",), ("distractor2",), ("distractor3",)), _sciq),
)


def _choices(row: Row, value: Any) -> tuple[tuple[str, ...], list[str] | None]:
    """Return the texts of choices, and their labels if they have some.

    Known are a list of texts, {"text": [...], "label": [...]}, and a list of {"text", "label"}.
    """
    labels: Any = None
    if (
        isinstance(value, list)
        and value
        and all(isinstance(each, dict) and {"text", "label"} <= each.keys() for each in value)
    ):
        value, labels = [each["text"] for each in value], [each["label"] for each in value]
    elif isinstance(value, dict) and {"text", "label"} <= value.keys():
        value, labels = value["text"], value["label"]
    for name, texts in (("choices", value), ("labels of the choices", [] if labels is None else labels)):
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise UserError(f"{_place(row)}: the {name} are {shortened(texts)}, not a list of texts")
    if not value:
        raise UserError(f"{_place(row)}: the choices are an empty list; a question needs at least two")
    if labels is not None and (len(labels) != len(value) or len(set(labels)) < len(labels)):
        raise UserError(
            f"{_place(row)}: labels {shortened(labels)} for {len(value)} choices; each choice needs a different label"
        )
    return tuple(value), labels


def _gold(row: Row, name: str, choices: Sequence[str], labels: Sequence[str] | None = None) -> int | None:
    """Return the index of the right answer in field `name`; the rules are those of the module."""
    value = row.values[name]
    if value is None or value == "":
        return None
    index = None if value in (labels or ()) else _index(value, name)
    labels = labels or LETTERS[: len(choices)]
    head = f"{_place(row)}: {name} is {shortened(value)}"
    if index is not None:
        if not 0 <= index < len(choices):
            raise UserError(
                f"{head}; allowed: 0 to {len(choices) - 1}, a label ({', '.join(labels)}), or the text of a choice"
            )
        return index
    if not isinstance(value, str):
        raise UserError(f"{head}, not the index, label or text of a choice")
    by_label = [number for number, label in enumerate(labels) if label == value]
    by_text = [number for number, text in enumerate(choices) if text == value][:1]  # identical choices: the first
    if len({*by_label, *by_text}) > 1:
        raise UserError(
            f"{head}, the label of choice {by_label[0] + 1} and the text of choice {by_text[0] + 1}; use the index"
        )
    if not by_label and not by_text:
        raise UserError(f"{head}; allowed: a label ({', '.join(labels)}), the text of a choice, or a number from 0")
    return (by_label or by_text)[0]


def _index(value: Any, name: str) -> int | None:
    """Return a value of the field `name` as a number if it is one, see the module."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if name in INDEX_FIELDS and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        return int(value)
    return None


def _id(row: Row) -> str | None:
    value = row.values.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{row.place}: id is {shortened(value)}, not a text or a whole number")
    return str(value)


def _place(row: Row) -> str:
    """File, line and id of a row."""
    value = row.values.get("id")
    return f"{row.place} (id {shortened(value)})" if isinstance(value, str | int) else row.place


def _text(row: Row, key: str) -> str:
    return Row(_place(row), row.values).text(key)


def _further(row: Row, *used: str) -> dict[str, str]:
    """Return the fields of a row that its shape does not use."""
    return {key: str(value) for key, value in row.values.items() if key not in used and isinstance(value, PLAIN)}
