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
from typing import Any

from common.errors import UserError
from common.format import format_seconds
from common.json_io import is_number, mapping, read_json
from config import HALVING_RUNGS
from run.history import evaluations, read_metrics
from sweeps.engine.job import Job, Outcome, already, anew, hours_spent, put_away, write_record
from sweeps.engine.scheduler import Queue, Watch, say, value_of
from sweeps.engine.table import HIGHER_IS_BETTER

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
    jobs = begun_anew(jobs)
    pool = Pool(sweep.hours, jobs)
    outcomes = MODES[sweep.prune](jobs, pool)
    if sweep.hours is not None and not failure_stops(jobs, outcomes):
        queue(pool.longer_runs(outcomes), None, pool)
    return [value_of(job, outcomes.get(job.number)) for job in jobs]


def begun_anew(jobs: Sequence[Job]) -> list[Job]:
    """With fresh=true the longer runs that these jobs' hours bought are set aside as well. Raises UserError."""
    if jobs[0].knobs.fresh:
        for record in longer_records(jobs[0].folder):
            put_away(Path(record["run"]))
            (jobs[0].folder / f"{record['name']}.json").unlink()
    return [anew(job) for job in jobs]


# -- what stops a job --------------------------------------------------------------------------------------------------


def losses_of(run: Path) -> list[tuple[float, float]]:
    """(share of the budget, validation loss) of a run's evaluations on the way."""
    points = evaluations(read_metrics(run))
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
    ended: dict[Path, list[tuple[float, float]]] = {}  # read once: this runs beside jobs whose seconds count

    def watch(job: Job) -> Outcome | None:
        for path in known_runs(jobs[0].folder):
            if path not in ended:
                ended[path] = losses_of(path)
        return behind_the_median(job, [losses for path, losses in ended.items() if path != job.run])

    return watch


def known_runs(folder: Path) -> list[Path]:
    """Runs of the sweep that have ended, in this start of it or in an earlier one."""
    records = [mapping(read_json(path)) for path in folder.glob("*.json")]
    return [Path(each["run"]) for each in records if each.get("status") in ("finished", "pruned")]


def rung_watch(rung: float) -> Watch:
    """Stops every job once it was evaluated at or after `rung`."""

    def watch(job: Job) -> Outcome | None:
        losses = losses_of(job.run)
        if not losses or losses[-1][0] < rung:
            return None
        return Outcome("paused", f"at {losses[-1][0]:.0%} of its budget, loss {losses[-1][1]:.3f}", losses[-1][1])

    return watch


def loss_at_rung(losses: Sequence[tuple[float, float]], rung: float) -> float:
    """What a job that came past the rung is ranked by; where its steps are so large that it was not evaluated before, the
    first loss beyond."""
    found = loss_at(losses, rung)
    return next((loss for share, loss in losses if share >= rung), math.inf) if found is None else found


# -- the three ways through a sweep ------------------------------------------------------------------------------------


def all_of_them(jobs: Sequence[Job], pool: Pool) -> dict[int, Outcome]:
    return queue(jobs, None, pool)


def by_median(jobs: Sequence[Job], pool: Pool) -> dict[int, Outcome]:
    return queue(jobs, median_watch(jobs), pool)


def by_halving(jobs: Sequence[Job], pool: Pool) -> dict[int, Outcome]:
    """All to the first rung, the better half to the second, the better half of those to the end.

    Who is kept follows from the runs alone: all that came past a rung are ranked there, those that went on from it or stopped
    at it in an earlier start of the sweep as well, so that the same command halves no second time. One that has been at its
    end before is not to be stopped on the way there, if hours were added since.
    """
    outcomes: dict[int, Outcome] = {}
    through = [job for job in jobs if (job.run / "result.json").exists()]
    going = list(jobs)
    for rung in HALVING_RUNGS:
        watch = rung_watch(rung)
        there = {job.number: paused for job in going if not lost(job) and (paused := watch(job)) is not None}
        found = there | queue([job for job in going if job.number not in there and job not in through], watch, pool)
        outcomes |= found
        if failure_stops(jobs, outcomes):
            return outcomes
        ended = [job for job in going if job.number in found and found[job.number].status == "paused"]
        keep = max(1, math.ceil(len(ended) / 2))
        ranked = sorted(ended, key=lambda job: loss_at_rung(losses_of(job.run), rung))
        for job in ranked[keep:]:
            if job not in through:
                why = f"behind {keep} of {len(ended)} at {rung:.0%} of the budget"
                outcomes[job.number] = Outcome("pruned", why, outcomes[job.number].value)
                mark(job, outcomes[job.number])
        going = [job for job in jobs if job in ranked[:keep]]
    return outcomes | queue([job for job in jobs if job in through or job in going], None, pool)


def lost(job: Job) -> bool:
    """Whether nothing will come of a job any more, however far it came."""
    outcome = already(job)
    return outcome is not None and not outcome.good


def failure_stops(jobs: Sequence[Job], outcomes: dict[int, Outcome]) -> bool:
    """Whether a job has failed after which nothing more is to start."""
    return jobs[0].knobs.sweep.on_error == "stop" and not all(outcome.good for outcome in outcomes.values())


def mark(job: Job, outcome: Outcome) -> None:
    """Say and record that a job that had paused does not go on."""
    say(f"{job.label} {outcome.status}: {outcome.why}")
    before = mapping(read_json(job.record))
    write_record(job, outcome, before.get("tries", 0), before.get("seconds", 0.0))


def queue(jobs: Sequence[Job], watch: Watch | None, pool: Pool) -> dict[int, Outcome]:
    line = Queue(jobs, watch, pool)
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
        self.promised: dict[Path, float] = {}  # to runs that were started
        if self.hours is not None and any(job.knobs.budget.hours is None for job in self.jobs):
            raise UserError("sweep.hours is shared out by budget.hours, which is not set for every job")
        self.bought = longer_records(self.jobs[0].folder)  # by earlier starts of the sweep

    def spent(self) -> float:
        runs = {job.run for job in self.jobs} | {Path(each["run"]) for each in self.bought}
        return sum(hours_spent(run) for run in runs)

    def left(self) -> float:
        """Hours that no run has used and no started one may still use."""
        open_ = sum(max(0.0, promised - hours_spent(run)) for run, promised in self.promised.items())
        return (self.hours or 0.0) - self.spent() - open_

    def reserve(self, job: Job) -> str | None:
        """Keep its hours for a job until it is released; or why it may not start."""
        if self.hours is None:
            return None
        spent = hours_spent(job.run)
        needed = (job.knobs.budget.hours or 0.0) + job.knobs.budget.extend_hours - spent
        if needed > self.left() + SLACK_HOURS:
            return f"it needs {needed:.3g} hours and sweep.hours={self.hours:g} has {max(0.0, self.left()):.3g} left"
        self.promised[job.run] = needed + spent
        return None

    def release(self, job: Job) -> None:
        """What a job that has ended did not use is free again. The sweep knows that it has: status.json still tells of an
        earlier process while a new one loads its libraries."""
        self.promised.pop(job.run, None)

    def longer_runs(self, outcomes: dict[int, Outcome]) -> list[Job]:
        """What is left goes to one longer run of the best job. Those of earlier starts of the sweep are found again, and one
        of them that has not ended goes on before another is bought."""
        earlier = [
            again
            for each in self.bought
            for job in self.jobs
            if (again := longer(job, each["number"], each["hours"])).name == each["name"]
        ]
        if all(already(job) for job in earlier) and (more := self._one_more(outcomes)):
            earlier.append(more)
        for job in earlier:
            job.write()
        return earlier

    def _one_more(self, outcomes: dict[int, Outcome]) -> Job | None:
        """A longer run of the best job, if it can be longer than that and than what was bought before."""
        done = [job for job in self.jobs if job.number in outcomes and outcomes[job.number].status == "finished"]
        done = [job for job in done if outcomes[job.number].value is not None]
        if not done:
            return None
        sign = -1 if done[0].knobs.sweep.metric in HIGHER_IS_BETTER else 1
        best = min(done, key=lambda job: sign * float(outcomes[job.number].value or 0.0))
        had = max([float(best.knobs.budget.hours or 0.0), *(each["hours"] for each in self.bought)])
        hours = rounded_down(self.left())
        if hours <= had:
            say(f"{hours:.4g} hours are left, too few for a longer run of the best ({had:g} hours)")
            return None
        say(f"{format_seconds(3600 * hours)} are left: a longer run of the best, {best.label}")
        numbers = [*(job.number for job in self.jobs), *(each["number"] for each in self.bought)]
        return longer(best, max(numbers) + 1, hours)


def longer_records(folder: Path) -> list[dict[str, Any]]:
    """The records of the longer runs among those in a sweep's folder for jobs."""
    records = [mapping(read_json(path)) for path in sorted(folder.glob("*.json"))]
    return [each for each in records if each.get("longer")]


def longer(job: Job, number: int, hours: float) -> Job:
    """The same as `job` with other hours."""
    knobs = replace(job.knobs, budget=replace(job.knobs.budget, hours=hours, extend_hours=0.0))
    overrides = [each for each in job.overrides if not each.startswith("budget.hours=")]
    return Job(number, (*overrides, f"budget.hours={hours:g}"), job.folder, knobs, longer=True)


def rounded_down(hours: float) -> float:
    """Four digits, as they can be typed, and not more than there are."""
    if hours <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(hours)) - 3)
    return float(f"{math.floor(hours / unit) * unit:.4g}")
