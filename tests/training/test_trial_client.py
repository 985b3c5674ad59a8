"""Trials in a real process of their own, and what becomes of a run when they fail, hang or eat the memory."""

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

MACHINE = Device(torch.device("cpu"), "cpu", "float32", 1, 1e11, "given")
SMALL = Shape(1, 1, 64, 64, 256, **PRESETS["modern"])
LARGE = Shape(4, 4, 256, 256, 8192, **PRESETS["modern"])


@pytest.fixture
def process() -> Iterator[TrialProcess]:
    found = TrialProcess("cpu")
    found.wait()
    yield found
    found.close()


def prober(process: TrialProcess, seconds: float = 30.0, said: list[str] | None = None) -> DeviceTrialClient:
    return DeviceTrialClient(
        process, MACHINE, OptimSettings(), None, seconds, (said if said is not None else []).append
    )


def pid(process: TrialProcess) -> int:
    return process._process.pid


def test_trials_tell_speed_and_memory_within_their_time(process: TrialProcess) -> None:
    device = prober(process)
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
    # A batch of several micro-batches is measured by one of them.
    began = time.monotonic()
    huge = device.measure(SMALL, 4096 * 1024, 0.2)
    assert huge is not None
    assert time.monotonic() - began < 0.5 * huge.step_s(4096 * 1024)
    assert huge.micro_batch < 4096 * 16
    # A question that takes too long is cut off, and there are no more.
    hurried = prober(process, seconds=0.3)
    began = time.monotonic()
    assert hurried.measure(replace(LARGE, n_layer=48, n_embd=1024), 1024, 0.2) is None
    assert time.monotonic() - began < 1.0
    assert hurried.measure(SMALL, 1024, 0.1) is None
    assert hurried.seconds_left() <= 0
    process.close()  # and once more where its block is left


def test_what_a_trial_takes_at_once_is_said_before(process: TrialProcess) -> None:
    """And how long it takes before the steps that count: what is left of its time."""
    device = prober(process)
    for batch_tokens in (1024, 2048, 2**20):
        said = device.at_once(LARGE, batch_tokens)
        began = time.monotonic()
        trial = device.measure(LARGE, batch_tokens, 0.1)
        took = time.monotonic() - began
        assert trial is not None
        assert said == trial.micro_batch * LARGE.block_size
        step_s = said * trial.token_s + trial.update_s
        assert trial.start_s > 0
        assert trial.start_s + 4 * step_s == pytest.approx(took, rel=0.7)
    fixed = DeviceTrialClient(process, MACHINE, OptimSettings(), 4, 30.0, print)
    assert fixed.at_once(LARGE, 1024) == 4 * LARGE.block_size


def test_memory_that_runs_out_halves_the_micro_batch(process: TrialProcess) -> None:
    """The limit is real: the process may take 600 MiB more than it has, and 64 sequences need several times that."""
    status = Path(f"/proc/{pid(process)}/status")
    if not status.exists():
        pytest.skip("limits of another process are Linux's")
    virtual = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmSize"))
    limit = virtual * 1024 + 600 * 2**20
    resource.prlimit(pid(process), resource.RLIMIT_AS, (limit, limit))
    found = prober(process).measure(replace(LARGE, n_embd=256, n_head=4, n_layer=4), 64 * 256, 0.1)
    assert found is not None
    assert 1 <= found.micro_batch < 64
    with pytest.raises(TooLarge):
        prober(process).measure(replace(LARGE, n_layer=48, n_embd=1024), 256, 0.1)
    assert prober(process).measure(SMALL, 1024, 0.1) is not None  # it goes on


def test_a_trial_killed_by_the_system_is_tried_again_with_half(process: TrialProcess) -> None:
    threading.Timer(0.3, os.kill, (pid(process), signal.SIGKILL)).start()
    found = prober(process, seconds=60).measure(replace(LARGE, n_layer=2, n_embd=256, n_head=4), 4096, 1.5)
    assert found is not None
    assert found.micro_batch == 8


def test_a_trial_that_fails_says_why_and_the_next_one_works(process: TrialProcess) -> None:
    device = prober(process)
    with pytest.raises(TrialFailed, match="none"):
        device.measure(replace(SMALL, activation="none"), 1024, 0.1)
    assert device.measure(SMALL, 1024, 0.1) is not None


def test_a_process_that_dies_while_starting_ends_the_trials_with_a_reason() -> None:
    said: list[str] = []
    process = TrialProcess("cpu")
    os.kill(pid(process), signal.SIGKILL)
    assert prober(process, said=said).measure(SMALL, 1024, 0.1) is None
    assert said == ["no trials: SIGKILL"]
    process.close()


def test_the_process_ends_with_the_run_that_started_it() -> None:
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
    """Whether a process runs; one that nobody has asked for its exit status does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_trials_have_the_optimizer_that_the_plan_would_take(
    process: TrialProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    plain = process.ask
    monkeypatch.setattr(
        process, "ask", lambda request, seconds: asked.append(request["optimizer"]["name"]) or plain(request, seconds)
    )
    device = DeviceTrialClient(process, MACHINE, OptimSettings("auto"), None, 30.0, print)
    for batch in (64, 8192):  # of 5 n / T
        assert device.measure(SMALL, batch, 0.1) is not None
    assert asked[0] == optimizer_for(SMALL, 64) == "adamw"
    assert asked[-1] == optimizer_for(SMALL, 8192) == "muon"
