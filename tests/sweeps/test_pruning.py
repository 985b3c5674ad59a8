"""Who is stopped for falling behind, and what the hours of a sweep allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from budget.clock import ACCOUNTS
from common.errors import UserError
from common.file_lock import try_lock
from common.signals import Interrupted
from config import BudgetConfig, Config, SweepConfig
from sweeps.engine import pruning as pool
from sweeps.engine.job import Job, Outcome, already, anew, hours_spent, job_of, write_record
from sweeps.engine.pruning import Pool, behind_the_median, by_halving, loss_at, losses_of, run_all


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


def test_hours_that_are_added_go_on_with_a_finished_job_once(tmp_path: Path) -> None:
    """As train.py does with the same run alone: the ledger says what has been added already."""
    one = job(tmp_path, 0)
    left_behind(one, [5.0, 4.0], 1.0, "finished")
    assert already(one) is not None
    one.knobs.budget.extend_hours = 0.5
    assert already(one) is None
    ledger = json.loads((one.run / "ledger.json").read_text())
    (one.run / "ledger.json").write_text(json.dumps(ledger | {"extended_hours": 0.5}))
    assert already(one) is not None
    (one.run / "status.json").write_text('{"status": "diverged", "reason": "no number"}')
    one.knobs.budget.extend_hours = 1.0
    assert already(one) == Outcome("diverged", "no number")


def test_jobs_that_had_finished_are_not_halved_when_hours_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(tmp_path, number, prune="halving") for number in range(4)]
    for each in jobs[:2]:
        left_behind(each, [5.0, 4.5, 4.0, 3.9, 3.8, 3.7 + 0.1 * each.number], 1.0, "finished")
        (each.run / "result.json").write_text("{}")
    for each in jobs[2:]:
        each.record.write_text(json.dumps({"status": "pruned", "why": "behind", "value": 4.4}))
    for each in jobs:
        each.knobs.budget.extend_hours = 0.5
    asked: list[list[int]] = []

    def ran(some: list[Job], watch: pool.Watch | None, hours: Pool) -> dict[int, Outcome]:
        asked.append([each.number for each in some])
        return {each.number: already(each) or Outcome("finished", "", 3.5) for each in some}

    monkeypatch.setattr(pool, "queue", ran)
    outcomes = by_halving(jobs, Pool(None, jobs))
    assert asked[-1] == [0, 1]
    assert [outcomes[number].status for number in range(4)] == ["finished"] * 2 + ["pruned"] * 2


def test_jobs_draw_from_the_hours_and_give_back_what_they_leave(tmp_path: Path) -> None:
    jobs = [job(tmp_path, number, pool_hours=2.5) for number in range(4)]
    hours = Pool(2.5, jobs)
    assert hours.reserve(jobs[0]) is None
    assert hours.reserve(jobs[1]) is None
    refusal = hours.reserve(jobs[2])
    assert refusal is not None
    assert "0.5 left" in refusal
    left_behind(jobs[0], [5.0], 0.25, "stopped")  # pruned at a quarter
    hours.release(jobs[0])
    assert hours.reserve(jobs[2]) is None
    assert hours.reserve(jobs[3]) is not None
    left_behind(jobs[1], [5.0], 1.0, "finished")
    left_behind(jobs[2], [5.0], 0.9, "finished")
    hours.release(jobs[1])
    hours.release(jobs[2])
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


def test_halving_that_was_interrupted_goes_on_and_halves_no_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted on the way to its second rung, then before the last two went to the end."""
    jobs = [job(tmp_path, number, prune="halving") for number in range(8)]
    ran: list[int] = []
    stops_after = [9, 3, 99]  # jobs, of each start

    def queue(some: list[Job], watch: pool.Watch | None, hours: Pool) -> dict[int, Outcome]:
        outcomes = {}
        for each in some:
            done = already(each)
            if done is None:
                if not stops_after[0]:
                    raise Interrupted("SIGINT")
                stops_after[0] -= 1
                ran.append(each.number)
                length = 3 if watch and not losses_of(each.run) else 5 if watch else 10
                curve = [5.0 - 0.3 * i + 0.1 * each.number for i in range(length)]
                left_behind(each, curve, 0.1 * length, "stopped" if watch else "finished")
                if not watch:
                    (each.run / "result.json").write_text(json.dumps({"eval": {"loss": curve[-1]}}))
                done = watch(each) if watch else Outcome("finished", "", curve[-1])
                assert done is not None
                write_record(each, done, 1, 1.0)
            outcomes[each.number] = done
        return outcomes

    monkeypatch.setattr(pool, "queue", queue)
    for _ in range(2):
        with pytest.raises(Interrupted):
            by_halving(jobs, Pool(None, jobs))
        stops_after.pop(0)
    outcomes = by_halving(jobs, Pool(None, jobs))
    assert ran == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 0, 1]
    assert [outcomes[n].status for n in range(8)] == ["finished"] * 2 + ["pruned"] * 6


def test_a_job_that_is_ranked_out_without_a_record_gets_a_whole_one(tmp_path: Path) -> None:
    """It was begun alone, or its sweep died: the next start of the sweep reads what this one wrote."""
    one = job(tmp_path, 3, prune="halving")
    left_behind(one, [5.0, 4.9, 4.8], 0.3, "stopped")
    pool.mark(one, Outcome("pruned", "behind 2 of 4", 4.8))
    assert already(one) == Outcome("pruned", "behind 2 of 4", 4.8)
    assert json.loads(one.record.read_text())["run"] == str(one.run)
    assert pool.known_runs(one.folder) == [one.run]


def test_halving_ranks_by_what_was_seen_where_steps_are_too_large_to_be_seen_at_the_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(tmp_path, number, prune="halving") for number in range(4)]

    def ran(some: list[Job], watch: pool.Watch | None, hours: Pool) -> dict[int, Outcome]:
        for each in some:
            left_behind(each, [5.0 - 0.1 * each.number], 0.4, "stopped")
            (each.run / "metrics.jsonl").write_text(f'{{"progress": 0.4, "val_loss": {5.0 - 0.1 * each.number}}}\n')
        return {each.number: (watch and watch(each)) or Outcome("finished", "", 4.0) for each in some}

    monkeypatch.setattr(pool, "queue", ran)
    outcomes = by_halving(jobs, Pool(None, jobs))
    assert [number for number in outcomes if outcomes[number].status == "finished"] == [2, 3]


class Line:
    """Stands for the queue: every job uses the hours that `uses` has for it, else its own, and finishes, or is stopped
    where they are fewer. What needs no process is not run."""

    def __init__(self) -> None:
        self.uses: dict[int, float] = {}
        self.ran: list[tuple[int, float]] = []  # each job that got a process, and its budget
        self.loss = 4.0

    def __call__(self, jobs: list[Job], watch: pool.Watch | None, hours: Pool) -> dict[int, Outcome]:
        return {each.number: already(each) or self.run(each) for each in jobs if not hours.reserve(each)}

    def run(self, job: Job) -> Outcome:
        budget = float(job.knobs.budget.hours or 0.0)
        used = self.uses.get(job.number, budget)
        self.ran.append((job.number, budget))
        outcome = Outcome("finished", "", self.loss) if used == budget else Outcome("stopped", "SIGINT")
        left_behind(job, [5.0, self.loss], used, outcome.status)
        (job.run / "result.json").write_text(json.dumps({"eval": {"loss": self.loss}}))
        write_record(job, outcome, 1, 1.0)
        if outcome.status == "stopped":
            raise Interrupted("SIGINT")
        return outcome


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    stand_in = Line()
    monkeypatch.setattr(pool, "queue", stand_in)
    return stand_in


def records(job: Job) -> list[dict[str, object]]:
    return sorted((json.loads(path.read_text()) for path in job.folder.glob("*.json")), key=lambda each: each["number"])


def test_hours_left_over_buy_one_longer_run_and_no_second_one(tmp_path: Path, line: Line) -> None:
    jobs = [job(tmp_path, number, pool_hours=4.2) for number in range(2)]
    run_all(jobs)
    assert line.ran == [(0, 1.0), (1, 1.0), (2, 2.2)]
    assert [record.get("longer", False) for record in records(jobs[0])] == [False, False, True]
    run_all(jobs)
    assert len(line.ran) == 3
    jobs = [job(tmp_path, number, pool_hours=5.0) for number in range(2)]  # 0.8 more are fewer than the best one had
    run_all(jobs)
    assert len(line.ran) == 3


def test_a_longer_run_that_was_stopped_goes_on(tmp_path: Path, line: Line) -> None:
    jobs = [job(tmp_path, number, pool_hours=4.99999) for number in range(2)]
    line.uses = {2: 0.5}
    with pytest.raises(Interrupted):
        run_all(jobs)
    assert records(jobs[0])[2]["longer"], "it is none of the jobs that are ranked, whatever became of it"
    line.uses = {}
    run_all(jobs)
    assert line.ran[2:] == [(2, 2.999), (2, 2.999)]
    assert [record["status"] for record in records(jobs[0])] == ["finished"] * 3


def test_a_longer_run_leaves_no_hours_to_others(tmp_path: Path, line: Line) -> None:
    """A job that had failed, and is tried again after the longer run, finds what that has left."""
    jobs = [job(tmp_path, number, pool_hours=4.5) for number in range(3)]
    left_behind(jobs[2], [5.0], 0.1, "failed")
    run_all(jobs[:2])
    assert line.ran[-1] == (2, 2.5)
    assert Pool(4.5, jobs).reserve(jobs[2]) is not None


@pytest.mark.parametrize(("on_error", "more"), [("stop", False), ("continue", True)])
@pytest.mark.parametrize("prune", ["none", "median", "halving"])
def test_nothing_more_starts_after_a_failure_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: str, on_error: str, more: bool
) -> None:
    """Neither the next rung nor a longer run."""
    jobs = [job(tmp_path, number, prune=prune, pool_hours=99.0) for number in range(4)]
    asked: list[list[int]] = []

    def ran(some: list[Job], watch: pool.Watch | None, hours: Pool) -> dict[int, Outcome]:
        asked.append([each.number for each in some])
        for each in some:
            left_behind(each, [5.0, 4.5, 4.0, 3.9, 3.8, 3.7], 0.6, "stopped")
        outcomes = {each.number: (watch and watch(each)) or Outcome("finished", "", 3.6) for each in some}
        return outcomes | ({0: Outcome("killed", "SIGKILL")} if len(asked) == 1 else {})

    for each in jobs:
        each.knobs.sweep.on_error = on_error
    monkeypatch.setattr(pool, "queue", ran)
    run_all(jobs)
    assert (len(asked) > 1) == more


@pytest.mark.parametrize("prune", ["none", "halving"])
def test_a_sweep_begins_anew_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: str) -> None:
    """What was there is set aside, records and all; from then on every process of a job goes on with the one before."""
    jobs = [job(tmp_path, number, prune=prune, pool_hours=9.0) for number in range(2)]
    for each in jobs:
        left_behind(each, [9.0] * 10, 1.0, "finished")
        write_record(each, Outcome("pruned", "behind", 9.0), 1, 1.0)
        each.knobs.fresh = True
        each.write()
    old = replace(jobs[0], number=2, knobs=replace(jobs[0].knobs, seed=9), longer=True)
    left_behind(old, [9.0], 5.0, "stopped")
    write_record(old, Outcome("stopped"), 1, 1.0)
    seen: list[float] = []

    def ran(some: list[Job], watch: pool.Watch | None, hours: Pool) -> dict[int, Outcome]:
        seen.extend(hours_spent(each.run) for each in some)
        outcomes = {}
        for each in some:
            assert already(each) is None
            assert "fresh: false" in each.config.read_text()
            left_behind(each, [5.0, 4.5, 4.0, 3.9, 3.8, 3.7], hours_spent(each.run) + 0.25, "stopped")
            outcomes[each.number] = (watch and watch(each)) or Outcome("finished", "", 3.5)
        return outcomes

    monkeypatch.setattr(pool, "queue", ran)
    run_all(jobs)
    assert seen[:2] == [0.0, 0.0]
    assert [spent for spent in seen[2:] if spent == 0.0] == [0.0], "only the longer run begins with nothing after that"
    assert len(list((tmp_path / "outputs").glob("s-*.old-1"))) == 3


def test_a_job_that_slurm_requeues_is_not_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(tmp_path, 0)
    one.knobs.fresh = True
    left_behind(one, [5.0], 0.1, "stopped")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = anew(one)
    assert not again.knobs.fresh
    assert hours_spent(again.run) == pytest.approx(0.1)


def test_a_run_that_is_in_use_is_not_set_aside(tmp_path: Path) -> None:
    one = job(tmp_path, 0)
    one.knobs.fresh = True
    left_behind(one, [5.0], 0.1, "running")
    held = try_lock(one.run / "lock")
    with pytest.raises(UserError, match="in use by"):
        run_all([one])
    assert not isinstance(held, str)
    held.close()
