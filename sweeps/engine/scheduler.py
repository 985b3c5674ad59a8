"""The queue of a sweep's jobs on this machine: one new process and one device per job, and a line of output as each ends.

Priorities and several machines are left to Slurm.
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
from typing import TYPE_CHECKING

from common.errors import discard_output
from common.format import format_seconds
from common.json_io import mapping, read_json
from common.monotonic import now
from common.signals import STOPPING, Interrupted
from sweeps.engine.device_lock import DeviceLock, SweepDevice, lockable_devices, try_device_lock
from sweeps.engine.job import (
    RETRIED,
    Job,
    JobFailed,
    Outcome,
    apply_fresh,
    earlier_outcome,
    last_lines,
    log_size,
    read_outcome,
    run_holder,
    start_process,
    write_record,
)

if TYPE_CHECKING:
    from sweeps.engine.pruning import HoursPool

POLL_S = 0.1
CHECK_S = 1.0  # between two checks of what the running jobs have written

# Checks a running job. Returns the outcome under which to stop it, or None to let it run.
Watch = Callable[[Job], Outcome | None]


@dataclass
class Running:
    """A job with its process and device."""

    job: Job
    process: subprocess.Popen[bytes]
    device_lock: DeviceLock
    began: float
    log_from: int  # bytes of the log that earlier processes have written
    tries: int = 1
    stopped_as: Outcome | None = None  # set when a `Watch` stops the job
    signalled: bool = False  # whether the sweep's stopping signal was passed on


class Stop:
    """The signal that stops the sweep, if one was received. The jobs get the same signal, save, and exit."""

    def __init__(self) -> None:
        self.name: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle stopping signals while the block runs. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # An ignored signal stays ignored: under nohup the sweep outlives its terminal.
        handled = [name for name in STOPPING if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN]
        before = {name: signal.signal(signal.Signals[name], self._handle) for name in handled}
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
    """Runs jobs on the machine's devices until all have ended. `outcomes` holds their outcomes by job number."""

    def __init__(self, jobs: Sequence[Job], watch: Watch | None = None, pool: HoursPool | None = None) -> None:
        self.waiting = deque(jobs)
        self.running: list[Running] = []
        self.outcomes: dict[int, Outcome] = {}
        self.total = len(jobs)
        self.stop = Stop()
        self.devices = {name: lockable_devices(name) for name in {job.options.device.name for job in jobs}}
        self._watch, self._pool = watch, pool
        self._said: set[str] = set()
        self._retry_at: dict[int, float] = {}  # by job number: when to check again whether its run is still in use
        self._checked_at = now()
        self._short = False  # whether the next job waits for hours until another one ends

    def run(self) -> None:
        """Run the jobs. After a stopping signal, raises Interrupted once every job has saved and exited."""
        with self.stop.watching():
            while self.waiting or self.running:
                self._collect()
                if self.stop.name:
                    self._forward()
                else:
                    self._begin()
                    self._check_running()
                # A new event, because a shared one has a lock that a signal handler could wait for.
                threading.Event().wait(POLL_S)
        if self.stop.name:
            raise Interrupted(self.stop.name)

    def _begin(self) -> None:
        """Start waiting jobs in order while devices are free. A job whose devices are all in use does not block the others."""
        taken = {running.device_lock.device.name for running in self.running}
        for job in list(self.waiting):
            free = [device for device in self.devices[job.options.device.name] if device.name not in taken]
            if not self.waiting or self._short:  # sweep.on_error=stop has cleared it, or no hours are free
                return
            if not free or not self._may_start(job):
                continue
            device_lock = self._lock_device(free)
            if device_lock is None:
                taken |= {device.name for device in free}
                self._release(job)
                continue
            taken.add(device_lock.device.name)
            self.waiting.remove(job)
            say(f"{job.label} started on {device_lock.device.name}, log {os.path.relpath(job.log)}")
            log_from = log_size(job)
            self.running.append(Running(job, start_process(job, device_lock), device_lock, now(), log_from))

    def _may_start(self, job: Job) -> bool:
        """Whether a waiting job needs a process and its hours could be reserved.

        A job that is done already leaves the queue. So does one without hours, unless the running jobs may leave it some."""
        outcome = earlier_outcome(job)
        if outcome is not None:
            self.waiting.remove(job)
            self._end(job, outcome, tries=0, seconds=0.0)
            return False
        if now() < self._retry_at.get(job.number, 0.0):
            return False
        if holder := run_holder(job):
            self._retry_at[job.number] = now() + CHECK_S
            self._say_once(f"{job.label} waits: its run is in use by {holder}")
            return False
        refusal = self._pool.reserve(job) if self._pool else None
        if refusal is None:
            return True
        self._short = bool(self.running)
        if self._short:
            say(f"{job.label} waits: {refusal}")
        else:
            self.waiting.remove(job)
            say(f"{job.label} was not started: {refusal}")
            self.outcomes[job.number] = record_not_started(job, refusal)
        return False

    def _release(self, job: Job) -> None:
        if self._pool:
            self._pool.release(job)

    def _lock_device(self, devices: Sequence[SweepDevice]) -> DeviceLock | None:
        """Lock the first device that no other sweep uses, and return its lock; None if all are in use."""
        for device in devices:
            held = try_device_lock(device)
            if isinstance(held, DeviceLock):
                return held
            self._say_once(f"{device.name} is in use by {held}; waiting")
        return None

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            say(line)
            self._said.add(line)

    def _clear_waiting(self, why: str) -> None:
        """Record all waiting jobs as not started."""
        for job in self.waiting:
            record_not_started(job, why)
        self.waiting.clear()

    def _collect(self) -> None:
        """Handle the processes that have ended: retry their jobs or record the outcomes."""
        for running in list(self.running):
            code = running.process.poll()
            if code is None:
                continue
            job, outcome = running.job, read_outcome(running.job, code, running.log_from)
            # "killed": the signal came before the process had installed its handlers.
            if running.stopped_as is not None and outcome.status in ("stopped", "killed"):
                outcome = running.stopped_as
            if outcome.status in RETRIED and running.tries <= job.options.sweep.retries and not self.stop.name:
                say(f"{job.label} {outcome.status}: {outcome.why}; trying again")
                running.log_from = log_size(job)
                running.process = start_process(job, running.device_lock)
                running.tries += 1
                continue
            self.running.remove(running)
            running.device_lock.release()
            self._end(job, outcome, running.tries, now() - running.began)

    def _end(self, job: Job, outcome: Outcome, tries: int, seconds: float) -> None:
        """Record and report the outcome of a job. `tries`: processes that ran now; 0 if the outcome is an earlier one."""
        self.outcomes[job.number] = outcome
        self._release(job)
        if outcome.status == "finished":  # any other job may be continued and then reuses its compiled kernels
            shutil.rmtree(job.compiler_cache, ignore_errors=True)
        self._short = False
        # The tries and the duration of an earlier outcome are in the earlier record.
        before = {} if tries else read_json(job.record) or {}
        write_record(job, outcome, tries or before.get("tries", 0), seconds or before.get("seconds", 0.0))
        has_value = outcome.status == "finished" and outcome.value is not None
        detail = f"{job.options.sweep.metric} {outcome.value:.4f}" if has_value else outcome.why
        duration = format_seconds(seconds) if tries else "earlier"
        say(f"{job.label} {outcome.status} ({duration}): {detail}")
        if not outcome.good and job.options.sweep.on_error == "stop" and self.waiting:
            say(f"sweep.on_error=stop: {len(self.waiting)} jobs are not started")
            self._clear_waiting("sweep.on_error=stop after a failure")

    def _check_running(self) -> None:
        """Once a second, stop jobs that the watch prunes and, on a terminal, show the running jobs' last output in one line."""
        if now() - self._checked_at < CHECK_S:
            return
        self._checked_at = now()
        for running in self.running:
            outcome = self._watch(running.job) if self._watch and running.stopped_as is None else None
            if outcome is not None:
                running.stopped_as = outcome
                running.process.terminate()  # it saves a checkpoint, so the job can be continued later
        if sys.stdout.isatty():
            lines = [
                f"#{running.job.number} of {self.total}: {(last_lines(running.job, running.log_from) or [''])[-1]}"
                for running in self.running
            ]
            _print(f"\r\x1b[K{' | '.join(lines)[: shutil.get_terminal_size().columns - 1]}")

    def _forward(self) -> None:
        """Pass the stopping signal on to each running job, once. No more jobs start."""
        self._clear_waiting("the sweep was stopped")
        for running in self.running:
            if running.process.poll() is None and not running.signalled:
                running.process.send_signal(signal.Signals[self.stop.name or "SIGTERM"])
                running.signalled = True


def record_not_started(job: Job, why: str) -> Outcome:
    """Write the record of a job that was not started, unless an earlier start of the sweep has left one with more to tell."""
    outcome = Outcome("not started", why)
    if mapping(read_json(job.record)).get("status") in (None, "not started"):
        write_record(job, outcome, tries=0, seconds=0.0)
    return outcome


def say(line: str) -> None:
    """Print a line of the sweep's output, over the status line of a terminal."""
    start_of_line = "\r\x1b[K" if sys.stdout.isatty() else ""
    _print(f"{start_of_line}sweep   {line}\n")


def _print(text: str) -> None:
    """Print; an output whose reader is gone, or whose disk is full, must not end a sweep."""
    try:
        print(text, end="", flush=True)
    except OSError:
        discard_output()


def sweeper_value(job: Job, outcome: Outcome | None) -> float | Exception | None:
    """The value that the sweeper gets for a job: the metric, or an exception if the job did not end well."""
    if outcome is None:
        return JobFailed(f"{job.label} was not started")
    if not outcome.good:
        return JobFailed(f"{job.label} {outcome.status}: {outcome.why}")
    return outcome.value


def run_single_job(job: Job) -> float | None:
    """Run one job under another launcher (joblib, submitit), which has started a process for it. Returns the metric.

    Raises JobFailed, and UserError if fresh=true finds the run in use. After a stopping signal, when the job has saved, the
    handler that the launcher had installed is called. submitit's handler requeues the job in Slurm, where it continues with
    the rest of its budget.
    """
    job = apply_fresh(job)
    queue = Queue([job])
    try:
        queue.run()
    except Interrupted as stop:
        number = signal.Signals[stop.name]
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, None)
        raise
    value = sweeper_value(job, queue.outcomes.get(job.number))
    if isinstance(value, Exception):
        raise value
    return value
