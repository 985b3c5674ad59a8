"""The one clock of a run: what may be spent, what was spent and on what, and how far along the run is.

This is the only file that reads a clock (a test walks the tree). Times are seconds. The clock starts with the process,
before any import, and on Linux it goes on while the machine is suspended: a budget of an hour is an hour on the wall.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from common.monotonic import now, run_start

ACCOUNTS = ("setup", "compile", "data", "train", "eval", "checkpoint", "idle")


# No standstill is seen in these: one is off the budget, and loading libraries holds up every thread while a disk reads.
UNWATCHED = ("prepare", "setup")


HEARTBEAT_S = 1.0  # the ledger on disk is at most this old, so a killed run loses at most this much of its accounts


RECENT_STEPS = 64  # steps that the estimate of the step time looks back over


STANDSTILL_S = 5.0  # nobody looked at the clock for so long, not even the heartbeat: the whole process stood still


STALL_FACTOR = 5.0  # a step this many times the median (and a second longer) was a stall, not work


class Pace:
    """Step times, and from them how long the next step takes: typically (median) and at worst (95th percentile)."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)

    @property
    def typical(self) -> float:
        return statistics.median(self._recent)

    @property
    def worst(self) -> float:
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]

    def __len__(self) -> int:
        return len(self._recent)


@dataclass(frozen=True)
class Limits:
    """What may be spent; None is no limit, the first limit reached stops the run.

    hours: wall clock of the whole process (counts="all") or of training steps alone (counts="training", the
    convention of speed-run contests). flops: by budget/flops.py. tokens: trained on. steps: optimizer steps.
    """

    hours: float | None = None
    flops: float | None = None
    tokens: float | None = None
    steps: int | None = None
    counts: str = "all"
    extend_hours: float = 0.0

    @property
    def seconds(self) -> float | None:
        return None if self.hours is None else (self.hours + self.extend_hours) * 3600


@dataclass(frozen=True)
class StepCost:
    """What one optimizer step spends of the limits that are not time."""

    tokens: int
    flops: float


@dataclass
class BudgetClock:
    """Limits, ledger and progress. Disjoint accounts sum to the time since the process began, preparation excluded.

    `progress` in [0, 1] is what every schedule is a function of. Each step takes an equal share of what is left:
    progress += (1 - progress) / steps_left. With constant step times that is the share of the tightest limit spent;
    when the machine slows down, or a killed run comes back with less, it still lands on 1 exactly at the last step.
    """

    limits: Limits
    clock: Callable[[], float] = now
    started: float = field(default_factory=run_start)
    reserve_s: float = 0.0  # kept for the final save, evaluation, samples and report
    steps_ahead: int = 0  # launched and not over yet when a step is begun
    progress: float = 0.0
    ledger: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACCOUNTS, 0.0))
    prepare_s: float = 0.0  # preparing data: before the budget, reported beside it
    earlier_s: float = 0.0  # spent by earlier processes of the same run
    standstill_s: float = 0.0  # of what was spent: suspended, or on a machine that was asleep; booked as idle
    watched: bool = False  # whether somebody is waiting to look at this clock within HEARTBEAT_S

    def __post_init__(self) -> None:
        self.pace = Pace()
        self._carried = dict.fromkeys(ACCOUNTS, 0.0)
        self._gap_s = 0.0
        self._account = "setup"
        self._since = self.started
        self._lock = threading.Lock()

    # -- accounts ------------------------------------------------------------------------------------------------

    @contextmanager
    def charge(self, account: str) -> Iterator[None]:
        """Book the time inside the block on `account` (one of ACCOUNTS); blocks may nest, the innermost pays."""
        previous = self._switch(account)
        try:
            yield
        finally:
            self._switch(previous)

    @contextmanager
    def off_budget(self) -> Iterator[None]:
        """Preparing data is a stage of its own: timed and reported, not charged."""
        with self.charge("prepare"):
            yield

    def _switch(self, account: str | None = None) -> str:
        """Book what has passed, and go on with `account`, or with the same one; returns the account until now."""
        with self._lock:
            moment = self.clock()
            passed, previous = moment - self._since, self._account
            if self.watched and passed > STANDSTILL_S and previous not in UNWATCHED:
                self.standstill_s += passed
                self._book("idle", passed)
            else:
                self._book(previous, passed)
            self._account, self._since = account or previous, moment
        return previous

    def awake_s(self) -> float:
        """This clock without the time in which the process stood still: for how long work takes."""
        self._switch()
        return self.clock() - self.standstill_s

    def _book(self, account: str, seconds: float) -> None:
        if account == "prepare":
            self.prepare_s += seconds
        else:
            self.ledger[account] += seconds

    def accounts(self) -> dict[str, float]:
        """Seconds by account up to this moment, earlier processes included."""
        self._switch()
        return dict(self.ledger)

    def carry(self, ledger: dict[str, float], clean: bool) -> None:
        """Add what earlier processes of this run spent. After a kill nobody knows when the last process died: at most
        one heartbeat after its last ledger, so that much is charged as idle."""
        for account in ACCOUNTS:  # a second, fuller account of the same past replaces the first
            more = max(0.0, ledger.get(account, 0.0) - self._carried[account])
            self._carried[account] += more
            self.ledger[account] += more
        if not clean and not self._gap_s:
            self._gap_s = HEARTBEAT_S
            self.ledger["idle"] += HEARTBEAT_S
        self.earlier_s = sum(self._carried.values()) + self._gap_s

    def carry_at_least(self, seconds: float) -> None:
        """Earlier processes of this run are known to have spent so much, on whatever: what no ledger holds is idle."""
        self.carry({"idle": self._carried["idle"] + max(0.0, seconds - self.earlier_s)}, clean=False)

    # -- what is left --------------------------------------------------------------------------------------------

    def spent_s(self) -> float:
        """Everything since the first process of the run began, preparation excluded."""
        return sum(self.accounts().values())

    def training_s(self) -> float:
        """Optimizer steps and waiting for their data: what speed-run contests count."""
        accounts = self.accounts()
        return accounts["train"] + accounts["data"]

    def counted_s(self) -> float:
        return self.spent_s() if self.limits.counts == "all" else self.training_s()

    def seconds_left(self) -> float | None:
        """Until the deadline, the reserve not subtracted; None without a limit of hours."""
        return None if self.limits.seconds is None else self.limits.seconds - self.counted_s()

    def overshoot_s(self) -> float | None:
        """How far the counted time is past the limit; negative when there is time left, None without such a limit."""
        left = self.seconds_left()
        return None if left is None else -left

    def steps_left(self, step: int, tokens: int, flops: float, cost: StepCost) -> tuple[int, str]:
        """How many more steps fit, and which limit says so. A step that could pass the deadline is not begun."""
        fits: dict[str, int] = {}
        left = self.seconds_left()
        if left is not None:
            reserve = self.reserve_s if self.limits.counts == "all" else 0.0
            spare = left - reserve - (1 + self.steps_ahead) * self.pace.worst
            fits["hours"] = 0 if spare < 0 else 1 + int(spare / max(self.pace.typical, 1e-9))
        if self.limits.flops is not None:
            fits["flops"] = int((self.limits.flops - flops) / cost.flops)
        if self.limits.tokens is not None:
            fits["tokens"] = int(self.limits.tokens - tokens) // cost.tokens
        if self.limits.steps is not None:
            fits["steps"] = self.limits.steps - step
        tightest = min(fits, key=lambda name: fits[name])
        return max(0, fits[tightest]), tightest

    def advance(self, steps_left: int) -> float:
        """Take one step's share of what is left; the value that the schedules of this step are computed from."""
        self.progress = 1.0 if steps_left == 1 else self.progress + (1.0 - self.progress) / steps_left
        return self.progress

    @contextmanager
    def step(self) -> Iterator[None]:
        """One optimizer step: charged to train, its duration recorded."""
        began = self.awake_s()
        with self.charge("train"):
            yield
        self._step_done(self.awake_s() - began)

    def tokens_per_second(self, cost: StepCost) -> float:
        """Of a typical recent step."""
        return cost.tokens / max(self.pace.typical, 1e-9)

    def _step_done(self, seconds: float) -> None:
        """Record a step's duration. A stall (a disk that hangs, a process stopped for a moment) is moved from train to
        idle, so that neither the pace nor the account of training is polluted."""
        if len(self.pace) >= 8 and seconds > STALL_FACTOR * self.pace.typical + 1.0:
            stalled = seconds - self.pace.typical
            self.accounts()
            self.ledger["train"] -= stalled
            self.ledger["idle"] += stalled
        else:
            self.pace.add(seconds)
