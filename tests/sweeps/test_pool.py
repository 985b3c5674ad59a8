"""Who is stopped for falling behind, and what the hours of a sweep allow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from budget.clock import ACCOUNTS
from config import BudgetConfig, Config, SweepConfig
from sweeps import pool
from sweeps.jobs import Job, Outcome, already, job_of
from sweeps.pool import Pool, behind_the_median, by_halving, loss_at, losses_of


def job(place: Path, number: int, prune: str = "none", pool_hours: float | None = None, hours: float = 1.0) -> Job:
    config = Config(
        budget=BudgetConfig(hours=hours),
        sweep=SweepConfig(prune=prune, hours=pool_hours),
        seed=number,
        output_dir=str(place / "outputs"),
        name="s",
    )
    return job_of(config, number, [f"seed={number}"], str(place / "outputs" / "sweeps" / "s"))


def left_behind(job: Job, losses: list[float], spent_hours: float, status: str) -> None:
    """What a run leaves: evaluations at each tenth of its budget, its ledger and its status."""
    job.run.mkdir(parents=True, exist_ok=True)
    points = [{"step": i, "progress": 0.1 * (i + 1), "val_loss": loss} for i, loss in enumerate(losses)]
    (job.run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    ledger = dict.fromkeys(ACCOUNTS, 0.0) | {"train": 3600 * spent_hours}
    (job.run / "ledger.json").write_text(json.dumps({"ledger_s": ledger, "clean": True, "extended_hours": 0}))
    (job.run / "status.json").write_text(json.dumps({"status": status, "reason": "SIGTERM"}))


def test_the_loss_between_two_evaluations_is_on_their_line() -> None:
    losses = [(0.1, 5.0), (0.2, 4.0), (0.3, 3.5)]
    assert loss_at(losses, 0.25) == pytest.approx(3.75)
    assert loss_at(losses, 0.2) == 4.0
    assert loss_at(losses, 0.05) is None
    assert loss_at(losses, 0.35) is None


def test_a_job_behind_the_median_of_three_is_stopped_and_one_ahead_is_not(tmp_path: Path) -> None:
    others = [[(0.1, 5.0), (0.3, 4.0 + each)] for each in (0.0, 0.1, 0.2)]
    slow, fast, early = (job(tmp_path, number) for number in range(3))
    left_behind(slow, [5.0, 4.5, 4.2], 0.3, "running")
    left_behind(fast, [5.0, 4.5, 4.05], 0.3, "running")
    left_behind(early, [9.0, 9.0], 0.2, "running")
    found = behind_the_median(slow, others)
    assert found is not None
    assert (found.status, found.value) == ("pruned", 4.2)
    assert "30%" in found.why
    assert behind_the_median(fast, others) is None
    assert behind_the_median(early, others) is None, "before sweep.prune_from nobody is stopped"
    assert behind_the_median(slow, others[:2]) is None, "a median of two says little"


def test_points_that_a_resume_rolled_back_do_not_count(tmp_path: Path) -> None:
    one = job(tmp_path, 0)
    left_behind(one, [5.0, 4.0], 0.3, "running")
    with (one.run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "resume", "step": 0}\n{"step": 1, "progress": 0.2, "val_loss": 4.4}\n')
    assert losses_of(one.run) == [(0.1, 5.0), (0.2, 4.4)]


def test_a_pruned_job_stays_so_until_pruning_is_off(tmp_path: Path) -> None:
    pruning, off = job(tmp_path, 0, prune="median"), job(tmp_path, 0)
    pruning.record.write_text(json.dumps({"status": "pruned", "why": "behind", "value": 5.0}))
    assert already(pruning) == Outcome("pruned", "behind", 5.0)
    assert already(off) is None


def test_jobs_draw_from_the_hours_and_give_back_what_they_leave(tmp_path: Path) -> None:
    jobs = [job(tmp_path, number, pool_hours=2.5) for number in range(4)]
    hours = Pool(2.5, jobs)
    gate = hours.gate
    assert gate is not None
    assert gate(jobs[0]) is None
    assert gate(jobs[1]) is None
    refusal = gate(jobs[2])
    assert refusal is not None
    assert "0.5 left" in refusal
    left_behind(jobs[0], [5.0], 0.25, "stopped")  # pruned at a quarter
    assert gate(jobs[2]) is None
    assert gate(jobs[3]) is not None
    left_behind(jobs[1], [5.0], 1.0, "finished")
    left_behind(jobs[2], [5.0], 0.9, "finished")
    hours._release_ended()
    assert hours.left() == pytest.approx(0.35)


def test_halving_keeps_the_better_half_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the queue that runs every job to its rung, or to its end."""
    jobs = [job(tmp_path, number, prune="halving") for number in range(8)]
    asked: list[list[int]] = []

    def ran(some: list[Job], watch: pool.Watch | None, hours: Pool) -> dict[int, Outcome]:
        asked.append([each.number for each in some])
        outcomes = {}
        for each in some:
            curve = [5.0 - 0.3 * i + 0.1 * each.number for i in range(3 if len(asked) == 1 else 5 if watch else 10)]
            left_behind(each, curve, 0.1 * len(curve), "stopped" if watch else "finished")
            found = watch(each) if watch else Outcome("finished", "", curve[-1])
            assert found is not None
            outcomes[each.number] = found
            each.record.write_text(json.dumps({"status": found.status, "why": found.why, "value": found.value}))
        return outcomes

    monkeypatch.setattr(pool, "queue", ran)
    outcomes = by_halving(jobs, Pool(None, jobs))
    assert asked == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1]]
    assert [outcomes[n].status for n in range(8)] == ["finished"] * 2 + ["pruned"] * 6
    assert json.loads(jobs[7].record.read_text())["status"] == "pruned"
