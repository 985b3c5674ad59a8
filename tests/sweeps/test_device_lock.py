"""One job alone on each device."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sweeps.engine.device_lock import DeviceLock, SweepDevice, devices, try_device_lock


@pytest.fixture(autouse=True)
def own_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of this test alone, on a machine with no GPU and no Slurm unless the test says so."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_device_is_leased_once_and_again_after_its_release() -> None:
    device = SweepDevice("gpu-0")
    first = try_device_lock(device)
    assert isinstance(first, DeviceLock)
    assert str(try_device_lock(device)).startswith(f"process {os.getpid()} on ")
    assert isinstance(try_device_lock(SweepDevice("gpu-1")), DeviceLock)
    first.release()
    assert isinstance(try_device_lock(device), DeviceLock)


def test_a_job_that_outlives_its_sweep_keeps_its_device() -> None:
    lease = try_device_lock(SweepDevice("cores"))
    assert isinstance(lease, DeviceLock)
    job = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lease.descriptor,))
    lease.release()  # as the death of the sweep would
    assert isinstance(try_device_lock(SweepDevice("cores")), str)
    job.communicate(b"\n")
    assert isinstance(try_device_lock(SweepDevice("cores")), DeviceLock)


def gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A machine whose nvidia-smi answers `answer`."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_every_gpu_is_a_device_and_a_job_sees_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n1\\n'")
    found = devices("auto")
    assert [each.name for each in found] == ["gpu-0", "gpu-1"]
    assert [each.environment for each in found] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [each.name for each in devices("cuda")] == ["gpu-1"]
    assert [each.name for each in devices("cpu")] == ["cores"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [each.name for each in devices("auto")] == ["cores"]


def test_a_driver_that_does_not_answer_leaves_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert [each.name for each in devices("auto")] == ["cores"]


def test_what_slurm_gave_is_leased_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert [each.name for each in devices("cpu")] == ["slurm-17-cores"]


def test_each_gpu_that_slurm_gave_has_a_job_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n1\\n2\\n3\\n'")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    found = devices("auto")
    assert [each.name for each in found] == ["slurm-17-gpu-2", "slurm-17-gpu-3"]
    assert [each.environment for each in found] == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}]


def test_a_name_of_the_device_table_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n'")
    assert devices("a100") == devices("auto") == [SweepDevice("gpu-0", {"CUDA_VISIBLE_DEVICES": "0"})]
    assert [each.name for each in devices("mps")] == ["cores"]


def test_a_number_counts_the_gpus_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(tmp_path, monkeypatch, "printf '0\\n1\\n2\\n3\\n'")
    assert devices("cuda:1") == [SweepDevice("gpu-1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert devices("cuda:1") == [SweepDevice("gpu-3")], "as the job itself will count, with the same variable"
