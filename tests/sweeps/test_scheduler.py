"""The queue of jobs on this machine, with stand-ins for their processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from common.signals import Interrupted
from run.directory import lock
from sweeps.engine import scheduler as local
from sweeps.engine.device_lock import DeviceLock, SweepDevice, try_device_lock
from sweeps.engine.job import Job, Outcome, write_record
from sweeps.engine.pruning import HoursPool
from sweeps.engine.scheduler import Queue, Stop
from tests.sweeps.test_pruning import job, left_behind

# A job's process: it yields while it runs, and returns its exit status.
Act = Generator[None, None, int]
Acting = Callable[[Callable[[Job], Act]], list[int]]


class Process:
    """A stand-in for a job's process. Each call of `poll` runs the act to its next yield."""

    def __init__(self, act: Act) -> None:
        self._act = act
        self._code: int | None = None

    def terminate(self) -> None:
        self._code = -signal.SIGTERM

    def send_signal(self, number: int) -> None:
        self._code = -number

    def poll(self) -> int | None:
        if self._code is None:
            try:
                next(self._act)
            except StopIteration as end:
                self._code = end.value
        return self._code


@pytest.fixture
def acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Acting:
    """Replace the processes of jobs by acts, on one device. Returns a list to which the numbers of started jobs are added."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(local, "POLL_S", 0.0)
    monkeypatch.setattr(local, "lockable_devices", lambda wanted: [SweepDevice("cores")])
    started: list[int] = []

    def by(acts: Callable[[Job], Act]) -> list[int]:
        def start(job: Job, *arguments: Any, **more: Any) -> Process:
            started.append(job.number)
            return Process(acts(job))

        monkeypatch.setattr(local, "start_process", start)
        return started

    return by


def record(job: Job) -> dict[str, Any]:
    return dict(json.loads(job.record.read_text()))


def test_the_reason_of_a_failure_is_from_the_log_of_its_own_process(tmp_path: Path, acting: Acting) -> None:
    one = job(tmp_path, 0)
    one.log.write_text("error: the disk of yesterday was full\n")

    def dies(job: Job) -> Act:
        with job.log.open("a") as log:
            log.write("Fatal Python error\nSegmentation fault\n")
        yield
        return 1

    acting(dies)
    queue = Queue([one])
    queue.run()
    assert queue.outcomes[0].why == "Segmentation fault"
    assert record(one)["tries"] == 2


def never(job: Job) -> Act:
    raise AssertionError(f"{job.label} was started")
    yield


def ended(job: Job, status: str = "finished", loss: float = 4.0, spent_hours: float = 1.0) -> None:
    """Write the files of a run that has ended and was evaluated."""
    left_behind(job, [5.0, loss], spent_hours, status)
    (job.run / "result.json").write_text(json.dumps({"eval": {"loss": loss, "perplexity": 10 * loss}}))


def works(polls: int = 1, spent_hours: float = 1.0) -> Callable[[Job], Act]:
    """The act of a job that runs for `polls` polls and then has ended and spent `spent_hours`."""

    def act(job: Job) -> Act:
        for _ in range(polls):
            yield
        ended(job, spent_hours=spent_hours)
        return 0

    return act


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, acting: Acting) -> None:
    monkeypatch.setattr(local, "lockable_devices", lambda wanted: [SweepDevice("gpu-0"), SweepDevice("gpu-1")])


def test_the_record_of_an_already_finished_job_is_updated(tmp_path: Path, acting: Acting) -> None:
    """An earlier start of the sweep had recorded it as killed, by another metric. Its tries and seconds are kept."""
    one = job(tmp_path, 0)
    write_record(one, Outcome("killed", "killed by SIGKILL"), 2, 60.0)
    ended(one)
    one.options.sweep.metric = "perplexity"
    acting(never)
    Queue([one]).run()
    found = record(one)
    assert [found[key] for key in ("status", "why", "value", "metric")] == ["finished", "", 40.0, "perplexity"]
    assert [found[key] for key in ("tries", "seconds", "hours_spent")] == [2, 60.0, 1.0]


def test_each_job_runs_on_the_device_that_its_options_name(
    tmp_path: Path, acting: Acting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs on one device take turns. A job on another device does not wait for them."""
    place = {"cuda:0": [SweepDevice("gpu-0")], "cuda:1": [SweepDevice("gpu-1")]}
    monkeypatch.setattr(local, "lockable_devices", place.__getitem__)
    jobs = [job(tmp_path, number) for number in range(3)]
    for each, wanted in zip(jobs, ("cuda:0", "cuda:0", "cuda:1"), strict=True):
        each.options.device.name = wanted
    held: list[list[str]] = []

    def notes_devices(job: Job) -> Act:
        for _ in range(3):
            held.append(sorted(f"{each.job.number} on {each.device_lock.device.name}" for each in queue.running))
            yield
        ended(job)
        return 0

    started = acting(notes_devices)
    queue = Queue(jobs)
    queue.run()
    assert started == [0, 2, 1]
    assert ["0 on gpu-0", "2 on gpu-1"] in held
    assert ["1 on gpu-0"] in held


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("before", "used", "started"), [(0.0, 0.25, [0, 1]), (0.0, 0.75, [0]), (0.3, 1.0, [0])])
def test_a_job_waits_for_hours_that_running_jobs_may_leave(
    tmp_path: Path, acting: Acting, before: float, used: float, started: list[int]
) -> None:
    """The hours of a continued job stay reserved, although status.json is still "stopped" until its process has started."""
    jobs = [job(tmp_path, number, pool_hours=1.5) for number in range(2)]
    if before:
        left_behind(jobs[0], [5.0], before, "stopped")
    found = acting(works(2, used))
    Queue(jobs, pool=HoursPool(1.5, jobs)).run()
    assert found == started


def test_hours_are_not_reserved_while_the_device_is_in_use(tmp_path: Path, acting: Acting) -> None:
    held = try_device_lock(SweepDevice("cores"))
    assert isinstance(held, DeviceLock)
    one = job(tmp_path, 0, pool_hours=1.0)
    started = acting(works())
    queue = Queue([one], pool=HoursPool(1.0, [one]))
    queue._begin()
    queue._begin()
    assert len(queue.waiting) == 1
    held.release()
    queue.run()
    assert started == [0]


@pytest.mark.usefixtures("two_gpus")
def test_a_job_waits_while_another_process_uses_its_run(
    tmp_path: Path, acting: Acting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process may be left from a killed sweep, or belong to another sweep with the same job. Other jobs do not wait."""
    monkeypatch.setattr(local, "CHECK_S", 0.0)
    jobs = [job(tmp_path, number) for number in range(2)]
    jobs[0].run.mkdir(parents=True)
    held = lock(jobs[0].run)

    def frees_the_run(job: Job) -> Act:
        held.close()  # the other process of the first job ends meanwhile
        return works()(job)

    started = acting(frees_the_run)
    Queue(jobs).run()
    assert started == [1, 0]
    assert capsys.readouterr().out.count("waits: its run is in use by process") == 1


def test_a_job_that_is_stopped_while_it_imports_is_pruned(
    tmp_path: Path, acting: Acting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "CHECK_S", 0.0)
    one = job(tmp_path, 0)
    left_behind(one, [5.0, 4.9, 4.8], 0.3, "stopped")  # by an earlier start of the sweep

    def imports(job: Job) -> Act:
        while True:
            yield

    started = acting(imports)
    queue = Queue([one], lambda job: Outcome("pruned", "behind", 4.8))
    queue.run()
    assert started == [0]
    assert queue.outcomes[0].status == "pruned"


def test_a_sweep_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.watching():
            signal.raise_signal(signal.SIGHUP)
            assert stop.name is None
            signal.raise_signal(signal.SIGUSR1)
            assert stop.name == "SIGUSR1"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_jobs_without_hours_are_recorded_as_not_started(tmp_path: Path, acting: Acting) -> None:
    """They do not count as failures. With more hours they start."""
    jobs = [job(tmp_path, number, pool_hours=1.0) for number in range(2)]

    acting(works())
    queue = Queue(jobs, pool=HoursPool(1.0, jobs))
    queue.run()
    assert queue.outcomes[1].good
    assert record(jobs[1])["status"] == "not started"
    assert "sweep.hours=1" in record(jobs[1])["why"]
    Queue(jobs, pool=HoursPool(2.0, jobs)).run()
    assert record(jobs[1])["status"] == "finished"


def test_a_stopping_signal_never_waits_for_a_lock(tmp_path: Path, acting: Acting) -> None:
    """The signal arrives at every line of threading's code in turn. It must not wait for a lock that this code holds."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the sweep did not handle the signal")

    def interrupt(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        watched = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        if watched and event == "line" and frame.f_code.co_filename == threading.__file__:
            signal.raise_signal(signal.SIGTERM)
        return interrupt

    def runs_until_told(job: Job) -> Act:
        for _ in range(3):
            yield
        return 128 + signal.SIGTERM

    acting(runs_until_told)
    queue, before = Queue([job(tmp_path, 0)]), signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10.0)
    sys.settrace(interrupt)
    try:
        with pytest.raises(Interrupted):
            queue.run()
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_an_output_whose_reader_is_gone_does_not_end_a_sweep() -> None:
    code = "from sweeps.engine.scheduler import say\nfor n in range(3): say('job')\nimport sys; sys.exit(7)"
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    os.close(write)
    assert (done.returncode, done.stderr) == (7, "")
