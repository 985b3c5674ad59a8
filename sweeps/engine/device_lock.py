"""The devices of a machine, each locked by one job at a time, across all sweeps of the user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from common.file_lock import try_lock

QUERY_LIMIT_S = 20.0


@dataclass(frozen=True)
class SweepDevice:
    """A device that one job uses alone. `environment` hides the other devices from the job's process."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def lockable_devices(wanted: str) -> list[SweepDevice]:
    """The devices that jobs with device.name=`wanted` may use: the visible GPUs, else the CPU.

    All cores count as one device, because two jobs on the same memory would slow each other down. Names contain the id of the
    Slurm job, if there is one: Slurm numbers the devices of each of its jobs from 0."""
    slurm = os.environ.get("SLURM_JOB_ID")
    prefix = f"slurm-{slurm}-" if slurm else ""
    cores = SweepDevice(f"{prefix}cores")
    if wanted in ("cpu", "mps"):
        return [cores]
    gpus = visible_gpus()
    if wanted.startswith("cuda:"):  # the job sees all GPUs, with the same indices
        index = int(wanted.removeprefix("cuda:"))
        return [SweepDevice(f"{prefix}gpu-{gpus[index] if index < len(gpus) else index}")]
    return [SweepDevice(f"{prefix}gpu-{gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus] or [cores]


def visible_gpus() -> list[str]:
    """Identifiers of the visible GPUs, found without importing torch: those in CUDA_VISIBLE_DEVICES if it is set, else all."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return _gpu_indices()
    gpus = [gpu.strip() for gpu in allowed.split(",") if gpu.strip()]
    return [] if "-1" in gpus else gpus


def _gpu_indices() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip().isdigit()]


class DeviceLock:
    """A device held until `release`, or until the last process that inherited `descriptor` has ended: a job that outlives a
    killed sweep keeps its device."""

    def __init__(self, device: SweepDevice, file: IO[str]) -> None:
        self.device = device
        self.descriptor = file.fileno()
        self._file = file

    def release(self) -> None:
        self._file.close()


def try_device_lock(device: SweepDevice) -> DeviceLock | str:
    """The lock of a device, or a description of the process that holds it."""
    folder = Path(tempfile.gettempdir()) / f"stint-leases-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = try_lock(folder / f"{device.name}.lock")
    return held if isinstance(held, str) else DeviceLock(device, held)
