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


def test_every_gpu_is_a_device_and_a_job_sees_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n1\\n'")
    found = lockable_devices("auto")
    assert [each.name for each in found] == ["gpu-0", "gpu-1"]
    assert [each.environment for each in found] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [each.name for each in lockable_devices("cuda")] == ["gpu-1"]
    assert [each.name for each in lockable_devices("cpu")] == ["cores"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [each.name for each in lockable_devices("auto")] == ["cores"]


def test_without_a_working_nvidia_smi_the_cores_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert [each.name for each in lockable_devices("auto")] == ["cores"]


def test_device_names_contain_the_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert [each.name for each in lockable_devices("cpu")] == ["slurm-17-cores"]


def test_each_gpu_of_a_slurm_job_is_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n1\\n2\\n3\\n'")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    found = lockable_devices("auto")
    assert [each.name for each in found] == ["slurm-17-gpu-2", "slurm-17-gpu-3"]
    assert [each.environment for each in found] == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}]


def test_a_device_named_by_its_model_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n'")
    assert lockable_devices("a100") == lockable_devices("auto") == [SweepDevice("gpu-0", {"CUDA_VISIBLE_DEVICES": "0"})]
    assert [each.name for each in lockable_devices("mps")] == ["cores"]


def test_an_index_counts_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n1\\n2\\n3\\n'")
    assert lockable_devices("cuda:1") == [SweepDevice("gpu-1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert lockable_devices("cuda:1") == [SweepDevice("gpu-3")], "the job counts the same way, with the same variable"
