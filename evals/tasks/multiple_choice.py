"""Multiple choice: which answer to a question does the model find most likely?

Choices are compared by task.score. The names that others use for it are in brackets (lm-eval: lm-evaluation-harness; OLMES: Gu et
al. 2024, arXiv:2406.08446, and the package ai2-olmo-eval):

- sum: log-probability of the choice (lm-eval `acc`, OLMES `acc_raw`)
- per_token: that per token
- per_character: per character (lm-eval `acc_norm`, OLMES `acc_per_char`); per_byte: per byte in UTF-8 (lm-eval `acc_bytes`)
- pmi: minus the log-probability of the choice after `UNCONDITIONAL` alone (OLMES `acc_uncond`)
- letter: log-probability of the letter of a choice, after a prompt that lists them

Length is that of the choice as the file has it: without the space that the template puts before it, as in lm-eval; with the space
that the continuations of ready requests begin with, as in OLMES. Of equally likely choices the first one is the answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any

import numpy as np

from common.errors import UserError
from common.paths import user_path
from evals.scoring import Request, Score
from evals.statistics import accuracy, score_of
from evals.tasks.questions import Question, read_questions
from evals.tasks.ready_requests import FILES, FOLDER, ReadyQuestion, is_ready, package_folder, read_requests
from evals.tasks.rows import Row, item_files, rows_and_errors
from evals.tasks.task import MEAN, Answer, Generated, Item, TaskOptions, token_counts
from evals.tasks.template import fields_of, render, split_at, template_of

UNCONDITIONAL = "Answer:"  # the context of OLMES' unconditional requests
LIST_OF_CHOICES = "{choices}\nAnswer:"  # ends the default template of score=letter

# The measures of each choice, (choices,) each, of log-probabilities and tokens, bytes and characters.
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
MEASURES: dict[str, Measure] = {
    "sum": lambda logprobs, tokens, n_bytes, characters: logprobs,
    "per_token": lambda logprobs, tokens, n_bytes, characters: logprobs / tokens,
    "per_byte": lambda logprobs, tokens, n_bytes, characters: logprobs / n_bytes,
    "per_character": lambda logprobs, tokens, n_bytes, characters: logprobs / characters,
}


@dataclass(frozen=True)
class MultipleChoice:
    """See `Task`. The content of an item: `choices` as they are shown, `scored`: the texts whose lengths count, `gold`.

    `skipped`: the number of invalid items that were left out.
    """

    name: str
    options: TaskOptions
    items: Sequence[Item]
    skipped: int = 0
    kind: str = "multiple_choice"
    statistic: str = MEAN

    @property
    def by(self) -> str:
        """The measure of task.score."""
        return self.options.score or "sum"

    @property
    def chance(self) -> float | None:
        """The mean of 1 / number of choices, over files as the score."""
        guesses = [{"group": item.group, "score": 1 / len(item.content["choices"])} for item in self.items]
        return score_of(guesses, MEAN)

    def mark(self, item: Item, answer: Answer) -> dict[str, Any]:
        """The answer by task.score, and whether it would be right by each measure.

        - gold, answer: indices of choices from 0; gold_text, answer_text: their texts
        - right: whether the answer is right by each measure, 0 or 1; bits_per_byte: of the right answer
        - tie: whether other choices are as likely as the answer; identical: whether two choices are identical
        - cut, unknown: tokens of the requests, see `Score`; the largest of all choices
        - logprobs: of the requests of the item, nats
        """
        assert not isinstance(answer, Generated)
        choices, gold = item.content["choices"], item.content["gold"]
        scores = _of_identical(item.requests, answer)
        values = measures(scores, item.content["scored"], self.by)
        chosen = {name: int(measured.argmax()) for name, measured in values.items()}
        by = self.by
        known = {} if gold is None else {
            "right": {name: float(index == gold) for name, index in chosen.items()},
            "bits_per_byte": -scores[gold].logprob / math.log(2) / scores[gold].bytes,
            "gold_text": choices[gold].strip(),
        }  # fmt: skip
        return {
            "id": item.id,
            "group": item.group,
            "score": None if gold is None else float(chosen[by] == gold),
            "gold": gold,
            "answer": chosen[by],
            "answer_text": choices[chosen[by]].strip(),
            **known,
            "tie": bool((values[by] == values[by].max()).sum() > 1),
            "identical": len(set(choices)) < len(choices),
            "cut": max(score.cut for score in scores),
            "unknown": max(score.unknown for score in scores),
            "logprobs": [score.logprob for score in scores],
        }

    def figures(self, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The figures of multiple choice.

        - scored_by: task.score
        - accuracy: {measure: value, standard_error} over all items: sqrt(p (1 - p) / (n - 1)), as in lm-evaluation-harness
        - bits_per_byte: of the right answers, the mean over items
        - groups: {file: items, score} if the items come from several files
        - ties, identical: number of items with equally likely choices, and with identical ones
        - skipped: number of invalid items that were left out; without_answer: items whose right answer is not known
        - cut, unknown: tokens cut off, and unknown tokens; items_cut, items_unknown: number of items with such tokens
        """
        known = [mark for mark in marks if mark["gold"] is not None]
        groups: dict[str, list[float]] = {}
        for mark in known:
            groups.setdefault(mark["group"], []).append(mark["score"])
        return {
            "scored_by": self.by,
            "accuracy": {name: accuracy([mark["right"][name] for mark in known]) for name in known[0]["right"]}
            if known
            else {},
            "bits_per_byte": math.fsum(mark["bits_per_byte"] for mark in known) / len(known) if known else None,
            "groups": {
                name: {"items": len(scores), "score": math.fsum(scores) / len(scores)}
                for name, scores in groups.items()
            }
            if len(groups) > 1
            else {},
            "ties": sum(mark["tie"] for mark in marks),
            "identical": sum(mark["identical"] for mark in marks),
            "skipped": self.skipped,
            "without_answer": len(marks) - len(known),
            **token_counts(marks, "cut", "unknown"),
        }


def load_multiple_choice(name: str, options: TaskOptions) -> list[Any]:
    """Load questions from the files of task.path, or the ready requests of task `name` of the installed package.

    If they come from several files, the score is the mean of those of the files. Raises UserError in one line per problem.
    """
    if options.score == "generate":
        raise UserError(
            f"tasks={name}: task.score=generate is for classify; allowed: {', '.join(MEASURES)}, pmi, letter"
        )
    path = user_path(options.path) if options.path is not None else package_folder(name)
    preferred = [*FILES, *(f"{FOLDER}/{each}" for each in FILES)]
    files = item_files(path, preferred)
    template = template_of(options)
    items: list[Item] = []
    skipped = 0
    for file in files:
        group = _group(file) if len(files) > 1 else None
        found, left_out = _read_file(file, group, template, options)
        items += found
        skipped += left_out
    if repeated := [key for key, count in Counter(item.id for item in items).items() if count > 1]:
        places = [item.content["place"] for item in items if item.id == repeated[0]]
        raise UserError(
            f"{places[1]}: id {repeated[0]!r} is also that of {places[0]}; {len(repeated):,} ids occur more than once, but ids"
            " must be unique"
        )
    return [MultipleChoice(name, options, items, skipped)]


def _read_file(path: Path, group: str | None, template: str | None, options: TaskOptions) -> tuple[list[Item], int]:
    """Return the items of a file, and the number of invalid ones that were skipped."""
    rows = rows_and_errors(path)
    head = []
    for row in rows:
        head.append(row)
        if isinstance(row, Row):
            break
    if not head:
        raise UserError(f"{path} holds no items; correct task.path")
    if is_ready(head[-1]):
        if template is not None or options.score == "letter":
            option = "task.template" if template is not None else "task.score=letter"
            raise UserError(f"{path} holds ready requests, to which {option} does not apply; leave it out")
        ready, skipped = read_requests(chain(head, rows), options.bad_items)
        return [_of_requests(question, group, options) for question in ready], skipped
    questions, skipped = read_questions([*head, *rows], options.bad_items)
    return [item_of_question(i, question, group, template, options) for i, question in enumerate(questions)], skipped


def _of_requests(question: ReadyQuestion, group: str | None, options: TaskOptions) -> Item:
    """The item of a question with ready requests."""
    continuations = [request.continuation for request in question.requests]
    same = len(set(continuations)) == 1  # WinoGrande: the contexts differ
    choices = [request.context + request.continuation for request in question.requests] if same else continuations
    requests = question.requests
    if options.score == "pmi":
        requests += question.unconditional or tuple(Request(UNCONDITIONAL, each) for each in continuations)
    return Item(
        question.id if group is None else f"{group}:{question.id}",
        requests,
        group=group,
        content={
            "choices": choices,
            "scored": continuations,
            "gold": question.gold,
            "place": question.place,
        },
    )


def item_of_question(
    number: int, question: Question, group: str | None, template: str | None, options: TaskOptions
) -> Item:
    """The item of a question: its choices in the template, or in its blank unless there is a template."""
    if question.blank is not None and template is None and options.score != "letter":
        before, behind = question.blank
        requests = tuple(Request(before + choice, behind) for choice in question.choices)
        scored: Sequence[str] = [behind] * len(requests)
    else:
        requests = _ask(question, template, options)
        scored = question.choices
    if options.score == "pmi":
        requests += tuple(Request(UNCONDITIONAL, request.continuation) for request in requests)
    own = question.id or str(number)
    return Item(
        own if group is None else f"{group}:{own}",
        requests,
        group=group,
        content={
            "choices": question.choices,
            "scored": scored,
            "gold": question.gold,
            "place": question.place,
        },
    )


def _ask(question: Question, template: str | None, options: TaskOptions) -> tuple[Request, ...]:
    """Return a request for each choice.

    The continuation begins where {choice} is in the template, with the space before it. A template without {choice} ends before
    the choice, which follows after a space, unless the template itself ends with one or with a line end.
    """
    choices, letters = question.choices, _letters(question.choices)
    letter = options.score == "letter"
    if letter and len(choices) > len(LETTERS):
        raise UserError(f"{question.place}: {len(choices)} choices; task.score=letter has only {len(LETTERS)} letters")
    template = template or (_with_list(question.template) if letter else question.template)
    if "choice" not in fields_of(template):
        template += "{choice}" if template[-1].isspace() else " {choice}"
    before, *behind = split_at(template, "choice")
    listed = "\n".join(f"{name}. {choice}" for name, choice in zip(letters, choices, strict=True))
    fields = {**question.fields, "question": question.text, "choices": listed, "choice": ""}
    context = render(before, fields)
    stripped = context.rstrip()
    return tuple(
        Request(stripped, context[len(stripped) :] + said + render("{choice}".join(behind), {**fields, "choice": said}))
        for said in (letters if letter else choices)
    )


def _with_list(template: str) -> str:
    """A default template with the list of choices before its end."""
    return f"{template.removesuffix('Answer:').rstrip()}\n{LIST_OF_CHOICES}"


def _letters(choices: Sequence[str]) -> Sequence[str]:
    """A, B, C, ... and numbers from 27 for more choices than letters."""
    return [*LETTERS, *map(str, range(len(LETTERS) + 1, len(choices) + 1))][: len(choices)]


def _of_identical(requests: Sequence[Request], scores: Sequence[Score]) -> list[Score]:
    """The scores, where identical requests have that of the first one: rounding must not choose between them."""
    first: dict[Request, Score] = {}
    return [first.setdefault(request, score) for request, score in zip(requests, scores, strict=True)]


def measures(scores: Sequence[Score], scored: Sequence[str], by: str) -> dict[str, np.ndarray]:
    """Return the value of each choice by each measure, (choices,).

    `scored` are the texts whose lengths count. Behind the scores of the choices may be the unconditional ones for pmi.
    """
    n = len(scored)
    logprobs = np.array([score.logprob for score in scores])
    if by == "letter":
        return {"letter": logprobs}
    tokens = np.array([score.tokens for score in scores[:n]])
    n_bytes, characters = np.array([len(text.encode()) for text in scored]), np.array([len(text) for text in scored])
    values = {name: measure(logprobs[:n], tokens, n_bytes, characters) for name, measure in MEASURES.items()}
    return values | ({"pmi": logprobs[:n] - logprobs[n:]} if len(scores) > n else {})


def _group(path: Path) -> str:
    return path.name.partition(".")[0]
