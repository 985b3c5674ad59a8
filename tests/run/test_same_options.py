"""An earlier run with the same options and a smaller budget is found by the names of the folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.compose import as_yaml
from common.units import parse_duration
from config import BudgetConfig, Config, identity
from run import same_options
from run.directory import run_name
from run.same_options import EarlierRun, earlier_run


def made(outputs: Path, config: Config) -> Path:
    """The folder that a run with these options leaves."""
    folder = outputs / run_name(config.name, identity(config))
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "config.yaml").write_text(as_yaml(config))
    return folder


def found(outputs: Path, config: Config) -> EarlierRun | None:
    return earlier_run(outputs, config.name, identity(config))


@pytest.mark.parametrize(
    ("before", "now", "options", "extend"),
    [
        ({"steps": 300}, {"steps": 400}, "budget.steps=300", "budget.extend=100"),
        ({"hours": 0.1}, {"hours": 0.3}, "budget.hours=6m", "budget.extend=12m"),
        ({"tokens": 1e9}, {"tokens": 1e10}, "budget.tokens=1000000000", "budget.extend=9000000000"),
        ({"flops": 1e18}, {"flops": 1.5e18}, "budget.flops=1e18", "budget.extend=5e17"),
        ({"steps": 300, "hours": 1.0}, {"steps": 400, "hours": 1.0}, "budget.hours=1h budget.steps=300",
         "budget.extend=100steps"),
    ],
)  # fmt: skip
def test_a_larger_budget_of_the_same_options_names_the_earlier_run(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], options: str, extend: str
) -> None:
    folder = made(tmp_path, Config(budget=BudgetConfig(**before)))
    answer = found(tmp_path, Config(budget=BudgetConfig(**now)))
    assert answer is not None
    assert (answer.folder, answer.as_options, answer.extend) == (folder, options, extend)


def test_other_options_smaller_budgets_and_other_limits_are_not_named(tmp_path: Path) -> None:
    made(tmp_path, Config(budget=BudgetConfig(steps=300)))
    made(tmp_path, Config(budget=BudgetConfig(steps=350), seed=2))
    made(tmp_path, Config(budget=BudgetConfig(steps=350), name="other"))
    for budget in ({"steps": 200}, {"hours": 1.0}, {"steps": 400, "hours": 1.0}, {"steps": 400, "counts": "training"}):
        assert found(tmp_path, Config(budget=BudgetConfig(**budget))) is None, budget
    assert found(tmp_path / "nowhere", Config(budget=BudgetConfig(steps=400))) is None


def test_a_run_that_was_extended_far_enough_is_not_named(tmp_path: Path) -> None:
    folder = made(tmp_path, Config(budget=BudgetConfig(steps=300)))
    (folder / "result.json").write_text(json.dumps({"extended": {"steps": 100}}))
    assert found(tmp_path, Config(budget=BudgetConfig(steps=400))) is None
    answer = found(tmp_path, Config(budget=BudgetConfig(steps=450)))
    assert answer is not None
    assert answer.extend == "budget.extend=150"


def test_hours_that_were_added_as_a_duration_are_enough(tmp_path: Path) -> None:
    """4m less 3m is not 1m in binary fractions of an hour."""
    hours = {text: parse_duration(text) for text in ("1m", "3m", "4m", "5m")}
    folder = made(tmp_path, Config(budget=BudgetConfig(hours=hours["3m"])))
    (folder / "result.json").write_text(json.dumps({"extended": {"hours": hours["1m"]}}))
    assert found(tmp_path, Config(budget=BudgetConfig(hours=hours["4m"]))) is None
    answer = found(tmp_path, Config(budget=BudgetConfig(hours=hours["5m"])))
    assert answer is not None
    assert (answer.as_options, answer.extend) == ("budget.hours=3m", "budget.extend=2m")


@pytest.mark.parametrize(
    "text", ["", "budget:\n  [[[[\n", "budget:\n" + "  " + "[" * 9000 + "\n", "budget:\n  steps: x\n"]
)
def test_an_unreadable_configuration_is_passed_over(tmp_path: Path, text: str) -> None:
    folder = made(tmp_path, Config(budget=BudgetConfig(steps=300)))
    (folder / "config.yaml").write_text(text)
    assert found(tmp_path, Config(budget=BudgetConfig(steps=400))) is None


def test_of_a_thousand_folders_few_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing YAML takes most of the time, and the runs of a sweep have the same budget."""
    config = Config(budget=BudgetConfig(steps=300))
    text, nearest = as_yaml(config), made(tmp_path, replace(config, budget=BudgetConfig(steps=390)))
    for number in range(1000):
        folder = tmp_path / f"run-{number:08x}"
        folder.mkdir()
        (folder / "config.yaml").write_text(text)
    parsed: list[str] = []
    load = same_options.yaml.safe_load
    same_options._parsed.cache_clear()
    monkeypatch.setattr(same_options.yaml, "safe_load", lambda block: parsed.append(block) or load(block))
    answer = found(tmp_path, Config(budget=BudgetConfig(steps=400)))
    assert answer is not None
    assert answer.folder == nearest
    assert len(parsed) == 2
