"""Finds an earlier run with the same options but a smaller budget, before a new run starts from scratch.

A run's folder is named after a hash of its options. So it is enough to read the budget of each folder, and to compare the
folder's name with the one that the present options would have with that budget.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from budget.extension import UNITS, as_duration, plain
from common.safe_read import is_amount, read_bytes
from run.directory import run_name
from run.history import extension_of_run

YAML_BYTES = 1 << 16  # ten times the config.yaml of a run
BUDGET = re.compile(r"^budget:\n((?:  .*\n){1,20})", re.M)
MOST_FOLDERS = 10_000


@dataclass(frozen=True)
class EarlierRun:
    """A run with the same options, one of whose limits is smaller.

    Attributes:
        unit: The unit of that limit.
        budget: The limits of the run by unit, without what was added later.
        missing: How much must be added to reach the new limit.
    """

    folder: Path
    unit: str
    budget: dict[str, float]
    missing: float

    @property
    def as_options(self) -> str:
        """Its limits, as on the command line."""
        return " ".join(
            f"budget.{unit}={as_duration(amount) if unit == 'hours' else plain(amount)}"
            for unit, amount in self.budget.items()
        )

    @property
    def extend(self) -> str:
        """The option that gives it the new budget."""
        if self.unit == "hours":
            return f"budget.extend={as_duration(self.missing)}"
        return f"budget.extend={plain(self.missing)}{self.unit if len(self.budget) > 1 else ''}"


def earlier_run(output_dir: Path, name: str, options: Mapping[str, Any]) -> EarlierRun | None:
    """Return the run in `output_dir` with the same options and one smaller limit, the nearest if there are several.

    `name` and `options` are those of `run_name`. A run that has not begun to train does not count, and neither does one
    whose budget was extended to the new limit already.
    """
    wanted, found = _limits(options["budget"]), []
    for folder, content in _budgets(output_dir, name):
        budget = {**options["budget"], **{unit: content.get(unit) for unit in UNITS}}
        limits = _limits(budget)
        units = [unit for unit in wanted if limits.get(unit) != wanted[unit]]
        if limits.keys() != wanted.keys() or len(units) != 1 or limits[units[0]] > wanted[units[0]]:
            continue
        if folder.name != run_name(name, {**options, "budget": budget}) or not (folder / "checkpoint").is_dir():
            continue
        (unit,) = units
        missing = _difference(unit, wanted[unit], limits[unit])
        if getattr(extension_of_run(folder), unit) < missing:
            found.append(EarlierRun(folder, unit, limits, missing))
    return min(found, key=lambda run: run.missing, default=None)


def _difference(unit: str, larger: float, smaller: float) -> float:
    """Return how much is missing, without the error of the subtraction: 4m less 3m is the number that 1m is."""
    per_unit = 3600 if unit == "hours" else 1
    return float(f"{(larger - smaller) * per_unit:.12g}") / per_unit


def _limits(budget: Mapping[str, Any]) -> dict[str, float]:
    return {unit: budget[unit] for unit in UNITS if is_amount(budget.get(unit))}


def _budgets(output_dir: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folders NAME-HASH with the budget in their config.yaml."""
    named = re.compile(re.escape(name) + "-[0-9a-f]{8}")
    try:
        with os.scandir(output_dir) as entries:
            folders = [Path(entry.path) for entry in islice(entries, MOST_FOLDERS) if named.fullmatch(entry.name)]
    except OSError:
        return
    for folder in folders:
        try:
            head = BUDGET.search(read_bytes(folder / "config.yaml", YAML_BYTES).decode(errors="replace"))
        except (OSError, ValueError):
            continue
        if head and (content := _parsed(head[1])):
            yield folder, content


@lru_cache
def _parsed(block: str) -> dict[str, Any]:
    """Parse the options of a budget in YAML; empty for anything else. Many runs have the same few budgets."""
    try:
        content = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
