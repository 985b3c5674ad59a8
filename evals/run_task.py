"""Lets a model answer the items of a task, and turns the answers into figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evals.bookkeeping.answers import AnswerFile
from evals.scoring import Scorer
from evals.statistics import interval, score_of
from evals.tasks.task import Answer, Generated, Item, Task, TaskOptions

# Characters of a batch of items, per token of a forward pass: a batch is about one forward pass, and a killed evaluation
# loses at most one batch.
CHARACTERS_PER_TOKEN = 4
# Options that change answers; the others change what is asked (and so the text of the requests), or how answers are marked.
SCORING = ("prefix", "too_long")
GENERATION = ("max_new_tokens", "length", "stop", "temperature", "top_k", "top_p", "repetition_penalty", "seed")


@dataclass(frozen=True)
class Respondent:
    """A model that answers items.

    Attributes:
        scorer: Scores requests and holds the model.
        fingerprint: Identifies weights and tokenizer, for the keys of stored answers.
        parameters: The number of its parameters.
    """

    scorer: Scorer
    fingerprint: str
    parameters: int


def answer_items(
    task: Task,
    respondent: Respondent,
    answers: AnswerFile,
    progress: Callable[[int], None] = lambda count: None,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Compute the answers that `answers` does not have yet.

    Args:
        progress: Called with the number of items that are done, before the first batch and after each.
        stop: Called before each batch; it may raise an exception to end the evaluation.
    """
    keys = [key_of(item, task.options, respondent.fingerprint) for item in task.items]
    missing = {key: item for key, item in zip(keys, task.items, strict=True) if key not in answers.known}
    scorer = replace(respondent.scorer, prefix=task.options.prefix, too_long=task.options.too_long)
    done = len(task.items) - len(missing)
    progress(done)
    for batch in _batches(missing, scorer.micro_batch * scorer.model.shape.block_size * CHARACTERS_PER_TOKEN):
        stop()
        items = [missing[key] for key in batch]
        answers.add(batch, [item.id for item in items], answer_batch(items, scorer, task.options))
        done += len(batch)
        progress(done)


def answer_batch(items: Sequence[Item], scorer: Scorer, options: TaskOptions) -> list[Answer]:
    """Return the answers to a batch of items."""
    scores = iter(scorer.score([request for item in items for request in item.requests]))
    return [
        generate_answer(item, scorer, options) if item.prompt is not None else [next(scores) for _ in item.requests]
        for item in items
    ]


def generate_answer(item: Item, scorer: Scorer, options: TaskOptions) -> Generated:
    """Continue the prompt of an item."""
    from evals.generation import continue_prompt

    assert item.prompt is not None
    return continue_prompt(item.prompt, scorer, options)


def marks_of(task: Task, answers: AnswerFile, fingerprint: str) -> list[dict[str, Any]]:
    """Return the marks of the items, in their order. All must have been answered."""
    return [task.mark(item, answers.known[key_of(item, task.options, fingerprint)]) for item in task.items]


def figures_of(task: Task, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a task as JSON values.

    - kind, items: number of items
    - score: 0 to 1, see `Task.statistic`; None if no item has a known right answer; interval: its bootstrap interval
    - chance: the score of guessing
    - and those of the kind
    """
    ends = interval(marks, task.statistic)
    return {
        "kind": task.kind,
        "items": len(marks),
        "score": score_of(marks, task.statistic),
        "interval": list(ends) if ends else None,
        "chance": task.chance,
        "statistic": task.statistic,
        **task.figures(marks),
    }


def key_of(item: Item, options: TaskOptions, fingerprint: str) -> str:
    """Return the hash of all that an answer depends on."""
    names = GENERATION if item.prompt is not None else ()
    asked = {
        "model": fingerprint,
        "requests": [[request.context, request.continuation] for request in item.requests],
        "prompt": item.prompt,
        "options": {name: getattr(options, name) for name in (*SCORING, *names)},
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def _batches(items: dict[str, Item], most_characters: int) -> Iterator[list[str]]:
    """Yield the keys of items, the longest first, in batches of at most `most_characters`; a generated answer is a batch.

    The longest come first, so that memory and the estimate of the time left are right from the beginning.
    """
    batch: list[str] = []
    characters = 0
    for key in sorted(items, key=lambda key: (-length_of(items[key]), key)):
        length = length_of(items[key])
        if batch and (characters + length > most_characters or items[key].prompt is not None):
            yield batch
            batch, characters = [], 0
        batch.append(key)
        characters += length
    if batch:
        yield batch


def length_of(item: Item) -> int:
    """The characters of an item: its prompt, or the longest context and all continuations."""
    if item.prompt is not None:
        return len(item.prompt)
    contexts = max((len(request.context) for request in item.requests), default=0)
    return contexts + sum(len(request.continuation) for request in item.requests)
