"""The host monitor, against the system, psutil and a fake NVML."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest

from device import host_monitor as surroundings
from device.host_monitor import Gpu, HostSnapshot, diff, reasons, take_snapshot


def test_a_snapshot_sees_other_processes() -> None:
    """A child that computes for half a second is seen with about the CPU time that the kernel gives it."""
    code = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\nprint(1, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    seen = take_snapshot(None)
    child.communicate(b"\n")
    name, seconds = seen.cpu_s[child.pid]
    assert name.startswith("python")
    assert 0.45 < seconds < 2
    assert os.getpid() not in seen.cpu_s
    assert seen.gpu is None
    assert seen.load == pytest.approx(os.getloadavg()[0], abs=2)


def test_steal_and_clock_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the median of the cores, because an idle core says nothing about the others."""
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=9.0, steal=3.0))
    clocks = [SimpleNamespace(current=mhz) for mhz in (800.0, 2400.0, 2400.0)]
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: clocks)
    seen = take_snapshot(None)
    assert (seen.stolen_s, seen.mhz) == (3.0, 2400.0)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("fs/cgroup/cpu.stat", "usage_usec 9\nnr_throttled 3\nthrottled_usec 2500000\n"),
        ("fs/cgroup/cpu/cpu.stat", "nr_periods 9\nnr_throttled 3\nthrottled_time 2500000000\n"),
    ],
)
def test_the_throttled_time_of_a_container_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    monkeypatch.setattr(surroundings, "SYS", tmp_path)
    assert take_snapshot(None).throttled_s == 2.5


def test_values_that_the_system_does_not_report_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitoring never ends a run, whatever psutil raises."""
    for name in ("cpu_times", "cpu_freq", "process_iter"):
        monkeypatch.setattr(psutil, name, Mock(side_effect=psutil.AccessDenied(1)))
    monkeypatch.setattr(surroundings, "SYS", tmp_path / "no")
    seen = take_snapshot("GPU-none")
    assert (seen.mhz, seen.stolen_s, seen.throttled_s, seen.cpu_s, seen.gpu) == (None, None, None, {}, None)
    assert reasons(diff(seen, seen), diff(seen, seen)) == []


def test_only_what_differs_from_usual_is_a_reason() -> None:
    quiet = diff(HostSnapshot(0, 0.5, 2500, 0, 0, {7: ("x", 0.0)}), HostSnapshot(10, 0.5, 2500, 0, 0, {7: ("x", 1.0)}))
    assert reasons(quiet, quiet) == []
    taken = diff(HostSnapshot(0, 0.5, 2500, 0, 0), HostSnapshot(10, 0.5, 1200, 6, 4, {7: ("y", 9.0)}))
    assert reasons(quiet, taken) == [
        "the hypervisor gives 0.6 cores to others",
        "the container's CPU quota stops it for 40% of the time",
        "CPU at 1200 MHz instead of 2500",
    ]


def test_the_gpu_state_comes_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-a": "handle"}[uuid],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x04 | 0x20 | 0x40 | 0x01,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1200,
        nvmlDeviceGetTemperature=lambda handle, kind: 84,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [1, 2],
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert take_snapshot("GPU-a").gpu == Gpu(1200, 84, ("power cap", "heat"), 2)
    assert take_snapshot("GPU-other").gpu is None  # whatever it raises
