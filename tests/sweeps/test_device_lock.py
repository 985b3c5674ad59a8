"""Device locks: one job at a time on each device."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sweeps.engine.device_lock import DeviceLock, SweepDevice, lockable_devices, try_device_lock


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the locks in a folder of this test, on a machine without GPU and Slurm unless the test adds them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_device_is_locked_once_and_again_after_its_release() -> None:
    device = SweepDevice("gpu-0")
    first = try_device_lock(device)
    assert isinstance(first, DeviceLock)
    assert str(try_device_lock(device)).startswith(f"process {os.getpid()} on ")
    assert isinstance(try_device_lock(SweepDevice("gpu-1")), DeviceLock)
    first.release()
    assert isinstance(try_device_lock(device), DeviceLock)


def test_a_job_that_outlives_its_sweep_keeps_its_device() -> None:
    lock = try_device_lock(SweepDevice("cores"))
    assert isinstance(lock, DeviceLock)
    job = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.descriptor,))
    lock.release()  # as when the sweep is killed
    assert isinstance(try_device_lock(SweepDevice("cores")), str)
    job.communicate(b"\n")
    assert isinstance(try_device_lock(SweepDevice("cores")), DeviceLock)


def gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Install an nvidia-smi that runs the shell command `answer`."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("wanted", "visible", "slurm", "names"),
    [
        ("auto", None, None, ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]),
        ("a100", None, None, ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]),
        ("cuda", "1", None, ["gpu-1"]),
        ("cuda:1", None, None, ["gpu-1"]),
        ("cuda:1", "2,3", None, ["gpu-3"]),  # the job counts the same way, with the same variable
        ("auto", "", None, ["cores"]),
        ("cpu", "1", None, ["cores"]),
        ("mps", None, None, ["cores"]),
        ("cpu", None, "17", ["slurm-17-cores"]),
        ("auto", "2,3", "17", ["slurm-17-gpu-2", "slurm-17-gpu-3"]),
    ],
)
def test_every_visible_gpu_is_a_device_and_a_job_sees_only_its_own(
    wanted: str,
    visible: str | None,
    slurm: str | None,
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n1\\n2\\n3\\n'")
    for variable, value in (("CUDA_VISIBLE_DEVICES", visible), ("SLURM_JOB_ID", slurm)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    found = lockable_devices(wanted)
    assert [device.name for device in found] == names
    alone = not wanted.startswith("cuda:")  # with an index, the job sees all GPUs, as the sweep does
    seen = [{"CUDA_VISIBLE_DEVICES": name[-1]} if "gpu" in name and alone else {} for name in names]
    assert [device.environment for device in found] == seen


def test_without_a_working_nvidia_smi_the_cores_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert [each.name for each in lockable_devices("auto")] == ["cores"]
