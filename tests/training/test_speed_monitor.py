"""The speed monitor and the progress line, with simulated step times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from budget.clock import ACCOUNTS, BudgetClock, Limits, StepCost
from device.host_monitor import Gpu, HostSnapshot
from model.config import Shape
from run.history import read_metrics
from run.metrics import Metrics
from training.metrics import show_progress
from training.speed_monitor import SpeedMonitor, slowdowns

BATCH = 1000


class Run:
    """A simulated run under a speed monitor."""

    def __init__(self, limit_s: float | None = 3600.0, snapshot: Callable[[], HostSnapshot] | None = None) -> None:
        self.warnings: list[str] = []
        self.written: list[dict[str, Any]] = []
        self.seconds, self.waited, self.step, self.tokens = 0.0, 0.0, 0, 0
        self.monitor = SpeedMonitor(
            limit_s, snapshot or (lambda: HostSnapshot(self.seconds)), self.warnings.append, self.written.append
        )

    def go(self, seconds: float, step_s: float, waiting: float = 0.0) -> None:
        """Train for `seconds` with steps of `step_s` seconds, of which the share `waiting` waits for data."""
        end = self.seconds + seconds
        while self.seconds < end - 1e-9:
            self.seconds += step_s
            self.waited += waiting * step_s
            self.step, self.tokens = self.step + 1, self.tokens + BATCH
            accounts = dict.fromkeys(ACCOUNTS, 0.0) | {"train": self.seconds - self.waited, "data": self.waited}
            self.monitor.after_step(self.step, self.tokens, accounts)

    @property
    def events(self) -> list[str]:
        return [record["event"] for record in self.written]


def test_a_steady_run_has_no_warnings() -> None:
    run = Run()
    run.go(600, 0.1)
    assert (run.warnings, run.written) == ([], [])


def test_a_slowdown_is_reported_once_and_its_end_once() -> None:
    run = Run()
    run.go(120, 0.1)
    run.go(300, 0.125)
    assert len(run.warnings) == 1
    assert "8k tokens/s instead of 10k (-20%)" in run.warnings[0]
    run.go(120, 0.1)
    assert run.events == ["slow", "fast again"]
    assert "10k tokens/s" in run.warnings[1]
    # a fifth of 300 s, give or take the time to notice
    assert run.written[1]["lost_s"] == pytest.approx(60, abs=8)
    assert run.written[0]["step"] == pytest.approx(1200, abs=200)


@pytest.mark.parametrize(("slower", "noticed"), [(1.10, False), (1.16, False), (1.20, True), (3.0, True)])
def test_a_slowdown_begins_at_fifteen_percent(slower: float, noticed: bool) -> None:
    run = Run()
    run.go(120, 0.1)
    run.go(120, 0.1 * slower)
    assert bool(run.warnings) == noticed


def test_a_slowdown_is_noticed_within_twenty_seconds() -> None:
    run = Run()
    run.go(120, 0.1)
    run.go(21, 0.2)
    assert run.events == ["slow"]


def test_a_wavering_slowdown_is_reported_once() -> None:
    run = Run()
    run.go(120, 0.1)
    for _ in range(2):
        run.go(60, 0.15)
        run.go(60, 0.1)
    assert run.events == ["slow", "fast again"] * 2
    wavering = Run()
    wavering.go(120, 0.1)
    for _ in range(10):
        wavering.go(20, 0.1 / 0.83)
        wavering.go(20, 0.1 / 0.87)
    assert wavering.events == ["slow"]


def test_a_single_slow_step_is_not_a_slowdown() -> None:
    run = Run()
    run.go(120, 0.1)
    for _ in range(5):
        run.go(4, 4.0)
        run.go(30, 0.1)
    assert run.events == []


def test_the_reference_waits_for_a_steady_minute() -> None:
    """While caches warm up and clocks settle, the speed is no reference yet."""
    run = Run()
    for step_s in (0.30, 0.20, 0.15, 0.12):
        run.go(10, step_s)
    run.go(200, 0.1)
    assert run.events == []
    run.go(60, 0.12)
    assert run.events == ["slow"]
    assert "instead of 10k" in run.warnings[0]


def test_steps_longer_than_a_span_are_monitored() -> None:
    run = Run(limit_s=None)
    run.go(600, 20.0)
    run.go(200, 40.0)
    assert run.events == ["slow"]


def test_a_short_budget_is_monitored_after_its_first_tenth() -> None:
    run = Run(limit_s=180.0)
    run.go(25, 0.05)
    run.go(20, 0.1)
    assert run.events == ["slow"]
    tiny = Run(limit_s=18.0)
    tiny.go(5, 0.05)
    tiny.go(5, 0.1)
    assert tiny.events == []  # no steady reference yet


def test_waiting_for_data_is_a_reason() -> None:
    run = Run()
    run.go(120, 0.1, waiting=0.01)
    run.go(60, 0.2, waiting=0.5)
    assert "waiting for data takes 50% of the time instead of 1%" in run.warnings[0]
    assert run.written[0]["waiting"] == pytest.approx(0.5)


def test_other_processes_clocks_and_heat_are_reasons() -> None:
    """Measured since the speed fell, not since the start of the run."""
    run: Run

    def snapshot() -> HostSnapshot:
        busy = max(0.0, run.seconds - 120)
        fast = run.seconds <= 120
        gpu = Gpu(1410 if fast else 900, 60 if fast else 88, () if fast else ("heat",), 1)
        return HostSnapshot(run.seconds, 0.5 if fast else 3.0, 2500, 0.0, 0.0, {7: ("cc1plus", 5 + 1.5 * busy)}, gpu)

    run = Run(snapshot=snapshot)
    run.go(120, 0.1)
    run.go(60, 0.2)
    line = run.warnings[0]
    assert "other processes take 1.5 cores instead of 0.0 (cc1plus [7] 1.5)" in line
    assert "load average 3.0 instead of 0.5" in line
    assert "GPU at 900 MHz instead of 1410 and 88 °C" in line
    assert "GPU slowed down by heat" in line
    assert run.written[0]["why"] == [reason for reason in run.written[0]["why"] if reason in line]


def test_an_unexplained_slowdown_says_so() -> None:
    run = Run()
    run.go(120, 0.1)
    run.go(60, 0.2)
    assert "no reason was found" in run.warnings[0]


def test_the_record_holds_the_slowdowns(tmp_path: Path) -> None:
    run = Run()
    metrics = Metrics(tmp_path / "metrics.jsonl", print)
    run.monitor._write = metrics.write
    run.go(120, 0.1)
    run.go(60, 0.2)
    run.go(60, 0.1)
    run.go(60, 0.2)
    metrics.close()
    first, second = slowdowns(read_metrics(tmp_path))
    assert (first["tokens_per_second"], first["usual_tokens_per_second"]) == (5000, 10000)
    assert first["from_step"] < first["to_step"] < second["from_step"]
    assert first["lost_s"] == pytest.approx(30, abs=8)
    assert (second["to_step"], second["lost_s"]) == (None, None)
    assert json.dumps([first, second])
    assert slowdowns([]) == []


def eta_errors(step_times: Iterable[float], limits: Limits) -> tuple[list[float], BudgetClock, float]:
    """The relative errors of the progress line's ETA at each step, the clock, and the seconds at the end."""
    time = [0.0]
    clock = BudgetClock(limits, clock=lambda: time[0], started=0.0)
    clock.pace.add(1.0)
    session: Any = SimpleNamespace(clock=clock)
    state = SimpleNamespace(step=0, tokens=0, flops=0.0)
    trainer: Any = SimpleNamespace(
        state=state,
        cost=StepCost(1, 1.0),
        shape=Shape(1, 1, 32, 16, 64),
        device=SimpleNamespace(peak_flops=1e12),
        validation_loss=None,
        optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]),
    )
    shown: list[tuple[float, float]] = []
    bar: Any = SimpleNamespace(
        is_due=lambda progress: True, update=lambda status: shown.append((time[0], status.eta_s))
    )
    for seconds in step_times:
        left, _ = clock.steps_left(state.step, state.tokens, state.flops, trainer.cost)
        if left == 0 or clock.progress >= 1:
            break
        clock.advance(left)
        with clock.step():
            time[0] += seconds
        state.step, state.tokens = state.step + 1, state.tokens + 1
        show_progress(session, trainer, bar, None)
    return [abs(moment + eta - time[0]) / time[0] for moment, eta in shown], clock, time[0]


@pytest.mark.parametrize("limits", [Limits(hours=1000 / 3600), Limits(steps=1000)])
def test_after_a_slowdown_the_schedule_ends_on_its_floor_and_the_eta_is_right(limits: Limits) -> None:
    """After 300 steps of one second, steps take two: 64 steps later the ETA is right again."""
    errors, clock, end = eta_errors([1.0] * 300 + [2.0] * 2000, limits)
    assert clock.progress == 1.0
    assert max(errors[364:]) < 0.01
    if limits.hours:
        assert 996 < end <= 1000
        assert max(errors) < 0.01
