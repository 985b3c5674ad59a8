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

from budget.clock import now
from run.console import format_seconds
from run.signals import STOPPING, Interrupted
from sweeps.jobs import RETRIED, Job, JobFailed, Outcome, already, last_lines, outcome_of, start, write_record
from sweeps.lease import Device, Lease, devices, try_lease

POLL_S = 0.1
LOOK_S = 1.0  # between two looks at what the running jobs write

# Looks at a running job and says whether to stop it, and what to call that.
Watch = Callable[[Job], Outcome | None]
# Says why a job that is next may not start, or None.
Gate = Callable[[Job], str | None]


@dataclass
class Running:
    job: Job
    process: subprocess.Popen[bytes]
    lease: Lease
    began: float
    tries: int = 1
    stopped_as: Outcome | None = None  # by `Watch`
    told: bool = False  # that the sweep is to stop


class Stop:
    """The signal that asks the sweep to stop; jobs get the same one, save, and exit."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.event = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {name: signal.signal(signal.Signals[name], self._handle) for name in STOPPING}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(signal.Signals[name], handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name == "SIGINT" and number == signal.SIGINT:
            os._exit(128 + number)
        self.name = signal.Signals(number).name
        self.event.set()


class Queue:
    """Jobs on devices until all have ended."""

    def __init__(self, jobs: Sequence[Job], watch: Watch | None = None, gate: Gate | None = None) -> None:
        self.waiting = deque(jobs)
        self.running: list[Running] = []
        self.outcomes: dict[int, Outcome] = {}
        self.total = len(jobs)
        self.stop = Stop()
        self.free: list[Device] = devices(jobs[0].knobs.device.name) if jobs else []
        self._watch, self._gate = watch, gate
        self._told: set[str] = set()
        self._looked = now()

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
                self.stop.event.wait(POLL_S)
                self.stop.event.clear()
        if self.stop.name:
            raise Interrupted(self.stop.name)

    def _begin(self) -> None:
        for device in list(self.free):
            job = self._next()
            if job is None:
                return
            lease = try_lease(device)
            if isinstance(lease, str):
                self.waiting.appendleft(job)
                if device.name not in self._told:
                    say(f"{device.name} is in use by {lease}; waiting")
                    self._told.add(device.name)
                continue
            self.free.remove(device)
            say(f"{job.label} started on {device.name}, log {os.path.relpath(job.log)}")
            self.running.append(Running(job, start(job, lease), lease, now()))

    def _next(self) -> Job | None:
        """The next job that needs a process; those that are done already, or have no hours left, are told and left out."""
        while self.waiting:
            job = self.waiting.popleft()
            outcome = already(job)
            if outcome is not None:
                self._end(job, outcome, tries=0, seconds=0.0)
                continue
            refusal = self._gate(job) if self._gate else None
            if refusal is None:
                return job
            say(f"{job.label} is not started: {refusal}")
        return None

    def _collect(self) -> None:
        for each in list(self.running):
            code = each.process.poll()
            if code is None:
                continue
            outcome = outcome_of(each.job, code)
            if each.stopped_as is not None and outcome.status == "stopped":
                outcome = each.stopped_as
            if outcome.status in RETRIED and each.tries <= each.job.knobs.sweep.retries and not self.stop.name:
                say(f"{each.job.label} {outcome.status}: {outcome.why}; trying again")
                each.process = start(each.job, each.lease, again=True)
                each.tries += 1
                continue
            self.running.remove(each)
            each.lease.release()
            self.free.append(each.lease.device)
            self._end(each.job, outcome, each.tries, now() - each.began)

    def _end(self, job: Job, outcome: Outcome, tries: int, seconds: float) -> None:
        self.outcomes[job.number] = outcome
        if tries or not job.record.exists():  # what an earlier start of the sweep wrote says how long it took
            write_record(job, outcome, tries, seconds)
        told = (
            f"{job.knobs.sweep.metric} {outcome.value:.4f}"
            if outcome.status == "finished" and outcome.value
            else outcome.why
        )
        how_long = format_seconds(seconds) if tries else "before"
        say(f"{job.label} {outcome.status} ({how_long}): {told}")
        if not outcome.good and job.knobs.sweep.on_error == "stop" and self.waiting:
            say(f"sweep.on_error=stop: {len(self.waiting)} jobs are not started")
            self.waiting.clear()

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
                f"#{each.job.number} of {self.total}: {(last_lines(each.job) or [''])[-1]}" for each in self.running
            ]
            print(f"\r\x1b[K{' | '.join(lines)[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)

    def _forward(self) -> None:
        """Hand the signal on, once; no job is started any more."""
        self.waiting.clear()
        for each in self.running:
            if each.process.poll() is None and not each.told:
                each.process.send_signal(signal.Signals[self.stop.name or "SIGTERM"])
                each.told = True


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

    Raises JobFailed. A stopping signal, once the job has saved, goes on to the handler that the launcher had set: submitit's
    puts the job back into Slurm's queue, from where it goes on with what is left of its budget.
    """
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
