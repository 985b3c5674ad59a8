"""Which devices there are, and that one job alone computes on each: a lock file a device, for all sweeps of a machine."""

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
    """What one job may have to itself, and the environment in which it sees nothing else."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def devices(wanted: str) -> list[SweepDevice]:
    """The devices that jobs with device.name=`wanted` may have: GPUs that this process may see, else the cores, which are
    one device, since two timed budgets on the same memory would slow each other down. What Slurm gave to a job of its own is
    that job's alone, whatever its numbers are."""
    slurm = os.environ.get("SLURM_JOB_ID")
    of_slurm = f"slurm-{slurm}-" if slurm else ""
    cores = SweepDevice(f"{of_slurm}cores")
    if wanted in ("cpu", "mps"):
        return [cores]
    gpus = visible_gpus()
    if wanted.startswith("cuda:"):  # the job sees all of them, and counts as we do
        number = int(wanted.removeprefix("cuda:"))
        return [SweepDevice(f"{of_slurm}gpu-{gpus[number] if number < len(gpus) else number}")]
    return [SweepDevice(f"{of_slurm}gpu-{gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus] or [cores]


def visible_gpus() -> list[str]:
    """Identifiers of the GPUs, without loading torch: those of CUDA_VISIBLE_DEVICES where it is set, else all."""
    found = _indices()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return found
    given = [each.strip() for each in allowed.split(",") if each.strip()]
    return [] if "-1" in given else given


def _indices() -> list[str]:
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
    """A device held until `release`, or until the last process that inherited `descriptor` has died: a job outlives a sweep
    that is killed, and keeps its device."""

    def __init__(self, device: SweepDevice, file: IO[str]) -> None:
        self.device = device
        self.descriptor = file.fileno()
        self._file = file

    def release(self) -> None:
        self._file.close()


def try_device_lock(device: SweepDevice) -> DeviceLock | str:
    """The lease of a device, or who has it."""
    folder = Path(tempfile.gettempdir()) / f"stint-leases-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = try_lock(folder / f"{device.name}.lock")
    return held if isinstance(held, str) else DeviceLock(device, held)
