"""The hours of a whole sweep: who may start, who is stopped because others are ahead, and what the hours left over buy.

Runs are compared at equal shares of their budgets. That is fair because every schedule follows the share spent: two runs at
a quarter of theirs are at the same point of their learning rates, whatever their sizes and speeds. A job that is stopped
has saved; with sweep.prune=none the same command goes on with it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from errors import UserError
from run.console import format_seconds
from run.history import is_number, read_metrics
from run.record import read_json, write_json
from sweeps.jobs import Job, Outcome, already, hours_spent
from sweeps.local import Gate, Queue, Watch, say, value_of
from sweeps.table import HIGHER_IS_BETTER

RUNGS = (0.25, 0.5)  # shares of a budget at which successive halving (Jamieson & Talwalkar 2016) keeps the better half
NEAR = (
    0.02  # of the budget: evaluations come with the first step after each tenth of it, never at the same share exactly
)
LEAST_OTHERS = 3  # a median of fewer says little
SLACK_HOURS = 1e-6  # hours are sums of floats


def run_all(jobs: Sequence[Job]) -> list[float | Exception | None]:
    """Run the jobs that a sweeper asks for, within the sweep's hours; the metric of each, or why it failed."""
    if not jobs:
        return []
    sweep = jobs[0].knobs.sweep
    say(f"{len(jobs)} jobs" + (f" within {sweep.hours:g} hours" if sweep.hours is not None else ""))
    pool = Pool(sweep.hours, jobs)
    outcomes = MODES[sweep.prune](jobs, pool)
    if sweep.hours is not None:
        pool.longer_run_of_the_best(outcomes)
    return [value_of(job, outcomes.get(job.number)) for job in jobs]


# -- what stops a job --------------------------------------------------------------------------------------------------


def losses_of(run: Path) -> list[tuple[float, float]]:
    """(share of the budget, validation loss) of a run's evaluations on the way."""
    points = [point for point in read_metrics(run) if "event" not in point and "val_loss" in point]
    return [(p["progress"], p["val_loss"]) for p in points if is_number(p["val_loss"]) and is_number(p.get("progress"))]


def loss_at(losses: Sequence[tuple[float, float]], share: float) -> float | None:
    """The validation loss at `share` of the budget, on the line between the evaluations around it; None where they do not
    reach that far, or begin later."""
    before = [point for point in losses if point[0] <= share]
    after = [point for point in losses if point[0] >= share]
    if not before:
        return None
    if not after:
        last = max(before)
        return last[1] if share - last[0] <= NEAR else None
    (x, low), (z, high) = max(before), min(after)
    return low if z == x else low + (high - low) * (share - x) / (z - x)


def behind_the_median(job: Job, others: Sequence[Sequence[tuple[float, float]]]) -> Outcome | None:
    """Median stopping (Golovin et al. 2017, Vizier): a job whose best loss so far is above the median of what the others
    had at the same share."""
    losses = losses_of(job.run)
    if not losses or losses[-1][0] < job.knobs.sweep.prune_from:
        return None
    share = losses[-1][0]
    known = [loss for each in others if (loss := loss_at(each, share)) is not None]
    if len(known) < LEAST_OTHERS:
        return None
    median, best = statistics.median(known), min(loss for _, loss in losses)
    if best <= median:
        return None
    why = f"at {share:.0%} of its budget {best:.3f}, the median of {len(known)} others {median:.3f}"
    return Outcome("pruned", why, losses[-1][1])


def median_watch(jobs: Sequence[Job]) -> Watch:
    def watch(job: Job) -> Outcome | None:
        return behind_the_median(job, [losses_of(path) for path in known_runs(jobs[0].folder) if path != job.run])

    return watch


def known_runs(folder: Path) -> list[Path]:
    """Runs of the sweep that have ended, in this start of it or in an earlier one."""
    records = [read_json(path) for path in folder.glob("*.json")]
    return [
        Path(each["run"]) for each in records if isinstance(each, dict) and each["status"] in ("finished", "pruned")
    ]


def rung_watch(rung: float) -> Watch:
    """Stops every job once it was evaluated at or after `rung`."""

    def watch(job: Job) -> Outcome | None:
        losses = losses_of(job.run)
        if not losses or losses[-1][0] < rung:
            return None
        return Outcome("paused", f"at {losses[-1][0]:.0%} of its budget, loss {losses[-1][1]:.3f}", losses[-1][1])

    return watch


# -- the three ways through a sweep ------------------------------------------------------------------------------------


def all_of_them(jobs: Sequence[Job], pool: Pool) -> dict[int, Outcome]:
    return queue(jobs, None, pool)


def by_median(jobs: Sequence[Job], pool: Pool) -> dict[int, Outcome]:
    return queue(jobs, median_watch(jobs), pool)


def by_halving(jobs: Sequence[Job], pool: Pool) -> dict[int, Outcome]:
    """All to the first rung, the better half to the second, the better half of those to the end."""
    outcomes: dict[int, Outcome] = {}
    going = list(jobs)
    for rung in RUNGS:
        watch = rung_watch(rung)
        there = {job.number: paused for job in going if not already(job) and (paused := watch(job)) is not None}
        found = there | queue([job for job in going if job.number not in there], watch, pool)
        outcomes |= found
        ended = [job for job in going if job.number in found and found[job.number].status == "paused"]
        keep = max(1, math.ceil(len(ended) / 2))
        ranked = sorted(ended, key=lambda job: loss_at(losses_of(job.run), rung) or math.inf)
        for job in ranked[keep:]:
            why = f"behind {keep} of {len(ended)} at {rung:.0%} of the budget"
            outcomes[job.number] = Outcome("pruned", why, outcomes[job.number].value)
            mark(job, outcomes[job.number])
        going = [job for job in jobs if job in ranked[:keep]]
    return outcomes | queue(going, None, pool)


def mark(job: Job, outcome: Outcome) -> None:
    """Say and record that a job that had paused does not go on."""
    say(f"{job.label} {outcome.status}: {outcome.why}")
    record = read_json(job.record) or {}
    write_json(job.record, record | {"status": outcome.status, "why": outcome.why})


def queue(jobs: Sequence[Job], watch: Watch | None, pool: Pool) -> dict[int, Outcome]:
    line = Queue(jobs, watch, pool.gate)
    line.run()
    return line.outcomes


MODES = {"none": all_of_them, "median": by_median, "halving": by_halving}


# -- hours -------------------------------------------------------------------------------------------------------------


@dataclass
class Pool:
    """Device hours that the jobs draw from; None: no limit."""

    hours: float | None
    jobs: Sequence[Job]

    def __post_init__(self) -> None:
        self.promised: dict[int, float] = {}  # to jobs that were started
        if self.hours is not None and any(job.knobs.budget.hours is None for job in self.jobs):
            raise UserError("sweep.hours is shared out by budget.hours, which is not set for every job")

    def spent(self) -> float:
        return sum(hours_spent(job.run) for job in self.jobs)

    def left(self) -> float:
        """Hours that no job has used and no started one may still use."""
        open_ = sum(max(0.0, promised - hours_spent(self._run(number))) for number, promised in self.promised.items())
        return (self.hours or 0.0) - self.spent() - open_

    def _run(self, number: int) -> Path:
        return next(job.run for job in self.jobs if job.number == number)

    @property
    def gate(self) -> Gate | None:
        return self._refusal if self.hours is not None else None

    def _refusal(self, job: Job) -> str | None:
        """Why a job may not start. Started ones keep their hours until they end; what they leave is free again."""
        self._release_ended()
        needed = (job.knobs.budget.hours or 0.0) + job.knobs.budget.extend_hours - hours_spent(job.run)
        if needed > self.left() + SLACK_HOURS:
            return f"it needs {needed:.3g} hours and sweep.hours={self.hours:g} has {max(0.0, self.left()):.3g} left"
        self.promised[job.number] = needed + hours_spent(job.run)
        return None

    def _release_ended(self) -> None:
        for job in self.jobs:
            status = (read_json(job.run / "status.json") or {}).get("status")
            if status not in (None, "running"):
                self.promised.pop(job.number, None)

    def longer_run_of_the_best(self, outcomes: dict[int, Outcome]) -> None:
        """What is left goes to one longer run of the best job, where that is longer than it was."""
        self._release_ended()
        done = [job for job in self.jobs if job.number in outcomes and outcomes[job.number].status == "finished"]
        done = [job for job in done if outcomes[job.number].value is not None]
        if not done:
            return
        sign = -1 if done[0].knobs.sweep.metric in HIGHER_IS_BETTER else 1
        best = min(done, key=lambda job: sign * float(outcomes[job.number].value or 0.0))
        hours, had = self.left(), float(best.knobs.budget.hours or 0.0)
        if hours <= had:
            say(f"{hours:.3g} hours are left, too few for a longer run of the best ({had:g} hours)")
            return
        hours = float(f"{hours:.4g}")
        knobs = replace(best.knobs, budget=replace(best.knobs.budget, hours=hours, extend_hours=0.0))
        overrides = [each for each in best.overrides if not each.startswith("budget.hours=")]
        job = Job(max(job.number for job in self.jobs) + 1, (*overrides, f"budget.hours={hours:g}"), best.folder, knobs)
        job.write()
        say(f"{format_seconds(3600 * hours)} are left: a longer run of the best, {best.label}")
        Queue([job]).run()
        write_json(job.record, (read_json(job.record) or {}) | {"longer": True})  # not to be ranked with the others
