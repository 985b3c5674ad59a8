"""An evaluation: tasks are loaded, answered by their models, and marked; the figures are compared and written.

An evaluation is a dict of JSON values, as in evaluation.json:

- checkpoint: checkpoint= as typed, None without it; answers: answers= as typed, or None
- note: how far the run of the checkpoint was, empty for a finished one
- models: those that answered, by checkpoint as typed: sha256 of the weights, tokenizer (its fingerprint), note, steps,
  parameters, precision, prefix_token (the id of end-of-text)
- options: limit, fraction, skip, reference_parameters
- tasks: by name:
    - those of `run_task.figures_of`: kind, items, score, standard_error, interval, chance, statistic, and the figures of the kind
    - available: items in the files, before limit= and fraction=
    - options: the options of the task, without those that are null
    - checkpoint: the model that answered; None for answers from a file
    - computed: items that this evaluation computed, the others were known; seconds: how long they took
    - size_adjusted: the score adjusted by size; only with reference_parameters=
    - scaled_score, scaled_gain: points of percent per million parameters (evals/bookkeeping/scaled_score.py); only minimal pairs
- warnings: lines for the reader
- comparison: None without baseline=, else a dict (evals/bookkeeping/baseline.py):
    - baseline: the file; kept: whether this evaluation was kept there as the baseline (then nothing else)
    - tasks: by name: score, baseline (its score), delta, interval (of delta), ratio (score / baseline), overlay (the total with
      only the answers to this task laid over the baseline)
    - not_compared: names of the tasks that the baseline does not have; unchanged: those that only the baseline has
    - total: the sum of the ratios, where unchanged tasks count 1; None if a ratio is undefined

The marks of a task are those of `Task.mark`, in the order of the items. In predictions and on the report, marks of a
model's answers also have `requests` (context, continuation, logprob, tokens, bytes, greedy of each) or `prompt` and `generated`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import MachineError, UserError
from common.file_lock import try_lock
from common.json_io import finite, write_json, write_text
from common.typed import closest
from evals.bookkeeping.answers import AnswerFile
from evals.bookkeeping.baseline import Baseline
from evals.bookkeeping.scaled_score import scaled_gain, scaled_score, size_adjusted
from evals.bookkeeping.submission import marks_of_submission
from evals.pace import Pace, Pacer
from evals.run_task import (
    Processes,
    Respondent,
    Work,
    answer_prepared,
    figures_of,
    fingerprint_of,
    given_answers,
    prepare,
)
from evals.scoring import Scorer
from evals.tasks.competition import KIND as COMPETITION
from evals.tasks.registry import open_tasks
from evals.tasks.task import Answer, Generated, Item, Task, TaskOptions, thin, with_items
from run.load_model import LoadedModel, load_model
from run.report.evaluation_report import write_evaluation_report
from run.saved_model import find_model

if TYPE_CHECKING:
    import torch

LONGEST_NAME = 100  # characters of a task's name in the names of its files
MOST_LINES = 3  # numbers of lines in a warning


def load_tasks(entries: Mapping[str, Mapping[str, Any]], skip: Sequence[str] = ()) -> list[Task]:
    """Load the tasks of `entries`, names with options of `TaskOptions`, without those named in `skip`.

    Raises UserError with the problems of all files, for a name in `skip` that no task has, and for tasks of equal names.
    """
    tasks: list[Task] = []
    problems: list[str] = []
    for name in entries:
        if name in skip:
            continue
        try:
            tasks += open_tasks(name, TaskOptions.of(entries[name]))
        except UserError as error:
            problems += error.messages
    if problems:
        raise UserError(*problems)
    names = [task.name for task in tasks]
    _refuse_unknown("skip", skip, [*names, *entries])
    if double := [name for name in names if names.count(name) > 1]:
        raise UserError(f"tasks: two tasks are named {double[0]!r}; leave one out")
    kept = [task for task in tasks if task.name not in skip]
    if not kept:
        raise UserError(f"skip={list(skip)} leaves no task; tasks: {', '.join(dict.fromkeys([*names, *entries]))}")
    if empty := [task.name for task in kept if not task.items]:
        raise UserError(*(f"{name}: no items to score" for name in empty))
    return kept


def select(task: Task, limit: int | None, fraction: float) -> Task:
    """Return the task with `fraction` of its items (`thin`), at least one, and of these the first `limit` of each group.

    lm-evaluation-harness limits each paradigm of BLiMP in the same way, because there each is a task.
    """
    items = thin(task.items, max(1, round(fraction * len(task.items))))
    counts = Counter[str | None]()
    chosen = []
    for item in items:
        counts[item.group] += 1
        if limit is None or counts[item.group] <= limit:
            chosen.append(item)
    return with_items(task, chosen)


def route_tasks(tasks: Sequence[Task], route: Mapping[str, str], checkpoint: str) -> dict[str, list[Task]]:
    """Return the tasks that each checkpoint answers, `checkpoint` first.

    Raises UserError for a name in `route` without a task, and for a checkpoint in which `find_model` finds no model.
    """
    _refuse_unknown("route", route, [task.name for task in tasks])
    for name, each in route.items():
        find_model(each, f"route.{name}")
    routed: dict[str, list[Task]] = {checkpoint: []}
    for task in tasks:
        routed.setdefault(route.get(task.name, checkpoint), []).append(task)
    return {each: its for each, its in routed.items() if its}


class Models:
    """Loads models by the name of their checkpoint, and keeps one at a time."""

    def __init__(
        self,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        precision: str,
        micro_batch: int,
    ) -> None:
        self._device, self._autocast, self._precision, self._micro_batch = device, autocast, precision, micro_batch
        self._checkpoint: str | None = None
        self._loaded: LoadedModel | None = None

    def load(self, checkpoint: str) -> LoadedModel:
        """Return the model of a checkpoint. Raises UserError if it cannot be loaded."""
        if self._loaded is None or checkpoint != self._checkpoint:
            self._loaded = None  # frees the memory of the model before
            self._checkpoint, self._loaded = checkpoint, load_model(checkpoint, self._device)
        return self._loaded

    def respondent(self, checkpoint: str) -> tuple[Respondent, dict[str, Any]]:
        """Return a model that answers items, and what an evaluation says about it (see the module's `models`)."""
        loaded = self.load(checkpoint)
        scorer = Scorer(loaded.model, loaded.tokenizer, self._device, self._autocast, self._micro_batch)
        about = {
            "sha256": loaded.about["sha256"],
            "tokenizer": loaded.tokenizer.fingerprint,
            "note": loaded.note,
            "steps": loaded.about.get("steps"),
            "parameters": sum(each.numel() for each in loaded.model.parameters()),
            "precision": self._precision,
            "prefix_token": loaded.tokenizer.eot,
        }
        fingerprint = fingerprint_of(about["sha256"], loaded.tokenizer, self._precision)
        return Respondent(scorer, fingerprint), about


class Folder:
    """The files of an evaluation, which one process writes.

    Attributes:
        path: The folder; None for an evaluation that keeps no files.
        writes: Whether this process is the one that writes.
    """

    def __init__(self, path: Path | None, writes: bool) -> None:
        self.path, self.writes = path, writes

    @classmethod
    @contextmanager
    def opened(cls, path: Path | None, writes: bool) -> Iterator[Folder]:
        """Lock the folder, so that no other evaluation writes it. Raises UserError if one does, or if it cannot be written."""
        if path is None or not writes:
            yield cls(path, writes)
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = try_lock(path / "lock")
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); choose another folder with folder=FOLDER"
            ) from None
        if isinstance(lock, str):
            raise UserError(
                f"{path} is being written by another evaluation ({lock}); wait, or choose another with folder=FOLDER"
            )
        with lock:
            yield cls(path, writes)

    def answers(self, task: str) -> AnswerFile:
        """The stored answers of a task."""
        return AnswerFile(self.path and self.path / answers_name(task), self.writes)

    def write(
        self,
        evaluation: dict[str, Any],
        predictions: Mapping[str, Sequence[dict[str, Any]]],
        baseline: Baseline | None = None,
    ) -> None:
        """Write evaluation.json, TASK.predictions.jsonl and report.html, each atomically.

        Raises MachineError if the disk refuses.
        """
        if self.path is None or not self.writes:
            return
        try:
            for name, lines in predictions.items():
                text = "".join(dumps(finite(line), ensure_ascii=False) + "\n" for line in lines)
                write_text(self.path / f"{file_name(name)}.predictions.jsonl", text)
            write_json(self.path / "evaluation.json", evaluation)
            earlier = {"evaluation": baseline.evaluation, "marks": baseline.marks} if baseline else None
            write_evaluation_report(self.path / "report.html", evaluation, predictions, earlier)
        except OSError as error:
            raise MachineError(
                f"{error.filename or self.path} cannot be written ({error.strerror}); the answers are kept, and the same command"
                " goes on from them"
            ) from None


def file_name(task: str) -> str:
    """The name of a task as the beginning of a file's name. Where characters were replaced, a hash keeps names different."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", task)[:LONGEST_NAME].lstrip(".")
    return plain if plain == task else f"{plain}-{hashlib.sha256(task.encode('utf-8', 'replace')).hexdigest()[:8]}"


def answers_name(task: str) -> str:
    """The name of the file with the stored answers of a task."""
    return f"{file_name(task)}.answers.jsonl"


@dataclass(frozen=True)
class Answered:
    """The result of one task.

    Attributes:
        figures: As under `tasks` of an evaluation.
        marks: In the order of the items.
        predictions: The marks with what the model was asked.
        warnings: Lines for the reader.
    """

    figures: dict[str, Any]
    marks: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    warnings: list[str]


def answer_tasks(
    routed: Mapping[str, Sequence[Task]],
    models: Models,
    folder: Folder,
    show: Callable[[Pace], None],
    stop: Callable[[], None],
    processes: Processes,
) -> tuple[dict[str, Answered], dict[str, dict[str, Any]]]:
    """Let each checkpoint answer its tasks.

    Args:
        routed: The tasks of each checkpoint, from `route_tasks`.
        show: Called before the first batch of items and after each.
        stop: Called before each batch; it may raise an exception to end the evaluation.
        processes: They share the work, see `answer_prepared`.

    Returns the results by the name of the task, and the models by checkpoint (see the module's `models`).
    """
    pacer = Pacer([task for tasks in routed.values() for task in tasks])
    answered, about = {}, {}
    for checkpoint, tasks in routed.items():
        respondent, about[checkpoint] = models.respondent(checkpoint)
        for work in prepare_tasks(tasks, respondent, folder):
            result = answer_task(work, respondent, pacer, show, stop, processes)
            answered[work.task.name] = replace(result, figures=result.figures | {"checkpoint": checkpoint})
        del respondent
    return answered, about


def prepare_tasks(tasks: Sequence[Task], respondent: Respondent, folder: Folder) -> list[Work]:
    """Prepare all tasks of a model. Raises UserError with the problems of all of them, before the first is answered."""
    prepared: list[Work] = []
    problems: list[str] = []
    for task in tasks:
        try:
            prepared.append(prepare(task, respondent, folder.answers(task.name)))
        except UserError as error:
            problems += error.messages
    if problems:
        raise UserError(*problems)
    return prepared


def answer_task(
    work: Work,
    respondent: Respondent,
    pacer: Pacer,
    show: Callable[[Pace], None],
    stop: Callable[[], None],
    processes: Processes,
) -> Answered:
    """Let a model answer the missing items of a task, and mark all answers."""
    task, answers = work.task, work.answers
    pacer.begin(task.name)
    answer_prepared(work, respondent, lambda items: show(pacer.update(items)), stop, processes)
    given = given_answers(task, answers, respondent.fingerprint)
    marks = [task.mark(item, answer) for item, answer in zip(task.items, given, strict=True)]
    predictions = [{**mark, **asked(item, answer)} for mark, item, answer in zip(marks, task.items, given, strict=True)]
    timing = {"computed": pacer.computed(task.name), "seconds": pacer.seconds(task.name)}
    return Answered(figures_of(task, marks) | timing, marks, predictions, _unreadable(answers))


def answered_by_file(tasks: Sequence[Task], path: Path) -> dict[str, Answered]:
    """Return the results of a submission to a competition, in which no model takes part. Raises UserError if it is not valid."""
    marks = marks_of_submission(tasks, path)
    given = {"computed": 0, "seconds": 0.0, "checkpoint": None}
    return {
        task.name: Answered(figures_of(task, marks[task.name]) | given, marks[task.name], marks[task.name], [])
        for task in tasks
    }


def answers_of(tasks: Sequence[Task], answered: Mapping[str, Answered]) -> dict[str, Any]:
    """Return the answers to the items of a competition by id."""
    marks = [mark for task in tasks if task.options.kind == COMPETITION for mark in answered[task.name].marks]
    return {mark["id"]: mark["answer"] for mark in marks}


def asked(item: Item, answer: Answer) -> dict[str, Any]:
    """What a model was asked about an item, and what it said to it, for a file of predictions."""
    if isinstance(answer, Generated):
        return {"prompt": item.prompt, "generated": answer.text}
    return {
        "requests": [
            {
                "context": request.context,
                "continuation": request.continuation,
                "logprob": score.logprob,
                "tokens": score.tokens,
                "bytes": score.bytes,
                "greedy": score.greedy,
            }
            for request, score in zip(item.requests, answer, strict=True)
        ]
    }


def adjust_for_size(tasks: Mapping[str, dict[str, Any]], models: Mapping[str, Any], reference: float) -> list[str]:
    """Add `size_adjusted` to the figures of tasks that a model answered. Returns a warning for each model above the reference."""
    for figures in tasks.values():
        if figures["checkpoint"] is not None:
            parameters = models[figures["checkpoint"]]["parameters"]
            figures["size_adjusted"] = size_adjusted(figures["score"], parameters, reference)
    return [
        f"{checkpoint} has {about['parameters']:,} parameters, more than reference_parameters={reference:,.0f}: its adjusted"
        " scores are less than half of its scores"
        for checkpoint, about in models.items()
        if about["parameters"] > reference
    ]


def evaluation_of(
    tasks: Sequence[Task],
    available: Mapping[str, int],
    answered: Mapping[str, Answered],
    models: Mapping[str, dict[str, Any]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the evaluation as the module describes it, without a comparison.

    Args:
        available: Items in the files of each task.
        about: The values of checkpoint, answers and options.
    """
    figures = {
        task.name: {**answered[task.name].figures, "available": available[task.name], "options": options_of(task)}
        for task in tasks
    }
    for each in figures.values():
        if each["kind"] == "minimal_pairs" and each["checkpoint"] is not None and each["score"] is not None:
            parameters = models[each["checkpoint"]]["parameters"]
            each["scaled_score"] = scaled_score(each["score"], parameters)
            each["scaled_gain"] = scaled_gain(each["score"], each["chance"], parameters)
    warnings = [line for task in tasks for line in answered[task.name].warnings]
    if reference := about["options"]["reference_parameters"]:
        warnings += adjust_for_size(figures, models, reference)
    note = models[about["checkpoint"]]["note"] if about["checkpoint"] in models else ""
    return {**about, "note": note, "models": dict(models), "tasks": figures, "warnings": warnings, "comparison": None}


def options_of(task: Task) -> dict[str, Any]:
    """The options of a task as JSON values, without those that are null."""
    return {key: value for key, value in asdict(task.options).items() if value is not None}


def _refuse_unknown(option: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raise UserError for names that are not of a task."""
    listed = list(dict.fromkeys(known))
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise UserError(
            *(
                f"{option}: {name!r} is not a task; allowed: {', '.join(listed)}{closest(name, listed)}"
                for name in unknown
            )
        )


def _unreadable(answers: AnswerFile) -> list[str]:
    """The warning about lines of an answers file that were skipped."""
    if not answers.unreadable:
        return []
    lines = ", ".join(f"{number:,}" for number in answers.unreadable[:MOST_LINES])
    more = ", ..." if len(answers.unreadable) > MOST_LINES else ""
    return [
        f"{answers.path}: {len(answers.unreadable):,} damaged lines, or of another version, were skipped (line {lines}{more});"
        " what they held was computed again"
    ]
