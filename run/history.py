"""Reads the files of a run's folder, even if a kill or a full disk left them incomplete."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budget.extension import Extension, recorded_extension
from budget.ledger import read_ledger
from common.json_io import is_number, mapping, number
from common.safe_read import JSON_BYTES, parse_json, read_bytes

Records = list[dict[str, Any]]
METRICS_BYTES = 1 << 30  # about four million points
MOST_LINES = 50_000  # ten times what train.py writes, and enough for every chart; longer files are thinned


@dataclass(frozen=True)
class Run:
    """The content of a run's folder. Files that are missing or unreadable are empty here."""

    name: str
    plan: dict[str, Any]
    result: dict[str, Any]
    status: dict[str, Any]
    ledger: dict[str, float]
    tasks: dict[str, Any]  # of eval.tasks: the number of items of each evaluation, and the score of guessing
    config: str
    points: Records  # one per logged training step
    validation: Records
    events: Records

    def part(self, name: str) -> dict[str, Any]:
        """A section of result.json."""
        return mapping(self.result.get(name))

    @property
    def last(self) -> dict[str, Any]:
        """The last logged training step."""
        return self.points[-1] if self.points else {}

    @property
    def outcome(self) -> str:
        """The status of the run, e.g. "finished"."""
        # status.json still says "running" while a run that has its result writes this page.
        status = self.status.get("status")
        return str(status if status not in (None, "running") else self.result.get("status") or status or "unknown")

    @property
    def continued_after_result(self) -> bool:
        """Whether the run was extended and has trained further since it wrote its result."""
        return number(self.last.get("step"), 0) > number(self.part("spent").get("steps"), math.inf)


def read_metrics(folder: Path) -> Records:
    """The lines of folder/metrics.jsonl in order, without the points that a resume or a rollback discarded.

    {"event": "resume", "step": S} means that a killed run continued from its checkpoint of step S, so earlier lines with a
    later step were trained again; "setback" means the same for a run that diverged. All events are kept. Unreadable lines (a
    kill cuts the last one short) are left out; a missing file gives no lines. From a very long file, the events, the
    evaluations, the last line and evenly spaced others are read.
    """
    try:
        lines = read_bytes(folder / "metrics.jsonl", METRICS_BYTES).splitlines()
    except (OSError, ValueError):
        return []
    kept: Records = []
    limit = math.inf
    for record in reversed(_json_objects(_thinned(lines))):
        if "event" in record:
            kept.append(record)
            if record["event"] in ("resume", "setback"):
                limit = min(limit, number(record.get("step"), math.inf))
        elif number(record.get("step"), 0) <= limit:
            kept.append(record)
    kept.reverse()
    return kept


def _thinned(lines: list[bytes]) -> list[bytes]:
    stride = -(-len(lines) // MOST_LINES)
    rare = (b'"event"', b'"val_loss"')
    return [
        line
        for place, line in enumerate(lines, 1 - len(lines))
        if place % stride == 0 or any(word in line for word in rare)
    ]


def evaluations(records: Records) -> Records:
    """The interim evaluations. The final one is left out, because it covers more text and would make the curve jump."""
    return [record for record in records if "event" not in record and "val_loss" in record]


def last_logged_step(folder: Path) -> float:
    """The last step that any process of the run logged, rolled back or not; -1 without one."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return -1.0
    return max((number(r.get("step"), -1.0) for r in _json_objects(lines) if "event" not in r), default=-1.0)


def read_run(folder: Path, records: Records) -> Run:
    """Read a run's folder; `records` is the result of `read_metrics`."""
    result = _read_json(folder / "result.json")
    ledger = mapping(result.get("ledger_s")) or mapping(_read_json(folder / "ledger.json").get("ledger_s"))
    return Run(
        name=folder.absolute().name,
        plan=_read_json(folder / "plan.json"),
        result=result,
        status=_read_json(folder / "status.json"),
        tasks=mapping(_read_json(folder / "tasks.json").get("tasks")),
        ledger={str(k): float(v) for k, v in ledger.items() if is_number(v) and v >= 0},
        config=_read_text(folder / "config.yaml"),
        points=[r for r in records if "event" not in r and "loss" in r],
        validation=evaluations(records),
        events=[r for r in records if "event" in r],
    )


def column(records: Records, key: str) -> np.ndarray:
    """The values of `key` in all records, float64 (n,); NaN for a record without a number there."""
    values = [record.get(key) for record in records]
    try:
        return np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        return np.array([number(value, math.nan) for value in values], dtype=np.float64)


def finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of which both coordinates are finite."""
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good]


def median(records: Records, key: str) -> float | None:
    """The median of the finite values of `key`; None without any."""
    values = column(records, key)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def read_result(folder: Path) -> dict[str, Any]:
    """The content of result.json, or an empty dict if it is missing or cannot be read."""
    return _read_json(folder / "result.json")


def extension_of_run(folder: Path) -> Extension:
    """What was added to the budget of the run so far."""
    return recorded_extension(read_ledger(folder / "ledger.json") or read_result(folder))


def final_status(folder: Path, extension: Extension) -> dict[str, Any] | None:
    """The content of status.json if the run is finished or diverged and nothing is left to do, else None.

    A finished run continues if `extension` adds more to its budget than was added before.
    """
    status = _read_json(folder / "status.json")
    if status.get("status") not in ("finished", "diverged"):
        return None
    extended = extension.exceeds(extension_of_run(folder))
    return None if status["status"] == "finished" and extended else status


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, JSON_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def _read_json(path: Path) -> dict[str, Any]:
    return _json_object(_read_text(path).encode()) or {}


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _json_objects(lines: list[bytes]) -> Records:
    if lines and not lines[-1].endswith(b"}"):
        lines = lines[:-1]
    try:
        values = parse_json(b"[" + b",".join(lines) + b"]")  # twice as fast as line by line
    except ValueError:
        values = [_json_object(line) for line in lines]
    return [value for value in values if isinstance(value, dict)]
