"""The clock of a run: its limits, the time spent by account, and the progress that schedules depend on.

Times are in seconds. The clock starts with the process, before any import, and on Linux it keeps running while the
machine is suspended: a budget of an hour is an hour of wall time. The time itself comes from common/monotonic.py.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from budget.extension import NOTHING, UNITS, Extension
from common.monotonic import now, run_start

ACCOUNTS = ("setup", "compile", "data", "train", "eval", "checkpoint", "idle")
# Accounts in which no suspension is detected: "prepare" is off the budget, and in "setup" imports block every thread
# while they wait for the disk.
UNWATCHED = ("prepare", "setup")
TRAINING = ("train", "data")  # what counts with counts="training"
HEARTBEAT_S = 1.0  # the ledger on disk is at most this old, so a killed run loses at most this much
RECENT_STEPS = 64  # window of the step-time estimate
STANDSTILL_S = 5.0  # if not even the heartbeat read the clock for so long, the whole process was suspended
STALL_FACTOR = 5.0  # a step of so many medians (plus one second) was a stall and is booked as idle


class Pace:
    """Recent step times, in seconds.

    Attributes:
        typical: The median; 0 before the first `add`.
        worst: The 95th percentile; 0 before the first `add`.
    """

    def __init__(self) -> None:
        self.typical = self.worst = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        ordered = sorted(self._recent)
        self.typical = statistics.median(ordered)
        self.worst = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]

    def __len__(self) -> int:
        return len(self._recent)


@dataclass(frozen=True)
class Limits:
    """The budget. None means no limit; the first limit reached stops the run.

    hours: wall time of the whole process (counts="all"), or of the training steps only (counts="training", as in
    speed-run contests). flops: as counted by budget/flops.py. tokens: training tokens. steps: optimizer steps.
    added: how much of these limits was added after the start of the run.
    """

    hours: float | None = None
    flops: float | None = None
    tokens: float | None = None
    steps: int | None = None
    counts: str = "all"
    added: Extension = NOTHING

    @property
    def seconds(self) -> float | None:
        return None if self.hours is None else self.hours * 3600

    @property
    def amounts(self) -> dict[str, float]:
        """The limits that are set, by unit."""
        return {unit: amount for unit in UNITS if (amount := getattr(self, unit)) is not None}

    @property
    def first_amounts(self) -> dict[str, float]:
        """The same, without what was added."""
        return {unit: amount - getattr(self.added, unit) for unit, amount in self.amounts.items()}


@dataclass(frozen=True)
class StepCost:
    """What one optimizer step spends of the limits in tokens and FLOPs."""

    tokens: int
    flops: float


@dataclass
class BudgetClock:
    """Limits, ledger and progress of a run. The accounts are disjoint and sum to the time since the process began.

    Data preparation is not part of them. `progress` in [0, 1] is the argument of every schedule. Each step takes an
    equal share of what is left: progress += (1 - progress) / steps_left. With constant step times this is the spent
    share of the tightest limit. When the machine slows down, or a killed run resumes with less time, progress still
    reaches 1 exactly at the last step.
    """

    limits: Limits
    clock: Callable[[], float] = now
    started: float = field(default_factory=run_start)
    reserve_s: float = 0.0  # kept for the final save, evaluation, samples and report
    steps_ahead: int = 0  # steps still running on the device when the next one begins
    progress: float = 0.0
    ledger: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACCOUNTS, 0.0))
    prepare_s: float = 0.0  # data preparation, outside the budget and reported separately
    earlier_s: float = 0.0  # spent by earlier processes of the same run
    standstill_s: float = 0.0  # time in which the process was suspended; part of the idle account
    watched: bool = False  # whether a heartbeat thread reads this clock every HEARTBEAT_S

    def __post_init__(self) -> None:
        self.pace = Pace()
        self._carried = dict.fromkeys(ACCOUNTS, 0.0)
        self._gap_s = 0.0
        self._stepped: dict[str, float] | None = None  # accounts of training after the last step of this process
        self._account = "setup"
        self._since = self._awake_s = self.started
        self._lock = threading.Lock()

    # -- accounts ------------------------------------------------------------------------------------------------

    @contextmanager
    def charge(self, account: str) -> Iterator[None]:
        """Book the time inside the block on `account`, one of ACCOUNTS; of nested blocks, the innermost is charged."""
        previous = self._switch(account)
        try:
            yield
        finally:
            self._switch(previous)

    @contextmanager
    def off_budget(self) -> Iterator[None]:
        """Book the time inside the block as data preparation, which is reported but not charged."""
        with self.charge("prepare"):
            yield

    def _switch(self, account: str | None = None) -> str:
        """Book the time since the last call, continue with `account` (None: the same), and return the previous account."""
        with self._lock:
            now_s = self.clock()
            passed, previous = now_s - self._since, self._account
            if self.watched and passed > STANDSTILL_S and previous not in UNWATCHED:
                self.standstill_s += passed
                self._book("idle", passed)
            else:
                self._book(previous, passed)
            self._account, self._since = account or previous, now_s
            self._awake_s = now_s - self.standstill_s
        return previous

    def awake_s(self) -> float:
        """Return the clock without the time in which the process was suspended, to measure how long work takes."""
        self._switch()
        return self._awake_s

    def _book(self, account: str, seconds: float) -> None:
        if account == "prepare":
            self.prepare_s += seconds
        else:
            self.ledger[account] += seconds

    def accounts(self) -> dict[str, float]:
        """Return the seconds by account up to now, earlier processes of the run included."""
        self._switch()
        return dict(self.ledger)

    def carry(self, ledger: dict[str, float], clean: bool) -> None:
        """Add what earlier processes of this run spent.

        After a kill (`clean` false) the time of death is unknown, but at most one heartbeat after the last ledger.
        That much is charged as idle.
        """
        for account in ACCOUNTS:  # a second, more complete ledger of the same past replaces the first
            more = max(0.0, ledger.get(account, 0.0) - self._carried[account])
            self._carried[account] += more
            self.ledger[account] += more
        if not clean and not self._gap_s:
            self._gap_s = HEARTBEAT_S
            self.ledger["idle"] += HEARTBEAT_S
        self.earlier_s = sum(self._carried.values()) + self._gap_s

    def carry_at_least(self, seconds: float) -> None:
        """Make the time of earlier processes at least `seconds`; what no ledger accounts for is charged as idle."""
        self.carry({"idle": self._carried["idle"] + max(0.0, seconds - self.earlier_s)}, clean=False)

    # -- what is left --------------------------------------------------------------------------------------------

    def spent_s(self) -> float:
        """Return the seconds since the first process of the run began, data preparation excluded."""
        self._switch()
        return sum(self.ledger.values())

    def training_s(self) -> float:
        """Return the seconds in optimizer steps and in waiting for their data, as speed-run contests count."""
        accounts = self.accounts()
        return sum(accounts[account] for account in TRAINING)

    def counted_s(self) -> float:
        """Return the seconds that count towards the limit of hours."""
        return self.spent_s() if self.limits.counts == "all" else self.training_s()

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, the reserve included; None without a limit of hours."""
        return None if self.limits.seconds is None else self.limits.seconds - self.counted_s()

    def overshoot_s(self) -> float | None:
        """Return by how much the limit of hours is exceeded, negative while time is left; None without one."""
        left = self.seconds_left()
        return None if left is None else -left

    def steps_left(self, step: int, tokens: int, flops: float, cost: StepCost) -> tuple[int, str]:
        """Return how many more steps fit, and the limit that decides it.

        A step that could pass the deadline does not fit.
        """
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

    def rescale(self, before: dict[str, float], step: int, tokens: int, flops: float) -> None:
        """Set `progress` for the limits of now, where it was reached under the limits `before` (by unit).

        Progress is the spent share of the tightest limit, so it changes by the ratio of that share: after 300 of 300
        steps and with 100 more, from 1 to 300/400.
        """
        spent = {"hours": self.counted_s() / 3600, "flops": flops, "tokens": tokens, "steps": step}

        def share(limits: dict[str, float]) -> float:
            return max(spent[unit] / limits[unit] for unit in self.limits.amounts)

        if share(before):
            self.progress = min(1.0, self.progress * share(self.limits.amounts) / share(before))

    def advance(self, steps_left: int) -> float:
        """Add one step's share of what is left to `progress`, and return it for the schedules of this step."""
        self.progress = 1.0 if steps_left == 1 else self.progress + (1.0 - self.progress) / steps_left
        return self.progress

    @contextmanager
    def step(self) -> Iterator[None]:
        """Charge one optimizer step to train and record its duration.

        The duration is the training time since the previous step, with the wait for data and the time between the steps: the
        pace is that of the whole loop, or the schedule would end early.
        """
        with self.charge("train"):
            began = self._booked_training() if self._stepped is None else self._stepped
            yield
        self._step_done({account: seconds - began[account] for account, seconds in self._booked_training().items()})
        self._stepped = self._booked_training()

    def _booked_training(self) -> dict[str, float]:
        """Return the seconds of the accounts of training up to the last change of account."""
        return {account: self.ledger[account] for account in TRAINING}

    def _step_done(self, seconds: dict[str, float]) -> None:
        """Record a step's duration, given by account.

        The excess of a stall (a disk that hangs, a process that is stopped for a moment) moves to idle, so that it affects
        neither the pace nor the training time.
        """
        total = sum(seconds.values())
        if len(self.pace) >= 8 and total > STALL_FACTOR * self.pace.typical + 1.0:
            stalled = total - self.pace.typical
            with self._lock:
                self.ledger["idle"] += stalled
                # Taken from one account alone, a wait for data could make train negative.
                for account, booked in seconds.items():
                    self.ledger[account] -= stalled * booked / total
        else:
            self.pace.add(total)
