"""Answers in free text: `generate` compares them with a reference by exact match, `summarise` by the overlap of the texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.format import shortened
from common.paths import user_path
from common.typed import unescaped
from evals.overlap import bigram_dice, exact_match, rouge
from evals.tasks.rows import Row, item_files, read_each, read_rows
from evals.tasks.task import MEAN, Answer, Generated, Item, TaskOptions, token_counts
from evals.tasks.template import render, template_of

TEXT_KEYS, REFERENCE_KEYS = ("text", "prompt", "question"), ("answer", "summary", "reference")
# "TL;DR:" is what Radford et al. 2019 (GPT-2) asked for summaries with.
TEMPLATES = {"generate": "{text}", "summarise": "{text}\nTL;DR:"}
Marks = Sequence[dict[str, Any]]


def _overlap_figures(scored: Marks) -> dict[str, Any]:
    """The sum of the scores, as the competition counts them, and ROUGE."""
    overlap = rouge([(mark["answer"], mark["gold"]) for mark in scored])
    return {
        "sum": math.fsum(mark["score"] for mark in scored),
        **({"rouge": overlap} if isinstance(overlap, str) else overlap),
    }


@dataclass(frozen=True)
class Measure:
    """How answers of a kind are compared with references: the score of one, 0 to 1, and figures of the marks that have one."""

    score: Callable[[str, str], float]
    figures: Callable[[Marks], dict[str, Any]]


MEASURES = {
    "generate": Measure(exact_match, lambda scored: {"right": sum(mark["score"] == 1 for mark in scored)}),
    "summarise": Measure(bigram_dice, _overlap_figures),
}


@dataclass(frozen=True)
class FreeText:
    """See `Task`. The content of an item is its `reference`, a text, or None for an item that is not scored.

    `skipped`: the number of invalid items that were left out.
    """

    name: str
    options: TaskOptions
    items: Sequence[Item]
    kind: str
    skipped: int = 0
    statistic: str = MEAN
    chance: float | None = None

    def mark(self, item: Item, answer: Answer) -> dict[str, Any]:
        """Those of `judge`, with the tokens that were generated, and those of the prompt that were cut off."""
        assert isinstance(answer, Generated)
        return {**self.judge(item, answer.text), "tokens": answer.tokens, "cut": answer.cut}

    def judge(self, item: Item, answer: str) -> dict[str, Any]:
        """Return the mark of an answer in text, without white space at its ends."""
        text, reference = answer.strip(), item.content["reference"]
        score = None if reference is None else MEASURES[self.kind].score(text, reference)
        return {"id": item.id, "score": score, "gold": reference, "answer": text}

    def figures(self, marks: Marks) -> dict[str, Any]:
        """The figures of free answers.

        - generate: right, the number of exact matches
        - summarise: sum of the scores; rouge1, rouge2, rougeL, or `rouge`: why they are not computed
        - answer_characters, reference_characters: mean lengths of answers with a reference, and of the references
        - tokens: mean number of tokens generated; None for answers from a file
        - empty: number of empty answers; without_reference: items that are not scored; skipped: invalid items left out
        - cut: tokens of prompts for which the window had no room; items_cut: number of items with such tokens
        """
        scored = [mark for mark in marks if mark["score"] is not None]
        tokens = [mark["tokens"] for mark in marks if "tokens" in mark]
        return {
            **MEASURES[self.kind].figures(scored),
            "answer_characters": _mean([len(mark["answer"]) for mark in scored]),
            "reference_characters": _mean([len(mark["gold"]) for mark in scored]),
            "tokens": _mean(tokens),
            "empty": sum(not mark["answer"] for mark in marks),
            "without_reference": len(marks) - len(scored),
            "skipped": self.skipped,
            **token_counts(marks, "cut"),
        }


def load_free_text(name: str, options: TaskOptions) -> list[Any]:
    """Load the items of task.path. Raises UserError in one line per problem.

    A row has a text (task.text_key, else one of TEXT_KEYS), and may have an id and a reference (task.label_key, else one of
    REFERENCE_KEYS).
    """
    if options.path is None:
        raise UserError(f"tasks={name} needs task.path=FILE")
    files = item_files(user_path(options.path))
    options = generation_options(options)
    template = template_of(options) or TEMPLATES[options.kind]
    items: list[Item] = []
    skipped = 0
    for file in files:
        prefix = f"{file.name.partition('.')[0]}:" if len(files) > 1 else ""
        found, left_out = _read_file(file, prefix, template, options)
        items += found
        skipped += left_out
    return [FreeText(name, options, items, options.kind, skipped)]


def generation_options(options: TaskOptions) -> TaskOptions:
    r"""Return the options with \n and \t in task.stop as line end and tab. Raises UserError for an empty text in task.stop."""
    stop = tuple(unescaped(text) for text in options.stop)
    if "" in stop:
        raise UserError("task.stop holds an empty text, which would end every answer at once; leave it out")
    return replace(options, stop=stop)


def _read_file(path: Path, prefix: str, template: str, options: TaskOptions) -> tuple[list[Item], int]:
    """Return the items of a file, with `prefix` before their ids, and the number of invalid ones that were skipped."""
    rows = list(read_rows(path))
    if not rows:
        raise UserError(f"{path} holds no items; correct task.path")
    for option, key in (("text_key", options.text_key), ("label_key", options.label_key)):
        if key is not None and not any(key in row.values for row in rows):
            raise UserError(f"task.{option}={key}: no item of {path} has this field; its fields are {rows[0].fields}")
    ids = Counter(str(row.values.get("id", number)) for number, row in enumerate(rows))

    def read(numbered: tuple[int, Row]) -> Item:
        number, row = numbered
        own = row.values.get("id", number)
        if isinstance(own, bool) or not isinstance(own, str | int) or own == "":
            raise UserError(f"{row.place}: id is {shortened(own)}; write a text or a whole number")
        if ids[str(own)] > 1:
            raise UserError(f"{row.place}: id {shortened(own)} occurs {ids[str(own)]} times, but ids must be unique")
        text = _text(row, options)
        plain = {key: str(value) for key, value in row.values.items() if isinstance(value, str | int | float)}
        prompt = render(template, {**plain, "text": text})
        return Item(f"{prefix}{own}", prompt=prompt, content={"reference": _reference(row, options)})

    return read_each(enumerate(rows), read, options.bad_items)


def _text(row: Row, options: TaskOptions) -> str:
    keys = TEXT_KEYS if options.text_key is None else (options.text_key,)
    key = next((key for key in keys if key in row.values), None)
    if key is None:
        raise UserError(
            f"{row.place}: no field {' or '.join(keys)}; its fields are {row.fields}; set task.text_key=FIELD"
        )
    text = row.text(key)
    if not text.strip():
        raise UserError(f"{row.place}: {key} is empty")
    return text


def _reference(row: Row, options: TaskOptions) -> str | None:
    """The reference text; a number counts as its text. None if it is missing, null or blank, as in test sets."""
    keys: Sequence[str] = REFERENCE_KEYS if options.label_key is None else (options.label_key,)
    key = next((key for key in keys if key in row.values), None)
    value = None if key is None else row.values[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        raise UserError(f"{row.place}: {key} is {shortened(value)}, not a text")
    return None if value is None or not str(value).strip() else str(value)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
