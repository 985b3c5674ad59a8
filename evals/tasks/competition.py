"""The file of a competition with three types of tasks: one JSON list of {id, task_type, text, choices, answer}.

- multiple_choice: choices are [{choice_id, text}], with ids from 1; the answer is a choice_id
- summarization: the answer is a text, compared with the reference as in `summarise`
- generation: the answer is a text, which people judge; compared by exact match if there is a reference

An answer of null is not known, as in a test set: the item is answered, but not scored. The competition is that of the summer
school on language models of the Matsuo Lab, 2023.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, refuse
from common.format import shortened
from common.paths import user_path
from common.safe_read import JSON_BYTES, parse_json, read_bytes
from evals.tasks.generate import TEMPLATES, FreeText, generation_options
from evals.tasks.multiple_choice import MEASURES, MultipleChoice, item_of_question
from evals.tasks.questions import AS_IT_IS, MOST_CHOICES, Question
from evals.tasks.task import Answer, Item, TaskOptions
from evals.tasks.template import render, template_of

KIND = "competition"
KEYS = ("id", "task_type", "text", "answer")  # of every item; `choices` is that of questions


@dataclass(frozen=True)
class Quiz(MultipleChoice):
    """The multiple-choice task. Unlike those of `MultipleChoice`, its answers are choice_ids, which count from 1."""

    def mark(self, item: Item, answer: Answer) -> dict[str, Any]:
        """As `MultipleChoice.mark`; gold and answer are choice_ids."""
        mark = super().mark(item, answer)
        return {**mark, "gold": _choice_id(mark["gold"]), "answer": _choice_id(mark["answer"])}

    def judge(self, item: Item, answer: int) -> dict[str, Any]:
        """Return the mark of a choice_id."""
        choices, gold = item.content["choices"], _choice_id(item.content["gold"])
        texts = {} if gold is None else {"gold_text": choices[gold - 1].strip()}
        score = None if gold is None else float(answer == gold)
        chosen = choices[answer - 1].strip()
        identical = len(set(choices)) < len(choices)
        return {"id": item.id, "score": score, "gold": gold, "answer": answer, "answer_text": chosen, **texts,
                "identical": identical}  # fmt: skip

    def figures(self, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The number of right answers, and the figures of `MultipleChoice` for answers that a model chose by scores."""
        known = [mark["score"] for mark in marks if mark["score"] is not None]
        figures: dict[str, Any] = {"right": int(sum(known))}
        if all("logprobs" in mark for mark in marks):
            return figures | super().figures(marks)
        return figures | {
            "identical": sum(mark["identical"] for mark in marks),
            "without_answer": len(marks) - len(known),
        }


def load_competition(name: str, options: TaskOptions) -> list[Any]:
    """Load the tasks of the file task.path, one for each task_type that it has, named by it.

    A task that is itself named by a task_type has only the items of this type, so that each type can have its own options.
    Raises UserError as `read_items` does, and if there is no item of this type.
    """
    if options.path is None:
        raise UserError(f"tasks={name} needs task.path=FILE, the competition's JSON list")
    if options.bad_items == "skip":
        raise UserError(
            f"task.bad_items=skip has no effect on {name}, because a submission needs every item; leave it out, and correct the"
            " items"
        )
    path = user_path(options.path)
    rows = read_items(path)
    options = generation_options(options)
    by_type = {kind: [row for row in rows if row["task_type"] == kind] for kind in LOADERS}
    if name in LOADERS and not by_type[name]:
        raise UserError(f"{path}: no item has the task_type {name}; leave {name} out of tasks=")
    wanted = [name] if name in LOADERS else [kind for kind in LOADERS if by_type[kind]]
    return [LOADERS[kind](kind, by_type[kind], options) for kind in wanted]


def read_items(path: Path) -> list[dict[str, Any]]:
    """Return the items of a competition's file, in order.

    Raises UserError for a file that is not a JSON list in UTF-8, and with a line for each of the first invalid items.
    """
    rows = read_list(path, "task.path")
    ids = Counter(str(row.get("id")) for row in rows if isinstance(row, dict))
    counts = Counter(
        len(row["choices"])
        for row in rows
        if isinstance(row, dict) and row.get("task_type") == "multiple_choice" and isinstance(row.get("choices"), list)
    )
    expected = counts.most_common(1)[0][0] if counts else 0
    problems = []
    for number, row in enumerate(rows, 1):
        if problem := _problem_of_item(row, ids, expected):
            own = row.get("id") if isinstance(row, dict) else None
            problems.append(f"{path}: {item_name(own, number)}: {problem}")
    refuse(list(dict.fromkeys(problems)))  # an id that occurs twice is one problem
    return rows


def read_list(path: Path, option: str) -> list[Any]:
    """Return the JSON list in a file. Raises UserError, which names `option`, if it is empty or not such a file."""
    try:
        entries = parse_json(read_bytes(path, JSON_BYTES).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 at byte {error.start:,}; convert it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); correct {option}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); correct the file of {option}") from None
    if not isinstance(entries, list) or not entries:
        what = "an empty list" if entries == [] else f"{shortened(entries)}, not a list"
        raise UserError(f"{path} holds {what}; write a JSON list [{{...}}, {{...}}] of items")
    return entries


def answer_problem(row: Mapping[str, Any], answer: object) -> str | None:
    """Return what is wrong with the answer to an item, or None. An answer in text may be empty."""
    if row["task_type"] == "multiple_choice":
        last = len(row["choices"])
        if isinstance(answer, bool) or not isinstance(answer, int) or not 1 <= answer <= last:
            return f"answer is {shortened(answer)}; allowed: the number of a choice, 1 to {last}"
        return None
    return _text_problem("answer", answer)


def _problem_of_item(row: Any, ids: Counter[str], expected: int) -> str | None:
    """Return what is wrong with an item, or None. Questions have the `expected` number of choices."""
    if not isinstance(row, dict):
        return f"{shortened(row)} is not an object"
    if missing := [key for key in KEYS if key not in row]:
        hint = "; write null where it is not known" if missing == ["answer"] else ""
        return f"no key {' and no key '.join(missing)}; its keys are {', '.join(map(str, row))[:200]}{hint}"
    own = row["id"]
    if isinstance(own, bool) or not isinstance(own, str | int) or own == "":
        return f"id is {shortened(own)}; write a whole number or a text"
    if ids[str(own)] > 1:
        return f"this id occurs {ids[str(own)]} times, but ids must be unique"
    task_type = row["task_type"]
    if not isinstance(task_type, str) or task_type not in LOADERS:
        return f"task_type is {shortened(task_type)}; allowed: {', '.join(LOADERS)}"
    if problem := _filled_problem("text", row["text"]):
        return problem
    if problem := (_choices_problem(row, expected) if task_type == "multiple_choice" else _no_choices_problem(row)):
        return problem
    if row["answer"] is None:
        return None
    if problem := answer_problem(row, row["answer"]):
        return problem
    return None if task_type == "multiple_choice" else _filled_problem("answer", row["answer"])


def _choices_problem(row: dict[str, Any], expected: int) -> str | None:
    choices = row.get("choices")
    if not isinstance(choices, list):
        return f"choices is {shortened(choices)}; a question has a list of {{choice_id, text}}"
    if not 2 <= len(choices) <= MOST_CHOICES:
        return f"{len(choices)} choices; allowed: 2 to {MOST_CHOICES}"
    if len(choices) != expected:
        return f"{len(choices)} choices, but most questions of the file have {expected}"
    for number, choice in enumerate(choices, 1):
        if not isinstance(choice, dict) or not {"choice_id", "text"} <= choice.keys():
            return f"choice {number} is {shortened(choice)}, not an object with choice_id and text"
        if isinstance(choice["choice_id"], bool) or choice["choice_id"] != number:
            return f"the choice_id of choice {number} is {shortened(choice['choice_id'])}; they count from 1"
        if problem := _filled_problem(f"the text of choice {number}", choice["text"]):
            return problem
    return None


def _no_choices_problem(row: dict[str, Any]) -> str | None:
    if row.get("choices"):
        return f"choices is {shortened(row['choices'])}, but a {row['task_type']} has none; leave them out"
    return None


def _filled_problem(what: str, value: object) -> str | None:
    problem = _text_problem(what, value)
    return problem or (None if str(value).strip() else f"{what} is empty")


def _text_problem(what: str, value: object) -> str | None:
    if not isinstance(value, str):
        return f"{what} is {shortened(value)}, not a text"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"{what} has half a surrogate pair, {value[error.start]!a}, which is not a character"
    return None


def item_name(own: object, number: int = 0) -> str:
    """Return how messages call an item: by its id, or by its number in the file if it has none."""
    return f"entry {number}" if own is None else f"item {shortened(own)}"


def _choice_id(index: int | None) -> int | None:
    return None if index is None else index + 1


def _load_quiz(name: str, rows: Sequence[dict[str, Any]], options: TaskOptions) -> Any:
    allowed = (*MEASURES, "pmi", "letter")
    if options.score not in (None, *allowed):
        raise UserError(
            f"tasks={name}: task.score={options.score} does not choose among choices; allowed: {', '.join(allowed)}"
        )
    template = template_of(options)
    items = []
    for number, row in enumerate(rows):
        gold = None if row["answer"] is None else row["answer"] - 1
        choices = tuple(choice["text"] for choice in row["choices"])
        place, fields = f"{options.path}: item {row['id']}", {"text": row["text"]}
        question = Question(str(row["id"]), place, row["text"], choices, gold, AS_IT_IS, fields=fields)
        items.append(item_of_question(number, question, None, template, options))
    return Quiz(name, options, items)


def _load_texts(kind: str) -> Callable[[str, Sequence[dict[str, Any]], TaskOptions], Any]:
    def load(name: str, rows: Sequence[dict[str, Any]], options: TaskOptions) -> Any:
        template = template_of(options) or TEMPLATES[kind]
        items = [
            Item(str(row["id"]), prompt=render(template, {"text": row["text"]}), content={"reference": row["answer"]})
            for row in rows
        ]
        return FreeText(name, options, items, kind)

    return load


LOADERS: dict[str, Callable[[str, Sequence[dict[str, Any]], TaskOptions], Any]] = {
    "multiple_choice": _load_quiz,
    "summarization": _load_texts("summarise"),
    "generation": _load_texts("generate"),
}
