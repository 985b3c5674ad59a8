"""Trials in a real worker process, also ones that fail, hang or run out of memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from budget.planner.hyperparameters import optimizer_for
from budget.planner.trial_search import TooLarge, TrialFailed
from device.device import Device
from model.config import PRESETS, Shape
from model.optim.settings import OptimSettings
from training.trial_client import DeviceTrialClient, TrialProcess

DEVICE = Device(torch.device("cpu"), "cpu", "float32", 1, 1e11, "given")
SMALL = Shape(1, 1, 64, 64, 256, **PRESETS["modern"])
LARGE = Shape(4, 4, 256, 256, 8192, **PRESETS["modern"])


@pytest.fixture
def process() -> Iterator[TrialProcess]:
    worker = TrialProcess("cpu")
    worker.wait()
    yield worker
    worker.close()


def trial_client(process: TrialProcess, seconds: float = 600.0, messages: list[str] | None = None) -> DeviceTrialClient:
    return DeviceTrialClient(
        process, DEVICE, OptimSettings(), None, seconds, (messages if messages is not None else []).append
    )


def pid(process: TrialProcess) -> int:
    return process._process.pid


def test_trials_measure_speed_and_memory_within_their_time(process: TrialProcess) -> None:
    device = trial_client(process)
    small, large = device.measure(SMALL, 1024, 0.2), device.measure(LARGE, 1024, 0.2)
    assert small is not None
    assert large is not None
    assert small.tokens_per_second(1024) * small.step_s(1024) == pytest.approx(1024)
    assert 0 < small.update_s < small.step_s(1024)
    assert small.micro_batch == 16
    assert small.tokens_per_second(1024) > 5 * large.tokens_per_second(1024)  # 100 times the FLOPs
    assert (
        large.peak_memory - small.peak_memory > 12 * LARGE.parameters()
    )  # weights, gradient and two moments, less noise
    # Of a batch of many micro-batches, only one is measured.
    began = time.monotonic()
    huge = device.measure(SMALL, 4096 * 1024, 0.2)
    assert huge is not None
    assert time.monotonic() - began < 0.5 * huge.step_s(4096 * 1024)
    assert huge.micro_batch < 4096 * 16
    # A trial that takes too long is cut off, and no other one follows.
    hurried = trial_client(process, seconds=0.3)
    began = time.monotonic()
    assert hurried.measure(replace(LARGE, n_layer=48, n_embd=1024), 1024, 0.2) is None
    assert time.monotonic() - began < 1.0
    assert hurried.measure(SMALL, 1024, 0.1) is None
    assert hurried.seconds_left() <= 0
    process.close()  # the fixture closes it a second time


def test_at_once_and_start_s_predict_a_trial(process: TrialProcess) -> None:
    """The search uses both to decide whether a trial fits into the time that is left."""
    device = trial_client(process)
    for batch_tokens in (1024, 2048, 2**20):
        tokens = device.at_once(LARGE, batch_tokens)
        began = time.monotonic()
        trial = device.measure(LARGE, batch_tokens, 0.1)
        took = time.monotonic() - began
        assert trial is not None
        assert tokens == trial.micro_batch * LARGE.block_size
        step_s = tokens * trial.token_s + trial.update_s
        assert trial.start_s > 0
        assert trial.start_s + 4 * step_s == pytest.approx(took, rel=0.7)
    fixed = DeviceTrialClient(process, DEVICE, OptimSettings(), 4, 30.0, print)
    assert fixed.at_once(LARGE, 1024) == 4 * LARGE.block_size


def test_memory_that_runs_out_halves_the_micro_batch(process: TrialProcess) -> None:
    """With a real limit: the process may take 600 MiB more than it has, and 64 sequences need several times that."""
    status = Path(f"/proc/{pid(process)}/status")
    if not status.exists():
        pytest.skip("limits of another process are Linux's")
    virtual = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmSize"))
    limit = virtual * 1024 + 600 * 2**20
    resource.prlimit(pid(process), resource.RLIMIT_AS, (limit, limit))
    found = trial_client(process).measure(replace(LARGE, n_embd=256, n_head=4, n_layer=4), 64 * 256, 0.1)
    assert found is not None
    assert 1 <= found.micro_batch < 64
    with pytest.raises(TooLarge):
        trial_client(process).measure(replace(LARGE, n_layer=48, n_embd=1024), 256, 0.1)
    assert trial_client(process).measure(SMALL, 1024, 0.1) is not None  # the worker still works


def test_a_trial_killed_by_the_system_is_repeated_with_half_the_micro_batch(process: TrialProcess) -> None:
    threading.Timer(0.3, os.kill, (pid(process), signal.SIGKILL)).start()
    found = trial_client(process, seconds=60).measure(replace(LARGE, n_layer=2, n_embd=256, n_head=4), 4096, 1.5)
    assert found is not None
    assert found.micro_batch == 8


def test_a_trial_that_fails_says_why_and_the_next_one_works(process: TrialProcess) -> None:
    device = trial_client(process)
    with pytest.raises(TrialFailed, match="none"):
        device.measure(replace(SMALL, activation="none"), 1024, 0.1)
    assert device.measure(SMALL, 1024, 0.1) is not None


def test_a_worker_that_dies_while_starting_ends_the_trials_with_a_reason() -> None:
    messages: list[str] = []
    process = TrialProcess("cpu")
    os.kill(pid(process), signal.SIGKILL)
    assert trial_client(process, messages=messages).measure(SMALL, 1024, 0.1) is None
    assert messages == ["no trials: SIGKILL"]
    process.close()


def test_the_worker_ends_with_the_run_that_started_it() -> None:
    script = (
        "import os; from training.trial_client import TrialProcess; p = TrialProcess('cpu'); p.wait();"
        " print(p._process.pid, flush=True); os._exit(0)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    gone = time.monotonic() + 5
    while alive(int(answer.stdout)):
        assert time.monotonic() < gone
        time.sleep(0.05)


def alive(number: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_trials_use_the_optimizer_that_the_planner_would_choose(
    process: TrialProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = process.ask
    monkeypatch.setattr(
        process, "ask", lambda request, seconds: asked.append(request["optimizer"]["name"]) or ask(request, seconds)
    )
    device = DeviceTrialClient(process, DEVICE, OptimSettings("auto"), None, 30.0, print)
    for batch in (64, 8192):  # tokens
        assert device.measure(SMALL, batch, 0.1) is not None
    assert asked[0] == optimizer_for(SMALL, 64) == "adamw"
    assert asked[-1] == optimizer_for(SMALL, 8192) == "muon"
