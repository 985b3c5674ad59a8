"""The budget clock, driven by a clock that the test sets."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from budget.clock import ACCOUNTS, HEARTBEAT_S, BudgetClock, Limits, StepCost
from budget.ledger import Heartbeat, read_ledger
from common.monotonic import now, process_start
from tests.conftest import ROOT

COST = StepCost(tokens=1000, flops=1e9)


class Hand:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def make(limits: Limits, reserve: float = 0.0) -> tuple[BudgetClock, Hand]:
    hand = Hand()
    return BudgetClock(limits, clock=hand, started=100.0, reserve_s=reserve), hand


def read(path: Path) -> dict[str, Any]:
    """Return the ledger of an earlier process, which must be usable."""
    ledger = read_ledger(path)
    assert ledger is not None
    return ledger


def drive(clock: BudgetClock, hand: Hand, durations: list[float] | float, start: int = 0) -> tuple[int, list[float]]:
    """Run steps of the given durations (the last one repeats) until the clock says stop."""
    step, seen = start, []
    while True:
        left, _ = clock.steps_left(step, step * COST.tokens, step * COST.flops, COST)
        if left == 0 or clock.progress >= 1:
            return step, seen
        seen.append(clock.advance(left))
        with clock.step():
            hand.time += durations if isinstance(durations, float) else durations[min(step, len(durations) - 1)]
        step += 1


def test_steps_still_running_on_the_device_count_before_the_deadline() -> None:
    """A GPU works on one step when the host asks whether another fits."""
    ended = []
    for ahead in (0, 1):
        clock, hand = make(Limits(hours=100 / 3600))
        clock.steps_ahead = ahead
        clock.pace.add(1.0)
        ended.append(drive(clock, hand, 1.0)[0])
    assert ended == [100, 99]


def test_accounts_are_disjoint_and_sum_to_the_elapsed_time() -> None:
    clock, hand = make(Limits(hours=1))
    hand.time += 3
    with clock.charge("train"):
        hand.time += 5
        with clock.charge("data"):
            hand.time += 2
        hand.time += 1
    with clock.off_budget():
        hand.time += 50
    with clock.charge("eval"):
        hand.time += 4
    hand.time += 1
    accounts = clock.accounts()
    assert accounts == {**dict.fromkeys(ACCOUNTS, 0.0), "setup": 4, "train": 6, "data": 2, "eval": 4}
    assert clock.prepare_s == 50
    assert clock.spent_s() == 16
    assert clock.training_s() == 8


@pytest.mark.parametrize(
    ("seconds", "reserve", "durations", "unused"),
    [
        (100, 0.0, [0.3], 0.6),
        (100, 7.0, [0.3], 0.6),
        (100, 5.0, [0.2] * 200 + [0.5], 3.0),  # a slowdown
        (60, 2.0, [0.15 + 0.1 * (i * 7919 % 11) / 10 for i in range(1000)], 2.0),  # noise
    ],
)
def test_progress_reaches_one_before_the_deadline(
    seconds: float, reserve: float, durations: list[float], unused: float
) -> None:
    clock, hand = make(Limits(hours=seconds / 3600), reserve)
    clock.pace.add(durations[0])
    _, seen = drive(clock, hand, durations)
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    assert seconds - reserve - unused < clock.spent_s() <= seconds - reserve


@pytest.mark.parametrize("limits", [Limits(steps=40), Limits(hours=40.5 / 3600)])
def test_progress_of_constant_steps_is_the_share_of_the_budget(limits: Limits) -> None:
    clock, hand = make(limits)
    clock.pace.add(1.0)
    steps, seen = drive(clock, hand, 1.0)
    assert steps == 40
    assert seen == pytest.approx([(i + 1) / 40 for i in range(40)])
    assert seen[-1] == 1.0


@pytest.mark.parametrize(
    ("limits", "steps", "reason"),
    [
        (Limits(tokens=10_500), 10, "tokens"),
        (Limits(flops=7.9e9), 7, "flops"),
        (Limits(steps=5, tokens=10_500), 5, "steps"),
        (Limits(hours=4.1 / 3600, steps=100), 4, "hours"),
    ],
)
def test_the_first_limit_reached_stops_and_is_named(limits: Limits, steps: int, reason: str) -> None:
    clock, hand = make(limits)
    clock.pace.add(1.0)
    done, seen = drive(clock, hand, 1.0)
    assert (done, seen[-1]) == (steps, 1.0)
    assert clock.steps_left(done, done * COST.tokens, done * COST.flops, COST) == (0, reason)


def test_counting_training_leaves_everything_else_out() -> None:
    clock, hand = make(Limits(hours=10 / 3600, counts="training"), reserve=100.0)
    hand.time += 1000
    clock.pace.add(1.0)
    steps, _ = drive(clock, hand, 1.0)
    assert steps == 10
    assert clock.overshoot_s() == pytest.approx(0)


def test_a_resumed_run_gets_the_remaining_time() -> None:
    first, hand = make(Limits(hours=100 / 3600))
    first.pace.add(1.0)
    with first.charge("train"):
        hand.time += 40
    second, hand = make(Limits(hours=100 / 3600))
    second.carry(first.accounts(), clean=False)
    second.progress = 0.3  # the checkpoint was older than the kill
    second.pace.add(1.0)
    steps, seen = drive(second, hand, 1.0)
    assert steps == 100 - 40 - HEARTBEAT_S
    assert seen[0] > 0.3
    assert seen[-1] == 1.0
    assert second.spent_s() <= 100


def test_a_checkpoints_accounts_fill_in_for_a_lost_ledger_without_counting_twice() -> None:
    """This process's own seconds are added, and seconds that the ledger already had are not added again."""
    clock, hand = make(Limits(hours=1))
    hand.time += 5
    clock.carry({"setup": 3.0}, clean=False)
    clock.carry({"setup": 4.0, "train": 20.0}, clean=False)
    assert clock.earlier_s == 24 + HEARTBEAT_S
    assert clock.spent_s() == 5 + 24 + HEARTBEAT_S


def test_a_stall_is_idle_not_training() -> None:
    clock, hand = make(Limits(hours=1))
    for _ in range(10):
        with clock.step():
            hand.time += 0.5
    with clock.step():
        hand.time += 60.5
    assert clock.ledger["idle"] == 60
    assert clock.accounts()["train"] == pytest.approx(5.5)
    assert clock.pace.worst == 0.5


def test_a_stalled_wait_for_data_is_idle_too() -> None:
    clock, hand = make(Limits(hours=1))
    for wait_s in (*[0.0] * 10, 60.0):
        with clock.step():
            hand.time += 0.5
            with clock.charge("data"):
                hand.time += wait_s
    accounts = clock.accounts()
    assert accounts["idle"] == pytest.approx(60)
    assert 5 < accounts["train"] <= 5.5
    assert accounts["train"] + accounts["data"] == clock.training_s() == pytest.approx(5.5)
    assert clock.pace.worst == 0.5


def test_a_suspension_is_booked_as_idle_in_any_account(tmp_path: Path) -> None:
    """If not even the heartbeat read the clock, the process was suspended: this counts, but not as evaluation time."""
    clock, hand = make(Limits(hours=1))
    clock.watched = True
    with clock.charge("eval"):
        began = clock.awake_s()
        hand.time += 2
        clock.accounts()
        hand.time += 60
        assert clock.awake_s() - began == 2
    assert clock.accounts() | {"idle": 0.0} == {**dict.fromkeys(ACCOUNTS, 0.0), "eval": 2}
    assert clock.ledger["idle"] == clock.standstill_s == 60
    assert clock.spent_s() == 62
    with clock.step():
        hand.time += 60
    assert clock.standstill_s == 120
    assert clock.pace.worst == 0


@pytest.mark.parametrize(("account", "watched"), [("checkpoint", False), ("setup", True)])
def test_a_slow_disk_and_imports_do_not_count_as_a_suspension(account: str, watched: bool) -> None:
    """A slow disk can block the heartbeat too, which therefore clears `watched` while it writes."""
    clock, hand = make(Limits(hours=1))
    clock.watched = watched
    with clock.charge(account):
        hand.time += 60
    assert clock.standstill_s == 0
    assert clock.ledger[account] == 60


def test_the_heartbeat_survives_failures_and_reports_suspensions(tmp_path: Path) -> None:
    clock, hand = make(Limits(hours=1))
    said = list[str]()
    heartbeat = Heartbeat(clock, tmp_path / "ledger.json", said.append)
    writes, write = list[bool](), heartbeat.write

    def failing(clean: bool) -> None:
        writes.append(clean)
        if len(writes) == 2:
            raise RuntimeError("anything")
        write(clean)

    heartbeat.write = failing  # type: ignore[method-assign]
    heartbeat.start()
    with clock.charge("eval"):
        clock.accounts()
        hand.time += 30
        deadline = now() + 30
        while len(writes) < 3 and now() < deadline:
            clock.clock()
    heartbeat.close()
    assert len(said) == 2
    assert "suspended, or had no CPU time, for 30.0 s" in said[0]
    assert "anything" in said[1]
    found = read(tmp_path / "ledger.json")
    assert (found["standstill_s"], found["ledger_s"]["idle"]) == (30, 30)


def test_jumps_of_the_system_clock_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system clock is adjusted by people and by NTP, in both directions."""
    clock = BudgetClock(Limits(hours=1))
    jumps = itertools.cycle([4e9, 0.0, 1.7e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * next(jumps)))
    before = clock.spent_s()
    assert [0 <= clock.spent_s() - before < 1 for _ in range(10)] == [True] * 10


def test_carry_at_least_charges_once() -> None:
    clock, _ = make(Limits(hours=1))
    clock.carry({"train": 20.0, "idle": 1.0}, clean=False)
    clock.carry_at_least(15.0)
    assert clock.earlier_s == 21 + HEARTBEAT_S
    clock.carry_at_least(50.0)
    assert clock.earlier_s == clock.spent_s() == 50
    clock.carry_at_least(50.0)
    assert clock.earlier_s == clock.spent_s() == 50


def test_the_ledger_on_disk_is_what_was_spent_and_a_changed_digit_is_detected(tmp_path: Path) -> None:
    clock, hand = make(Limits(hours=1))
    hand.time += 3600
    path = tmp_path / "ledger.json"
    heartbeat = Heartbeat(clock, path, lambda text: None)
    heartbeat.start()
    found = read(path)
    assert (found["ledger_s"]["setup"], found["clean"]) == (3600, False)
    heartbeat.close()
    assert read(path)["clean"]
    path.write_text(path.read_text().replace("3600.0", "1600.0"))
    assert read_ledger(path) is None


WHOLE = dict.fromkeys(ACCOUNTS, 1.0)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"ledger_s": {}}', '{"ledger_s": {"setup": -1}}', "[" * 100_000),
        *(json.dumps({"ledger_s": {**WHOLE, "train": value}}) for value in (1e300, float("nan"), 10**400, "1", True)),
    ],
)
def test_a_damaged_ledger_is_not_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "ledger.json").write_text(content)
    assert read_ledger(tmp_path / "ledger.json") is None
    assert read_ledger(tmp_path / "absent.json") is None


def test_a_ledger_with_complete_accounts_is_used_without_other_keys(tmp_path: Path) -> None:
    """Spent time is never reset; a run without `clean` counts as killed."""
    for rest in ({}, {"clean": "yes", "extended_hours": "2"}):
        (tmp_path / "ledger.json").write_text(json.dumps({"ledger_s": WHOLE, **rest}))
        found = read(tmp_path / "ledger.json")
        assert (found["ledger_s"], found["clean"], found["extended_hours"]) == (WHOLE, False, 0.0)


def run_python(code: str) -> list[float]:
    """Return the numbers that a Python program prints."""
    command = [sys.executable, "-c", code]
    return [float(word) for word in subprocess.check_output(command, text=True, cwd=ROOT).split()]


def test_a_second_run_in_a_process_starts_when_it_starts() -> None:
    """Hydra's basic launcher runs a whole sweep in one process: each job has its own budget."""
    code = (
        "import time; from budget.clock import BudgetClock, Limits\n"
        "first = BudgetClock(Limits(hours=1)); time.sleep(0.3); second = BudgetClock(Limits(hours=1))\n"
        "print(first.spent_s(), second.spent_s())"
    )
    first, second = run_python(code)
    assert first > 0.3
    assert second < 0.2


def test_the_clock_starts_with_the_process() -> None:
    """Against the age that the operating system reports (ps), in a process that slept before importing anything."""
    code = (
        "import time; time.sleep(0.5); from common.monotonic import now, process_start; print(now() - process_start())"
    )
    (elapsed_s,) = run_python(code)
    assert 0.5 < elapsed_s < 5
    age = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True)
    if age.returncode == 0:
        assert now() - process_start() == pytest.approx(float(age.stdout), abs=2)


def test_the_pace_includes_the_time_between_steps() -> None:
    """A loop whose batches take as long to load as a step still ends its schedule at 1."""
    clock, hand = make(Limits(hours=100 / 3600))
    with clock.charge("train"):
        while (left := clock.steps_left(0, 0, 0.0, COST)[0]) > 0:
            progress = clock.advance(left)
            with clock.step():
                hand.time += 0.5
            hand.time += 0.5
            with clock.charge("eval"):
                hand.time += 0.1
    assert progress > 0.98
    assert clock.pace.typical == pytest.approx(1.0)
