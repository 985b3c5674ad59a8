"""The scripts of docs/clock.md stop in time, end the schedule at its floor, and keep their budget over a kill.

The fast tests replace the clock by one that advances a fixed amount at each reading, so they do not depend on the speed of
the machine. The slow ones run the scripts as they are, and kill them.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from budget.clock import BudgetClock
from budget.ledger import read_ledger
from tests.conftest import ROOT

EXAMPLES = ROOT / "docs" / "examples"
SCRIPTS = {"clock_pytorch": "torch", "clock_lightning": "lightning", "clock_transformers": "accelerate"}
TICK_S = 0.01  # seconds between two readings of the clock
BUDGET_S = 10.0


class Ticking:
    """A clock that advances by TICK_S at each reading."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += TICK_S
        return self.now_s


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports an example with a ticking clock."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> Any:
        pytest.importorskip(SCRIPTS[name])
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "BudgetClock", partial(BudgetClock, clock=Ticking(), started=0.0))
        return module

    return load


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_stops_in_time_with_its_schedule_at_the_end(
    name: str, example: Callable[[str], Any], tmp_path: Path
) -> None:
    example(name).main(BUDGET_S / 3600, tmp_path)
    result = result_of(tmp_path)
    assert result["steps"] > 20
    assert result["overshoot_s"] <= 0
    assert result["progress"] > 0.9
    assert result["learning_rate"] < 0.1 * 3e-3
    assert result["loss"] < 4.5  # nats per byte; 5.5 before training


def test_a_killed_loop_goes_on_with_the_budget_that_is_left(
    example: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("clock_pytorch")
    beats: list[Any] = []
    batch_of = module.training_batch

    class Beat(module.Heartbeat):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            beats.append(self)

    def killed_at_step_70(step: int) -> Any:
        if step == 70:
            beats[0].write(clean=False)
            beats[0]._stop.set()  # the thread dies with the process
            raise KeyboardInterrupt
        return batch_of(step)

    monkeypatch.setattr(module, "Heartbeat", Beat)
    monkeypatch.setattr(module, "training_batch", killed_at_step_70)
    with pytest.raises(KeyboardInterrupt):
        module.main(BUDGET_S / 3600, tmp_path)
    spent = sum(read_ledger(tmp_path / "ledger.json")["ledger_s"].values())
    assert spent > 70 * TICK_S

    monkeypatch.setattr(module, "BudgetClock", partial(BudgetClock, clock=Ticking(), started=0.0))
    monkeypatch.setattr(module, "training_batch", batch_of)
    module.main(BUDGET_S / 3600, tmp_path)
    result = result_of(tmp_path)
    assert result["steps"] > 70
    assert spent < result["seconds"] <= BUDGET_S
    assert result["overshoot_s"] <= 0


def test_the_page_shows_the_scripts() -> None:
    """Every script is linked, and each line of the short loop on the page stands in the plain script."""
    page = (ROOT / "docs" / "clock.md").read_text()
    for name in SCRIPTS:
        assert f"examples/{name}.py" in page
    loop = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0]
    script = {line.split("  #")[0].strip() for line in (EXAMPLES / "clock_pytorch.py").read_text().splitlines()}
    assert {line.split("  #")[0].strip() for line in loop.splitlines()} - {"", "..."} <= script


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_killed_script_keeps_its_deadline(name: str, tmp_path: Path) -> None:
    pytest.importorskip(SCRIPTS[name])
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(90 / 3600), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(45)
    first.kill()
    first.wait()
    subprocess.run(command, env=environment, check=True)
    result = result_of(tmp_path)
    assert 44 < result["seconds"] <= 90
    assert result["overshoot_s"] <= 0
