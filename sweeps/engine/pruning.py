"""The hours of a whole sweep, pruning of jobs that are behind, and longer runs on hours that are left over.

Runs are compared at equal shares of their budgets. That is fair because every schedule follows the share that is spent: two
runs at a quarter of their budgets are at the same point of their schedules, at any size and speed. A pruned job has
saved a checkpoint; with sweep.prune=none the same command continues it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Context
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.format import format_seconds
from common.json_io import is_number, mapping, read_json
from config import HALVING_RUNGS, extension_of
from run.history import evaluations, read_metrics, read_result
from sweeps.engine.job import (
    Job,
    Outcome,
    apply_fresh,
    earlier_outcome,
    hours_spent,
    read_records,
    set_run_aside,
    write_record,
)
from sweeps.engine.scheduler import Queue, Watch, say, sweeper_value
from sweeps.engine.scored_text import BITS_PER_BYTE, is_task, metric_for, metric_of, texts_of
from sweeps.engine.table import higher_is_better, in_words

# As a share of the budget. An evaluation comes with the first step after each tenth of the budget, so the shares of two runs
# are never exactly equal.
SHARE_TOLERANCE = 0.02
LEAST_OTHERS = 3  # jobs are not compared with the median of fewer others
SLACK_HOURS = 1e-6  # hours are sums of floats


def run_all(jobs: Sequence[Job]) -> list[float | Exception | None]:
    """Run the jobs that a sweeper gives, within the sweep's hours. Returns each job's metric, or the reason of its failure."""
    if not jobs:
        return []
    sweep = jobs[0].options.sweep
    say(f"{len(jobs)} jobs" + (f" within {sweep.hours:g} hours" if sweep.hours is not None else ""))
    jobs = apply_fresh_to_all(jobs)
    pool = HoursPool(sweep.hours, jobs)
    if sweep.prune == "halving":
        outcomes = run_with_halving(jobs, pool)
    else:
        outcomes = run_queue(jobs, median_watch(jobs) if sweep.prune == "median" else None, pool)
    if sweep.hours is not None and not stops_on_failure(jobs, outcomes):
        run_queue(pool.longer_runs(outcomes), None, pool)
    return [sweeper_value(job, outcomes.get(job.number)) for job in jobs]


def apply_fresh_to_all(jobs: Sequence[Job]) -> list[Job]:
    """With fresh=true, set the earlier runs of the jobs aside, and the longer runs of their sweep. Raises UserError."""
    if jobs[0].options.fresh:
        for record in longer_records(jobs[0].folder):
            set_run_aside(Path(record["run"]))
            (jobs[0].folder / f"{record['name']}.json").unlink()
    return [apply_fresh(job) for job in jobs]


# -- pruning -----------------------------------------------------------------------------------------------------------


def read_losses(run: Path, metric: str = "loss") -> list[tuple[float, float]]:
    """(share of the budget, validation loss) of a run's interim evaluations, or another metric instead of the loss."""
    points, key = evaluations(read_metrics(run)), f"val_{metric}"
    return [(p["progress"], p[key]) for p in points if is_number(p.get(key)) and is_number(p.get("progress"))]


def interim_metric(jobs: Sequence[Job]) -> str:
    """The metric by which running jobs are compared: the loss, or bits per byte if they may have different tokenizers.

    A sweep that is ranked by a task is no exception: the score of the few items of an interim evaluation is mostly noise, and
    the loss tells models apart early. Tokenizers of one name differ as well if they are trained on different text."""
    one_tokenizer = len({repr(job.options.data) for job in jobs}) == 1
    return "loss" if one_tokenizer and jobs[0].options.sweep.metric != BITS_PER_BYTE else BITS_PER_BYTE


def loss_at(losses: Sequence[tuple[float, float]], share: float) -> float | None:
    """The validation loss at `share` of the budget, interpolated linearly between evaluations; None outside of them."""
    points = sorted(losses)
    if not points or not points[0][0] <= share <= points[-1][0] + SHARE_TOLERANCE:
        return None
    shares, values = zip(*points, strict=True)
    return float(np.interp(share, shares, values))


def median_stopping(job: Job, others: Sequence[Sequence[tuple[float, float]]], metric: str = "loss") -> Outcome | None:
    """The outcome "pruned" if the job's best loss so far is above the median loss of the others at the same share, else None.

    `others` are the results of `read_losses` for the same metric.

    This is median stopping (Golovin et al. 2017, Vizier)."""
    losses = read_losses(job.run, metric)
    if not losses or losses[-1][0] < job.options.sweep.prune_from:
        return None
    share = losses[-1][0]
    known = [loss for other in others if (loss := loss_at(other, share)) is not None]
    if len(known) < LEAST_OTHERS:
        return None
    median, best = statistics.median(known), min(loss for _, loss in losses)
    if best <= median:
        return None
    why = f"{in_words(metric)} {best:.3f} at {share:.0%} of its budget, median of {len(known)} others {median:.3f}"
    return Outcome("pruned", why, losses[-1][1])


def median_watch(jobs: Sequence[Job]) -> Watch:
    """A watch that applies `median_stopping` to a job and the runs of the sweep that have ended."""
    # Each is read once, because this process shares the CPU with timed jobs.
    ended: dict[Path, list[tuple[float, float]]] = {}
    metric = interim_metric(jobs)

    def watch(job: Job) -> Outcome | None:
        for path in ended_runs(jobs[0].folder):
            if path not in ended:
                ended[path] = read_losses(path, metric)
        return median_stopping(job, [losses for path, losses in ended.items() if path != job.run], metric)

    return watch


def ended_runs(folder: Path) -> list[Path]:
    """The runs of the sweep that have finished or were pruned, also in an earlier start of the sweep."""
    return [Path(record["run"]) for record in read_records(folder) if record.get("status") in ("finished", "pruned")]


def rung_watch(rung: float, metric: str) -> Watch:
    """A watch that pauses every job after its first evaluation at or after `rung`, a share of the budget."""

    def watch(job: Job) -> Outcome | None:
        losses = read_losses(job.run, metric)
        if not losses or losses[-1][0] < rung:
            return None
        return Outcome(
            "paused", f"at {losses[-1][0]:.0%} of its budget, {in_words(metric)} {losses[-1][1]:.3f}", losses[-1][1]
        )

    return watch


def loss_at_rung(losses: Sequence[tuple[float, float]], rung: float) -> float:
    """The loss by which a job that has passed the rung is ranked. If all its evaluations are later, the first of them."""
    loss = loss_at(losses, rung)
    return next((later for share, later in losses if share >= rung), math.inf) if loss is None else loss


# -- sweep.prune -------------------------------------------------------------------------------------------------------


def run_with_halving(jobs: Sequence[Job], pool: HoursPool) -> dict[int, Outcome]:
    """Successive halving: run all jobs to the first rung, the better half to the second, and the better half of those to the end.

    The ranking at a rung depends only on the files of the runs and includes jobs that passed the rung in an earlier start of
    the sweep, so the same command does not halve twice. A job that had finished and got more hours is not paused at a rung.
    """
    outcomes: dict[int, Outcome] = {}
    had_finished = [job for job in jobs if (job.run / "result.json").exists()]
    going, metric = list(jobs), interim_metric(jobs)
    for rung in HALVING_RUNGS:
        watch = rung_watch(rung, metric)
        # Jobs that passed the rung in an earlier start need not run now.
        passed = {job.number: paused for job in going if not has_failed(job) and (paused := watch(job)) is not None}
        to_run = [job for job in going if job.number not in passed and job not in had_finished]
        at_rung = passed | run_queue(to_run, watch, pool)
        outcomes |= at_rung
        if stops_on_failure(jobs, outcomes):
            return outcomes
        paused_jobs = [job for job in going if job.number in at_rung and at_rung[job.number].status == "paused"]
        keep = max(1, math.ceil(len(paused_jobs) / 2))
        ranked = sorted(paused_jobs, key=lambda job: loss_at_rung(read_losses(job.run, metric), rung))
        for job in ranked[keep:]:
            if job not in had_finished:
                why = f"{keep} of {len(paused_jobs)} jobs were ahead at {rung:.0%} of the budget"
                outcomes[job.number] = Outcome("pruned", why, outcomes[job.number].value)
                mark_pruned(job, outcomes[job.number])
        going = [job for job in jobs if job in ranked[:keep]]
    return outcomes | run_queue([job for job in jobs if job in had_finished or job in going], None, pool)


def has_failed(job: Job) -> bool:
    """Whether an earlier start of the sweep left the job in a state from which it cannot finish."""
    outcome = earlier_outcome(job)
    return outcome is not None and not outcome.good


def stops_on_failure(jobs: Sequence[Job], outcomes: dict[int, Outcome]) -> bool:
    """Whether a job has failed and sweep.on_error=stop, so that no more jobs start."""
    return jobs[0].options.sweep.on_error == "stop" and not all(outcome.good for outcome in outcomes.values())


def mark_pruned(job: Job, outcome: Outcome) -> None:
    """Report and record that a paused job does not continue."""
    say(f"{job.label} {outcome.status}: {outcome.why}")
    before = mapping(read_json(job.record))
    write_record(job, outcome, before.get("tries", 0), before.get("seconds", 0.0))


def run_queue(jobs: Sequence[Job], watch: Watch | None, pool: HoursPool) -> dict[int, Outcome]:
    """Run jobs until all have ended. Returns their outcomes by job number."""
    waiting = Queue(jobs, watch, pool)
    waiting.run()
    return waiting.outcomes


# -- hours -------------------------------------------------------------------------------------------------------------


@dataclass
class HoursPool:
    """The device hours that all jobs of a sweep share; None means no limit."""

    hours: float | None
    jobs: Sequence[Job]

    def __post_init__(self) -> None:
        self.reserved: dict[Path, float] = {}  # hours by run, for runs that were started
        if self.hours is not None and any(job.options.budget.hours is None for job in self.jobs):
            raise UserError("sweep.hours needs budget.hours for every job; set budget.hours=H")
        self.longer = longer_records(self.jobs[0].folder)  # longer runs of earlier starts of the sweep

    def spent(self) -> float:
        """Hours spent by all runs of the sweep."""
        runs = {job.run for job in self.jobs} | {Path(record["run"]) for record in self.longer}
        return sum(hours_spent(run) for run in runs)

    def left(self) -> float:
        """Hours that are neither spent nor reserved for a running job."""
        unspent = sum(max(0.0, reserved - hours_spent(run)) for run, reserved in self.reserved.items())
        return (self.hours or 0.0) - self.spent() - unspent

    def reserve(self, job: Job) -> str | None:
        """Reserve a job's hours until `release`. Returns None, or the reason why the job may not start."""
        if self.hours is None:
            return None
        spent = hours_spent(job.run)
        needed = (job.options.budget.hours or 0.0) + extension_of(job.options.budget).hours - spent
        if needed > self.left() + SLACK_HOURS:
            return f"it needs {needed:.3g} hours and sweep.hours={self.hours:g} has {max(0.0, self.left()):.3g} left"
        self.reserved[job.run] = needed + spent
        return None

    def release(self, job: Job) -> None:
        """Free the hours that an ended job did not use. The caller knows that the job has ended; status.json may still be that of
        an earlier process while a new one imports its libraries."""
        self.reserved.pop(job.run, None)

    def longer_runs(self, outcomes: dict[int, Outcome]) -> list[Job]:
        """The longer runs of the sweep. The hours that are left go to one longer run of the best job.

        Longer runs of earlier starts of the sweep are included. One that has not ended continues before a new one is added."""
        runs = [
            again
            for record in self.longer
            for job in self.jobs
            if (again := longer_run(job, record["number"], record["hours"])).name == record["name"]
        ]
        if all(earlier_outcome(job) for job in runs) and (more := self._new_longer_run(outcomes)):
            runs.append(more)
        for job in runs:
            job.write()
        return runs

    def _new_longer_run(self, outcomes: dict[int, Outcome]) -> Job | None:
        """A longer run of the best job, or None if the hours left do not exceed those of every run before."""
        done = [job for job in self.jobs if job.number in outcomes and outcomes[job.number].status == "finished"]
        results = [read_result(job.run) for job in done]
        wanted = self.jobs[0].options.sweep.metric
        options = [dict(text.split("=", 1) for text in job.overrides) for job in done]
        if not is_task(wanted) and len(set(texts_of(results, options))) > 1:
            say(
                "hours are left, but no longer run is started: the jobs were scored on different text, so none is the best"
            )
            return None
        metric = metric_for(results, wanted)
        ends = {
            job.number: outcomes[job.number].value if metric == wanted else metric_of(result, metric)
            for job, result in zip(done, results, strict=True)
        }
        values = {number: value for number, value in ends.items() if value is not None}
        if not values:
            return None
        choose = max if higher_is_better(metric) else min
        best = choose((job for job in done if job.number in values), key=lambda job: values[job.number])
        longest = max([float(best.options.budget.hours or 0.0), *(record["hours"] for record in self.longer)])
        hours = round_hours_down(self.left())
        if hours <= longest:
            say(f"{hours:.4g} hours are left, too few for a longer run of the best job (it had {longest:g} hours)")
            return None
        say(f"{format_seconds(3600 * hours)} are left; starting a longer run of the best job, {best.label}")
        numbers = [*(job.number for job in self.jobs), *(record["number"] for record in self.longer)]
        return longer_run(best, max(numbers) + 1, hours)


def longer_records(folder: Path) -> list[dict[str, Any]]:
    """The records of longer runs in SWEEP/jobs."""
    return [record for record in read_records(folder) if record.get("longer")]


def longer_run(job: Job, number: int, hours: float) -> Job:
    """A copy of `job` with `hours` as its budget."""
    options = replace(job.options, budget=replace(job.options.budget, hours=hours, extend=None, extend_hours=0.0))
    overrides = [text for text in job.overrides if not text.startswith("budget.hours=")]
    return Job(number, (*overrides, f"budget.hours={hours:g}"), job.folder, options, longer=True)


def round_hours_down(hours: float) -> float:
    """Round down to four significant digits, so that the number can be typed and is not more than there is."""
    return float(Context(prec=4, rounding=ROUND_DOWN).create_decimal_from_float(max(0.0, hours)))
