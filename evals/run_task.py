"""Lets a model answer the items of a task, and turns the answers into figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from common.errors import MachineError, UserError, refuse
from data.tokenizers.tokenizer import Tokenizer
from evals.bookkeeping.answers import AnswerFile, from_json, to_json
from evals.generation import continue_prompt, encode_prompt
from evals.scoring import Encoded, Scorer, TooLong
from evals.statistics import interval, score_of, standard_error
from evals.tasks.task import Answer, Item, Task, TaskOptions

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
        fingerprint: That of `fingerprint_of`, for the keys of stored answers.
    """

    scorer: Scorer
    fingerprint: str


class Processes(Protocol):
    """The processes that share an evaluation; `device.distributed.World` is one."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank. Values are JSON."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """See `Processes`."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


@dataclass(frozen=True)
class Work:
    """The items of a task that a model has to answer.

    Attributes:
        task: The task.
        answers: Holds the answers that are known.
        missing: The other items by key.
        encoded: Their requests as tokens, by key.
    """

    task: Task
    answers: AnswerFile
    missing: Mapping[str, Item]
    encoded: Mapping[str, list[Encoded]]


def prepare(task: Task, respondent: Respondent, answers: AnswerFile) -> Work:
    """Find the items that `answers` lacks. Raises UserError if one of them cannot be scored, see `encode_items`."""
    keys = [key_of(item, task.options, respondent.fingerprint) for item in task.items]
    missing = {key: item for key, item in zip(keys, task.items, strict=True) if key not in answers.known}
    return Work(task, answers, missing, encode_items(task.name, missing, _scorer_for(task, respondent)))


def answer_items(
    task: Task,
    respondent: Respondent,
    answers: AnswerFile,
    progress: Callable[[int], None] = lambda count: None,
    stop: Callable[[], None] = lambda: None,
    processes: Processes = OneProcess(),
) -> None:
    """Prepare and answer one task; see `prepare` and `answer_prepared`."""
    answer_prepared(prepare(task, respondent, answers), respondent, progress, stop, processes)


def answer_prepared(
    work: Work,
    respondent: Respondent,
    progress: Callable[[int], None],
    stop: Callable[[], None],
    processes: Processes,
) -> None:
    """Compute the answers that `work` lacks, and add them to its `answers`.

    Args:
        progress: Called with the number of items that are done, before the first batch and after each.
        stop: Called before each batch and each generated token; it may raise an exception to end the evaluation.
        processes: Each computes a part of the batches. All get all answers, and the one of rank 0 writes them. An exception
            in one of them ends the evaluation in all: where it was raised with itself, elsewhere with MachineError.
    """
    task, answers, missing, encoded = work.task, work.answers, work.missing, work.encoded
    scorer = _scorer_for(task, respondent)
    batches = [*_batches(missing, scorer.micro_batch * scorer.model.shape.block_size * CHARACTERS_PER_TOKEN)]

    def computed(batch: Sequence[str]) -> list[dict[str, Any]]:
        stop()
        items = [missing[key] for key in batch]
        found = answer_batch(items, [encoded[key] for key in batch], scorer, task.options, stop)
        return [to_json(answer) for answer in found]

    def kept(turn: Sequence[Sequence[str]], found: Sequence[Sequence[dict[str, Any]]]) -> None:
        for batch, lines in zip(turn, found, strict=False):  # in the last turn, some processes have no batch
            parts = batch, [missing[key].id for key in batch], [from_json(line) for line in lines]
            if processes.rank == 0:
                answers.add(*parts)
            else:
                answers.known.update(zip(batch, parts[2], strict=True))

    done = len(task.items) - len(missing)
    progress(done)
    for begin in range(0, len(batches), processes.size):
        turn = batches[begin : begin + processes.size]
        mine = turn[processes.rank] if processes.rank < len(turn) else []
        found = _together(processes, lambda mine=mine: computed(mine))  # type: ignore[misc]
        _together(processes, lambda turn=turn, found=found: kept(turn, found))  # type: ignore[misc]
        done += sum(map(len, turn))
        progress(done)


def _together(processes: Processes, work: Callable[[], Any]) -> list[Any]:
    """Do `work` in every process and return the results by rank. Raises in all processes if it raises in one."""
    result, raised = None, None
    try:
        result = work()
    except Exception as error:
        raised = error
    outcomes = processes.gather([result, None if raised is None else f"{type(raised).__name__}: {raised}"])
    if raised is not None:
        raise raised
    if failed := [(rank, error) for rank, (_, error) in enumerate(outcomes) if error is not None]:
        raise MachineError(
            f"process {failed[0][0]} of the evaluation failed: {failed[0][1]}; run the same command again"
        )
    return [result for result, _ in outcomes]


def _scorer_for(task: Task, respondent: Respondent) -> Scorer:
    return replace(respondent.scorer, prefix=task.options.prefix, too_long=task.options.too_long)


def encode_items(name: str, items: Mapping[str, Item], scorer: Scorer) -> dict[str, list[Encoded]]:
    """Return the encoded requests of items by key.

    Raises UserError with one line for all items that are too long, and one for each other item that cannot be scored.
    """
    encoded: dict[str, list[Encoded]] = {}
    problems: list[str] = []
    too_long: list[tuple[str, TooLong]] = []
    for key, item in items.items():
        place = f" ({item.content['place']})" if "place" in item.content else ""
        try:
            encoded[key] = scorer.encode(item.requests)
            if item.prompt is not None:
                encode_prompt(item, scorer)
        except TooLong as error:
            too_long.append((f"item {item.id}{place}", error))
        except UserError as error:
            problems += [f"{name}, item {item.id}{place}: {message}" for message in error.messages]
    if too_long:
        example, longest = max(too_long, key=lambda each: each[1].remedy == "roll")
        problems.insert(0, f"{name}: {len(too_long):,} of {len(items):,} items are too long, e.g. {example}: {longest}")
    refuse(problems, f"more in {name}")
    return encoded


def answer_batch(
    items: Sequence[Item],
    encoded: Sequence[Sequence[Encoded]],
    scorer: Scorer,
    options: TaskOptions,
    stop: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Return the answers to a batch of items, of which `encoded` holds the requests; `stop` as in `continue_prompt`."""
    scores = iter(scorer.score_encoded([request for requests in encoded for request in requests]))
    return [
        continue_prompt(item, scorer, options, stop)
        if item.prompt is not None
        else [next(scores) for _ in item.requests]
        for item in items
    ]


def given_answers(task: Task, answers: AnswerFile, fingerprint: str) -> list[Answer]:
    """Return the answers to the items, in their order. All must have been answered."""
    return [answers.known[key_of(item, task.options, fingerprint)] for item in task.items]


def marks_of(task: Task, answers: AnswerFile, fingerprint: str) -> list[dict[str, Any]]:
    """Return the marks of the items, in their order. All must have been answered."""
    return [task.mark(*each) for each in zip(task.items, given_answers(task, answers, fingerprint), strict=True)]


def figures_of(task: Task, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a task as JSON values.

    - kind, items: number of items
    - score: 0 to 1; None if no item has a known right answer; standard_error: of the score; interval: its bootstrap interval
    - chance: the score of guessing; statistic: how the marks become the score, see `Task`
    - and those of the kind
    """
    ends = interval(marks, task.statistic)
    return {
        "kind": task.kind,
        "items": len(marks),
        "score": score_of(marks, task.statistic),
        "standard_error": standard_error(marks, task.statistic),
        "interval": list(ends) if ends else None,
        "chance": task.chance,
        "statistic": task.statistic,
        **task.figures(marks),
    }


def key_of(item: Item, options: TaskOptions, fingerprint: str) -> str:
    """Return the hash of all that an answer depends on; for a generated one, this includes the item's id (`item_seed`)."""
    names = GENERATION if item.prompt is not None else ()
    asked = {
        "model": fingerprint,
        "requests": [[request.context, request.continuation] for request in item.requests],
        "prompt": [item.prompt, item.id] if item.prompt is not None else None,
        "options": {name: getattr(options, name) for name in (*SCORING, *names)},
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def fingerprint_of(sha256: str, tokenizer: Tokenizer, precision: str) -> str:
    """Return what identifies a model in the keys of stored answers: weights, tokenizer and device.precision."""
    return f"{sha256} {tokenizer.fingerprint} {precision}"


def items_fingerprint(task: Task) -> str:
    """Return the hash of the items of a task: what is asked, and what the answers are compared with."""
    digest = hashlib.sha256()
    for item in task.items:
        asked = [[request.context, request.continuation] for request in item.requests]
        content = [item.id, item.group, asked, item.prompt, dict(item.content)]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _batches(items: Mapping[str, Item], most_characters: int) -> Iterator[list[str]]:
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
