"""Pruning of jobs and the shared hours of a sweep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budget.clock import ACCOUNTS
from common.errors import UserError
from common.file_lock import try_lock
from common.signals import Interrupted
from config import BudgetConfig, Config, SweepConfig
from sweeps.engine import pruning as pool
from sweeps.engine.job import Job, Outcome, apply_fresh, earlier_outcome, hours_spent, make_job, write_record
from sweeps.engine.pruning import HoursPool, loss_at, median_stopping, read_losses, run_all, run_with_halving


def job(place: Path, number: int, prune: str = "none", pool_hours: float | None = None, hours: float = 1.0) -> Job:
    config = Config(
        budget=BudgetConfig(hours=hours),
        sweep=SweepConfig(prune=prune, hours=pool_hours),
        seed=number,
        output_dir=str(place / "outputs"),
        name="s",
    )
    return make_job(config, number, [f"seed={number}"], str(place / "outputs" / "sweeps" / "s"))


def left_behind(job: Job, losses: list[float], spent_hours: float, status: str) -> None:
    """Write the files of a run: evaluations at each tenth of its budget, its ledger and its status."""
    job.run.mkdir(parents=True, exist_ok=True)
    points = [{"step": i, "progress": 0.1 * (i + 1), "val_loss": loss} for i, loss in enumerate(losses)]
    (job.run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    ledger = dict.fromkeys(ACCOUNTS, 0.0) | {"train": 3600 * spent_hours}
    (job.run / "ledger.json").write_text(json.dumps({"ledger_s": ledger, "clean": True, "extended_hours": 0}))
    (job.run / "status.json").write_text(json.dumps({"status": status, "reason": "SIGTERM"}))


def test_the_loss_between_two_evaluations_is_interpolated() -> None:
    losses = [(0.1, 5.0), (0.2, 4.0), (0.3, 3.5)]
    assert loss_at(losses, 0.25) == pytest.approx(3.75)
    assert loss_at(losses, 0.2) == 4.0
    assert loss_at(losses, 0.05) is None
    assert loss_at(losses, 0.35) is None


def test_a_job_above_the_median_of_three_is_pruned(tmp_path: Path) -> None:
    others = [[(0.1, 5.0), (0.3, 4.0 + each)] for each in (0.0, 0.1, 0.2)]
    slow, fast, early = (job(tmp_path, number) for number in range(3))
    left_behind(slow, [5.0, 4.5, 4.2], 0.3, "running")
    left_behind(fast, [5.0, 4.5, 4.05], 0.3, "running")
    left_behind(early, [9.0, 9.0], 0.2, "running")
    found = median_stopping(slow, others)
    assert found is not None
    assert (found.status, found.value) == ("pruned", 4.2)
    assert "30%" in found.why
    assert median_stopping(fast, others) is None
    assert median_stopping(early, others) is None, "no job is stopped before sweep.prune_from"
    assert median_stopping(slow, others[:2]) is None, "a median of two is not used"


def tokenizer_job(place: Path, number: int, tokenizer: str, prune: str = "none", **options: Any) -> Job:
    """A job of a sweep over data.tokenizer, in a file of its own."""
    one = job(place, number, prune=prune, **options)
    config = replace(one.options, data=replace(one.options.data, tokenizer=tokenizer))
    return make_job(config, number, [f"data.tokenizer={tokenizer}"], str(place / "outputs" / "sweeps" / "s"))


def left_bits(job: Job, loss: float, bits: float, status: str = "stopped") -> None:
    """Write a run's evaluations with a loss and bits per byte that do not change."""
    left_behind(job, [loss] * 5, 0.5, status)
    points = [{"progress": 0.1 * i, "val_loss": loss, "val_bits_per_byte": bits} for i in range(1, 6)]
    (job.run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))


# Loss and bits per byte of four tokenizers: the lowest loss has the most bits per byte.
TOKENIZERS = (("bpe-4096", 7.42, 3.16), ("bpe-1024", 5.5, 3.3), ("bpe-512", 4.70, 3.41), ("bytes", 2.93, 4.23))


def test_tokenizers_are_pruned_by_bits_per_byte(tmp_path: Path) -> None:
    jobs = [tokenizer_job(tmp_path, number, name, "median") for number, (name, _, _) in enumerate(TOKENIZERS)]
    for each, (_, loss, bits) in zip(jobs, TOKENIZERS, strict=True):
        left_bits(each, loss, bits)
        write_record(each, Outcome("finished", "", loss), 1, 1.0)
    watch = pool.median_watch(jobs)
    found = [watch(each) for each in jobs]
    assert [outcome is not None for outcome in found] == [False, False, True, True]
    assert found[3] is not None
    assert found[3].why.startswith("bits per byte 4.230")


def test_halving_keeps_the_tokenizers_with_the_fewest_bits_per_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [tokenizer_job(tmp_path, number, name, "halving") for number, (name, _, _) in enumerate(TOKENIZERS)]

    def ran(some: list[Job], watch: pool.Watch | None, hours: HoursPool) -> dict[int, Outcome]:
        for each in some:
            left_bits(each, *TOKENIZERS[each.number][1:])
        return {each.number: (watch and watch(each)) or Outcome("finished", "", 4.0) for each in some}

    monkeypatch.setattr(pool, "run_queue", ran)
    outcomes = run_with_halving(jobs, HoursPool(None, jobs))
    assert [outcomes[number].status for number in range(4)] == ["finished", "pruned", "pruned", "pruned"]


def test_evaluations_that_a_resume_rolled_back_are_ignored(tmp_path: Path) -> None:
    one = job(tmp_path, 0)
    left_behind(one, [5.0, 4.0], 0.3, "running")
    with (one.run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "resume", "step": 0}\n{"step": 1, "progress": 0.2, "val_loss": 4.4}\n')
    assert read_losses(one.run) == [(0.1, 5.0), (0.2, 4.4)]


def test_a_job_stays_pruned_until_pruning_is_off(tmp_path: Path) -> None:
    pruning, off = job(tmp_path, 0, prune="median"), job(tmp_path, 0)
    pruning.record.write_text(json.dumps({"status": "pruned", "why": "behind", "value": 5.0}))
    assert earlier_outcome(pruning) == Outcome("pruned", "behind", 5.0)
    assert earlier_outcome(off) is None


def test_extended_hours_continue_a_finished_job_once(tmp_path: Path) -> None:
    """As train.py does with the run alone: the ledger holds the hours that were added already."""
    one = job(tmp_path, 0)
    left_behind(one, [5.0, 4.0], 1.0, "finished")
    assert earlier_outcome(one) is not None
    one.options.budget.extend_hours = 0.5
    assert earlier_outcome(one) is None
    ledger = json.loads((one.run / "ledger.json").read_text())
    (one.run / "ledger.json").write_text(json.dumps(ledger | {"extended_hours": 0.5}))
    assert earlier_outcome(one) is not None
    (one.run / "status.json").write_text('{"status": "diverged", "reason": "non-finite loss"}')
    one.options.budget.extend_hours = 1.0
    assert earlier_outcome(one) == Outcome("diverged", "non-finite loss")


def test_finished_jobs_with_extended_hours_are_not_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(tmp_path, number, prune="halving") for number in range(4)]
    for each in jobs[:2]:
        left_behind(each, [5.0, 4.5, 4.0, 3.9, 3.8, 3.7 + 0.1 * each.number], 1.0, "finished")
        (each.run / "result.json").write_text("{}")
    for each in jobs[2:]:
        each.record.write_text(json.dumps({"status": "pruned", "why": "behind", "value": 4.4}))
    for each in jobs:
        each.options.budget.extend_hours = 0.5
    asked: list[list[int]] = []

    def ran(some: list[Job], watch: pool.Watch | None, hours: HoursPool) -> dict[int, Outcome]:
        asked.append([each.number for each in some])
        return {each.number: earlier_outcome(each) or Outcome("finished", "", 3.5) for each in some}

    monkeypatch.setattr(pool, "run_queue", ran)
    outcomes = run_with_halving(jobs, HoursPool(None, jobs))
    assert asked[-1] == [0, 1]
    assert [outcomes[number].status for number in range(4)] == ["finished"] * 2 + ["pruned"] * 2


def test_unspent_hours_of_a_job_are_free_for_others(tmp_path: Path) -> None:
    jobs = [job(tmp_path, number, pool_hours=2.5) for number in range(4)]
    hours = HoursPool(2.5, jobs)
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


@pytest.mark.parametrize("stops", [[], [9, 3]])
def test_halving_keeps_the_better_half_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int]) -> None:
    """A stand-in for the queue runs every job to its rung or to its end. `stops`: the jobs run until each interruption, here on
    the way to the second rung and before the last two jobs have finished. A sweep that resumes does not halve twice."""
    jobs = [job(tmp_path, number, prune="halving") for number in range(8)]
    ran: list[int] = []
    stops_after = [*stops, 99]

    def queue(some: list[Job], watch: pool.Watch | None, hours: HoursPool) -> dict[int, Outcome]:
        outcomes = {}
        for each in some:
            done = earlier_outcome(each)
            if done is None:
                if not stops_after[0]:
                    raise Interrupted("SIGINT")
                stops_after[0] -= 1
                ran.append(each.number)
                length = 3 if watch and not read_losses(each.run) else 5 if watch else 10
                curve = [5.0 - 0.3 * i + 0.1 * each.number for i in range(length)]
                left_behind(each, curve, 0.1 * length, "stopped" if watch else "finished")
                if not watch:
                    (each.run / "result.json").write_text(json.dumps({"eval": {"loss": curve[-1]}}))
                done = watch(each) if watch else Outcome("finished", "", curve[-1])
                assert done is not None
                write_record(each, done, 1, 1.0)
            outcomes[each.number] = done
        return outcomes

    monkeypatch.setattr(pool, "run_queue", queue)
    for _ in stops:
        with pytest.raises(Interrupted):
            run_with_halving(jobs, HoursPool(None, jobs))
        stops_after.pop(0)
    outcomes = run_with_halving(jobs, HoursPool(None, jobs))
    assert ran == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 0, 1]
    assert [outcomes[n].status for n in range(8)] == ["finished"] * 2 + ["pruned"] * 6
    assert json.loads(jobs[7].record.read_text())["status"] == "pruned"


def test_a_pruned_job_without_a_record_gets_a_complete_one(tmp_path: Path) -> None:
    """Such a job was started without the sweep, or the sweep was killed. The next start of the sweep reads the record."""
    one = job(tmp_path, 3, prune="halving")
    left_behind(one, [5.0, 4.9, 4.8], 0.3, "stopped")
    pool.mark_pruned(one, Outcome("pruned", "behind 2 of 4", 4.8))
    assert earlier_outcome(one) == Outcome("pruned", "behind 2 of 4", 4.8)
    assert json.loads(one.record.read_text())["run"] == str(one.run)
    assert pool.ended_runs(one.folder) == [one.run]


def test_halving_ranks_by_the_first_later_evaluation_if_there_is_none_before_the_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(tmp_path, number, prune="halving") for number in range(4)]

    def ran(some: list[Job], watch: pool.Watch | None, hours: HoursPool) -> dict[int, Outcome]:
        for each in some:
            left_behind(each, [5.0 - 0.1 * each.number], 0.4, "stopped")
            (each.run / "metrics.jsonl").write_text(f'{{"progress": 0.4, "val_loss": {5.0 - 0.1 * each.number}}}\n')
        return {each.number: (watch and watch(each)) or Outcome("finished", "", 4.0) for each in some}

    monkeypatch.setattr(pool, "run_queue", ran)
    outcomes = run_with_halving(jobs, HoursPool(None, jobs))
    assert [number for number in outcomes if outcomes[number].status == "finished"] == [2, 3]


class Line:
    """A stand-in for the queue. A job spends the hours in `uses`, or else its budget. It finishes if it spends its budget and is
    stopped otherwise. A job that has an outcome already is not run."""

    def __init__(self) -> None:
        self.uses: dict[int, float] = {}
        self.ran: list[tuple[int, float]] = []  # number and budget of each job that was run
        self.loss = 4.0

    def __call__(self, jobs: list[Job], watch: pool.Watch | None, hours: HoursPool) -> dict[int, Outcome]:
        return {each.number: earlier_outcome(each) or self.run(each) for each in jobs if not hours.reserve(each)}

    def run(self, job: Job) -> Outcome:
        budget = float(job.options.budget.hours or 0.0)
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
    monkeypatch.setattr(pool, "run_queue", stand_in)
    return stand_in


def records(job: Job) -> list[dict[str, object]]:
    return sorted((json.loads(path.read_text()) for path in job.folder.glob("*.json")), key=lambda each: each["number"])


def test_hours_left_over_are_used_for_one_longer_run(tmp_path: Path, line: Line) -> None:
    jobs = [job(tmp_path, number, pool_hours=4.2) for number in range(2)]
    run_all(jobs)
    assert line.ran == [(0, 1.0), (1, 1.0), (2, 2.2)]
    assert [record.get("longer", False) for record in records(jobs[0])] == [False, False, True]
    run_all(jobs)
    assert len(line.ran) == 3
    jobs = [
        job(tmp_path, number, pool_hours=5.0) for number in range(2)
    ]  # 0.8 more hours are fewer than the best job had
    run_all(jobs)
    assert len(line.ran) == 3


@pytest.mark.parametrize(("texts", "longer"), [(("t", "t"), ["data.tokenizer=bpe-512"]), (("t", "u"), [])])
def test_a_longer_run_is_of_the_best_job_by_bits_per_byte_and_only_on_one_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: tuple[str, str], longer: list[str]
) -> None:
    jobs = [tokenizer_job(tmp_path, n, name, pool_hours=9.0) for n, name in enumerate(("bpe-512", "bytes"))]
    for each, loss, bits, text in zip(jobs, (4.7, 2.9), (3.4, 4.2), texts, strict=True):
        left_bits(each, loss, bits, "finished")
        data = {"tokenizer": each.options.data.tokenizer, "text_fingerprint": text}
        (each.run / "result.json").write_text(json.dumps({"eval": {"loss": loss, "bits_per_byte": bits}, "data": data}))
    outcomes = {0: Outcome("finished", "", 4.7), 1: Outcome("finished", "", 2.9)}
    runs = HoursPool(9.0, jobs).longer_runs(outcomes)
    assert [each.overrides[0] for each in runs] == longer


def test_a_stopped_longer_run_is_continued(tmp_path: Path, line: Line) -> None:
    jobs = [job(tmp_path, number, pool_hours=4.99999) for number in range(2)]
    line.uses = {2: 0.5}
    with pytest.raises(Interrupted):
        run_all(jobs)
    assert records(jobs[0])[2]["longer"], "it is not ranked, whatever its outcome"
    line.uses = {}
    run_all(jobs)
    assert line.ran[2:] == [(2, 2.999), (2, 2.999)]
    assert [record["status"] for record in records(jobs[0])] == ["finished"] * 3


def test_the_hours_of_a_longer_run_are_not_free_for_others(tmp_path: Path, line: Line) -> None:
    """A failed job that is tried again after the longer run gets only the hours that the longer run has left."""
    jobs = [job(tmp_path, number, pool_hours=4.5) for number in range(3)]
    left_behind(jobs[2], [5.0], 0.1, "failed")
    run_all(jobs[:2])
    assert line.ran[-1] == (2, 2.5)
    assert HoursPool(4.5, jobs).reserve(jobs[2]) is not None


@pytest.mark.parametrize(("on_error", "more"), [("stop", False), ("continue", True)])
@pytest.mark.parametrize("prune", ["none", "median", "halving"])
def test_nothing_more_starts_after_a_failure_with_on_error_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: str, on_error: str, more: bool
) -> None:
    """Neither the next rung nor a longer run starts."""
    jobs = [job(tmp_path, number, prune=prune, pool_hours=99.0) for number in range(4)]
    asked: list[list[int]] = []

    def ran(some: list[Job], watch: pool.Watch | None, hours: HoursPool) -> dict[int, Outcome]:
        asked.append([each.number for each in some])
        for each in some:
            left_behind(each, [5.0, 4.5, 4.0, 3.9, 3.8, 3.7], 0.6, "stopped")
        outcomes = {each.number: (watch and watch(each)) or Outcome("finished", "", 3.6) for each in some}
        return outcomes | ({0: Outcome("killed", "SIGKILL")} if len(asked) == 1 else {})

    for each in jobs:
        each.options.sweep.on_error = on_error
    monkeypatch.setattr(pool, "run_queue", ran)
    run_all(jobs)
    assert (len(asked) > 1) == more


@pytest.mark.parametrize("prune", ["none", "halving"])
def test_fresh_starts_a_sweep_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: str) -> None:
    """Earlier runs are set aside together with their records. After that, each process of a job continues the one before."""
    jobs = [job(tmp_path, number, prune=prune, pool_hours=9.0) for number in range(2)]
    for each in jobs:
        left_behind(each, [9.0] * 10, 1.0, "finished")
        write_record(each, Outcome("pruned", "behind", 9.0), 1, 1.0)
        each.options.fresh = True
        each.write()
    old = replace(jobs[0], number=2, options=replace(jobs[0].options, seed=9), longer=True)
    left_behind(old, [9.0], 5.0, "stopped")
    write_record(old, Outcome("stopped"), 1, 1.0)
    seen: list[float] = []

    def ran(some: list[Job], watch: pool.Watch | None, hours: HoursPool) -> dict[int, Outcome]:
        seen.extend(hours_spent(each.run) for each in some)
        outcomes = {}
        for each in some:
            assert earlier_outcome(each) is None
            assert "fresh: false" in each.config.read_text()
            left_behind(each, [5.0, 4.5, 4.0, 3.9, 3.8, 3.7], hours_spent(each.run) + 0.25, "stopped")
            outcomes[each.number] = (watch and watch(each)) or Outcome("finished", "", 3.5)
        return outcomes

    monkeypatch.setattr(pool, "run_queue", ran)
    run_all(jobs)
    assert seen[:2] == [0.0, 0.0]
    assert [spent for spent in seen[2:] if spent == 0.0] == [0.0], "after that, only the longer run starts from zero"
    assert len(list((tmp_path / "outputs").glob("s-*.old-1"))) == 3


def test_fresh_is_ignored_when_slurm_requeues_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(tmp_path, 0)
    one.options.fresh = True
    left_behind(one, [5.0], 0.1, "stopped")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = apply_fresh(one)
    assert not again.options.fresh
    assert hours_spent(again.run) == pytest.approx(0.1)


def test_a_run_that_is_in_use_is_not_set_aside(tmp_path: Path) -> None:
    one = job(tmp_path, 0)
    one.options.fresh = True
    left_behind(one, [5.0], 0.1, "running")
    held = try_lock(one.run / "lock")
    with pytest.raises(UserError, match="in use by"):
        run_all([one])
    assert not isinstance(held, str)
    held.close()
