"""The launcher of this machine: one fresh process a job, one device a job, a line the moment a job ends.

No more than that: queues, priorities and other machines are Slurm's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from common.format import format_seconds
from common.json_io import mapping, read_json
from common.monotonic import now
from common.signals import STOPPING, Interrupted
from sweeps.engine.device_lock import DeviceLock, SweepDevice, devices, try_device_lock
from sweeps.engine.job import (
    RETRIED,
    Job,
    JobFailed,
    Outcome,
    already,
    anew,
    held_by,
    last_lines,
    log_size,
    outcome_of,
    start,
    write_record,
)

POLL_S = 0.1
LOOK_S = 1.0  # between two looks at what the running jobs write

# Looks at a running job and says whether to stop it, and what to call that.
Watch = Callable[[Job], Outcome | None]


class Hours(Protocol):
    """What all jobs of a sweep draw from."""

    def reserve(self, job: Job) -> str | None:
        """Keep a job's hours for it; or why it may not start."""

    def release(self, job: Job) -> None:
        """A job that hours were promised to has ended, or does not start yet."""


@dataclass
class Running:
    job: Job
    process: subprocess.Popen[bytes]
    lease: DeviceLock
    began: float
    log_from: int  # bytes of the log that earlier processes wrote
    tries: int = 1
    stopped_as: Outcome | None = None  # by `Watch`
    told: bool = False  # that the sweep is to stop


class Stop:
    """The signal that asks the sweep to stop; jobs get the same one, save, and exit."""

    def __init__(self) -> None:
        self.name: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # What is ignored stays ignored: nohup means that the sweep is to outlive its terminal.
        heard = [name for name in STOPPING if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN]
        before = {name: signal.signal(signal.Signals[name], self._handle) for name in heard}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(signal.Signals[name], handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name == "SIGINT" and number == signal.SIGINT:
            os._exit(128 + number)
        self.name = signal.Signals(number).name


class Queue:
    """Jobs on devices until all have ended."""

    def __init__(self, jobs: Sequence[Job], watch: Watch | None = None, pool: Hours | None = None) -> None:
        self.waiting = deque(jobs)
        self.running: list[Running] = []
        self.outcomes: dict[int, Outcome] = {}
        self.total = len(jobs)
        self.stop = Stop()
        self.places = {wanted: devices(wanted) for wanted in {job.knobs.device.name for job in jobs}}
        self._watch, self._pool = watch, pool
        self._told: set[str] = set()
        self._held: dict[int, float] = {}  # when to look again at a job whose run is in use
        self._looked = now()
        self._short = False  # of hours for the job that is next, until another one ends

    def run(self) -> None:
        """Raises Interrupted after a stopping signal, once every job has saved and exited."""
        with self.stop.watching():
            while self.waiting or self.running:
                self._collect()
                if self.stop.name:
                    self._forward()
                else:
                    self._begin()
                    self._look()
                threading.Event().wait(POLL_S)  # no lock in it that a signal's handler would have to wait for
        if self.stop.name:
            raise Interrupted(self.stop.name)

    def _begin(self) -> None:
        """Start the jobs that have a device, in their order; one whose devices are all taken holds up no other."""
        taken = {each.lease.device.name for each in self.running}
        for job in list(self.waiting):
            places = [device for device in self.places[job.knobs.device.name] if device.name not in taken]
            if not self.waiting or self._short:  # sweep.on_error=stop has cleared it, or no hours are free
                return
            if not places or not self._wanted(job):
                continue
            lease = self._lease(places)
            if lease is None:
                taken |= {device.name for device in places}
                self._release(job)
                continue
            taken.add(lease.device.name)
            self.waiting.remove(job)
            say(f"{job.label} started on {lease.device.name}, log {os.path.relpath(job.log)}")
            log_from = log_size(job)
            self.running.append(Running(job, start(job, lease), lease, now(), log_from))

    def _wanted(self, job: Job) -> bool:
        """Whether a waiting job needs a process and has the hours. One that is done already is told and left out, as is one
        without hours, unless those that run may leave it some."""
        outcome = already(job)
        if outcome is not None:
            self.waiting.remove(job)
            self._end(job, outcome, tries=0, seconds=0.0)
            return False
        if now() < self._held.get(job.number, 0.0):
            return False
        if holder := held_by(job):
            self._held[job.number] = now() + LOOK_S
            self._tell(f"{job.label} waits: its run is in use by {holder}")
            return False
        refusal = self._pool.reserve(job) if self._pool else None
        if refusal is None:
            return True
        self._short = bool(self.running)
        if self._short:
            say(f"{job.label} waits: {refusal}")
        else:
            self.waiting.remove(job)
            say(f"{job.label} is not started: {refusal}")
            self.outcomes[job.number] = not_started(job, refusal)
        return False

    def _release(self, job: Job) -> None:
        if self._pool:
            self._pool.release(job)

    def _lease(self, places: Sequence[SweepDevice]) -> DeviceLock | None:
        """The first of the devices that no other sweep has."""
        for device in places:
            lease = try_device_lock(device)
            if isinstance(lease, DeviceLock):
                return lease
            self._tell(f"{device.name} is in use by {lease}; waiting")
        return None

    def _tell(self, line: str) -> None:
        """Once."""
        if line not in self._told:
            say(line)
            self._told.add(line)

    def _drop(self, why: str) -> None:
        """Nothing that waits is started any more."""
        for job in self.waiting:
            not_started(job, why)
        self.waiting.clear()

    def _collect(self) -> None:
        for each in list(self.running):
            code = each.process.poll()
            if code is None:
                continue
            outcome = outcome_of(each.job, code, each.log_from)
            if each.stopped_as is not None and outcome.status in ("stopped", "killed"):  # killed: it had not begun yet
                outcome = each.stopped_as
            if outcome.status in RETRIED and each.tries <= each.job.knobs.sweep.retries and not self.stop.name:
                say(f"{each.job.label} {outcome.status}: {outcome.why}; trying again")
                each.log_from = log_size(each.job)
                each.process = start(each.job, each.lease)
                each.tries += 1
                continue
            self.running.remove(each)
            each.lease.release()
            self._end(each.job, outcome, each.tries, now() - each.began)

    def _end(self, job: Job, outcome: Outcome, tries: int, seconds: float) -> None:
        self.outcomes[job.number] = outcome
        self._release(job)
        if outcome.status == "finished":  # any other may go on, and finds what it has compiled
            shutil.rmtree(job.compiler_cache, ignore_errors=True)
        self._short = False
        # What needed no process now: an earlier start of the sweep knows how long it took.
        before = {} if tries else read_json(job.record) or {}
        write_record(job, outcome, tries or before.get("tries", 0), seconds or before.get("seconds", 0.0))
        told = (
            f"{job.knobs.sweep.metric} {outcome.value:.4f}"
            if outcome.status == "finished" and outcome.value
            else outcome.why
        )
        how_long = format_seconds(seconds) if tries else "before"
        say(f"{job.label} {outcome.status} ({how_long}): {told}")
        if not outcome.good and job.knobs.sweep.on_error == "stop" and self.waiting:
            say(f"sweep.on_error=stop: {len(self.waiting)} jobs are not started")
            self._drop("sweep.on_error=stop after a failure")

    def _look(self) -> None:
        """Once a second: is a job to be stopped? And on a terminal, what the running ones say, in one line."""
        if now() - self._looked < LOOK_S:
            return
        self._looked = now()
        for each in self.running:
            found = self._watch(each.job) if self._watch and each.stopped_as is None else None
            if found is not None:
                each.stopped_as = found
                each.process.terminate()  # it saves, so that nothing is lost that may be wanted later
        if sys.stdout.isatty():
            lines = [
                f"#{each.job.number} of {self.total}: {(last_lines(each.job, each.log_from) or [''])[-1]}"
                for each in self.running
            ]
            print(f"\r\x1b[K{' | '.join(lines)[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)

    def _forward(self) -> None:
        """Hand the signal on, once; no job is started any more."""
        self._drop("the sweep was stopped")
        for each in self.running:
            if each.process.poll() is None and not each.told:
                each.process.send_signal(signal.Signals[self.stop.name or "SIGTERM"])
                each.told = True


def not_started(job: Job, why: str) -> Outcome:
    """A row for it in the sweep's table, unless an earlier start of the sweep has left one that says more."""
    outcome = Outcome("not started", why)
    if mapping(read_json(job.record)).get("status") in (None, "not started"):
        write_record(job, outcome, tries=0, seconds=0.0)
    return outcome


def say(line: str) -> None:
    start_of_line = "\r\x1b[K" if sys.stdout.isatty() else ""
    print(f"{start_of_line}sweep   {line}", flush=True)


def value_of(job: Job, outcome: Outcome | None) -> float | Exception | None:
    """What a sweeper is told of a job."""
    if outcome is None:
        return JobFailed(f"{job.label} was not started")
    if not outcome.good:
        return JobFailed(f"{job.label} {outcome.status}: {outcome.why}")
    return outcome.value


def run_alone(job: Job) -> float | None:
    """One job under another launcher (joblib, submitit), which is in a process of its own there already.

    Raises JobFailed, and UserError where fresh=true finds the run in use. A stopping signal, once the job has saved, goes on
    to the handler that the launcher had set: submitit's puts the job back into Slurm's queue, from where it goes on with what
    is left of its budget.
    """
    job = anew(job)
    queue = Queue([job])
    try:
        queue.run()
    except Interrupted as stop:
        number = signal.Signals[stop.name]
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, None)
        raise
    value = value_of(job, queue.outcomes.get(job.number))
    if isinstance(value, Exception):
        raise value
    return value
