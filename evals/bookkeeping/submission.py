"""Submissions: the competition's file with the answers filled in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import MachineError, UserError, refuse
from common.json_io import write_text
from common.paths import user_path
from evals.tasks.competition import KIND, Quiz, answer_problem, item_name, read_items, read_list
from evals.tasks.generate import FreeText
from evals.tasks.task import Task

Rows = Sequence[Mapping[str, Any]]
NEEDS_ALL = "a submission needs all; leave out limit=, fraction= and skip="


def competition_rows(tasks: Sequence[Task], option: str) -> list[dict[str, Any]]:
    """Return all items of the competition's file that `tasks` were loaded from.

    Raises UserError, which names `option`, if there is no such task, or if they are from several files.
    """
    paths = {str(task.options.path) for task in tasks if task.options.kind == KIND}
    if len(paths) != 1:
        found = f"they are from {len(paths)} files" if paths else "none was given"
        raise UserError(
            f"{option} needs the tasks of one competition's file, but {found}: tasks=[{KIND}] task.path=FILE"
        )
    return read_items(user_path(paths.pop()))


def refuse_incomplete(path: Path, rows: Rows, ids: Collection[str]) -> None:
    """Raise UserError if items of `rows` are not among the `ids` to be answered."""
    missing = [row["id"] for row in rows if str(row["id"]) not in ids]
    if missing:
        raise UserError(
            f"submission={path}: {len(missing):,} of {len(rows):,} items have no answer, e.g. {item_name(missing[0])};"
            f" {NEEDS_ALL}"
        )


def write_submission(path: Path, rows: Rows, answers: Mapping[str, int | str]) -> None:
    """Write the items with their `answer` replaced by that in `answers`, a choice_id or a text by id. Other keys are unchanged.

    The file is written atomically. Raises UserError if an item has no answer, MachineError if the disk refuses.
    """
    refuse_incomplete(path, rows, answers.keys())
    filled = [{**row, "answer": answers[str(row["id"])]} for row in rows]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(filled, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written ({error.strerror}); the answers are kept: give another submission=FILE and repeat"
        ) from None


def read_answers(path: Path, rows: Rows) -> dict[str, int | str]:
    """Return the answers of a submission by id, checked against the items.

    Raises UserError with a line for each of the first problems: an item that is missing, unknown or there twice, of another
    task_type, or with an answer that its task_type cannot have.
    """
    entries = read_list(path, "answers")
    items = {str(row["id"]): row for row in rows}
    ids = Counter(str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry)
    problems = []
    for number, entry in enumerate(entries, 1):
        if problem := _problem_of_entry(entry, items, ids):
            own = entry.get("id") if isinstance(entry, dict) else None
            problems.append(f"{path}: {item_name(own, number)}: {problem}")
    problems += [f"{path}: {item_name(row['id'])} is missing" for row in rows if str(row["id"]) not in ids]
    refuse(problems)
    return {str(entry["id"]): entry["answer"] for entry in entries}


def marks_of_submission(tasks: Sequence[Task], path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the marks of the answers in a submission, by the name of the task, in the order of its items.

    Raises UserError as `competition_rows` and `read_answers` do.
    """
    answers = read_answers(path, competition_rows(tasks, "answers"))
    return {
        task.name: [task.judge(item, answers[item.id]) for item in task.items]  # type: ignore[arg-type]
        for task in tasks
        if isinstance(task, Quiz | FreeText) and task.options.kind == KIND
    }


def _problem_of_entry(entry: Any, items: Mapping[str, Mapping[str, Any]], ids: Counter[str]) -> str | None:
    """Return what is wrong with an entry of a submission, or None."""
    if not isinstance(entry, dict):
        return "not an object"
    if missing := [key for key in ("id", "task_type", "answer") if key not in entry]:
        return f"no key {' and no key '.join(missing)}"
    if str(entry["id"]) not in items:
        return "the competition's file has no such item"
    if ids[str(entry["id"])] > 1:
        return f"this id occurs {ids[str(entry['id'])]} times, but ids must be unique"
    item = items[str(entry["id"])]
    if entry["task_type"] != item["task_type"]:
        return f"task_type is {entry['task_type']!r}, but that of the item is {item['task_type']!r}"
    return answer_problem(item, entry["answer"])
