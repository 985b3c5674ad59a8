"""Monitor the machine during a run: load, other processes, clock speeds and temperatures.

A snapshot takes a few milliseconds. Values that the system does not report are None.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from common.monotonic import now

T = TypeVar("T")

SYS = Path("/sys")
NAMED = 3  # how many other processes a message names, the busiest first
NOTABLE_CORES = 0.2  # cores above the usual use that are worth a message
LOWER_CLOCK = 0.92  # share of the usual clock below which a message is worth it
# NVML's reasons for a lower clock (nvmlClocksEventReasons in nvml.h), except idling and a clock that was set by the
# user
SLOWED_BY = {0x04: "power cap", 0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


@dataclass(frozen=True)
class Gpu:
    """The state of a GPU: SM clock, temperature, what slows it down, and the number of processes on it."""

    mhz: float
    celsius: float
    slowed_by: tuple[str, ...]
    processes: int


@dataclass(frozen=True)
class HostSnapshot:
    """The state of the machine at one moment.

    at: seconds on common.monotonic's clock. load: the one-minute load average. mhz: the median clock of the cores.
    stolen_s,
    throttled_s: seconds since boot that the hypervisor gave to others, and that the container's CPU quota stopped it.
    cpu_s: name and CPU seconds of every other process, by process id. Only differences of the seconds have a meaning.
    """

    at: float
    load: float | None = None
    mhz: float | None = None
    stolen_s: float | None = None
    throttled_s: float | None = None
    cpu_s: dict[int, tuple[str, float]] = field(default_factory=dict)
    gpu: Gpu | None = None


@dataclass(frozen=True)
class HostDelta:
    """The change between two snapshots.

    others: cores that each other process used. stolen, throttled: cores that the hypervisor and the container's CPU
    quota took away. load, mhz, gpu: the values at the end.
    """

    others: dict[str, float]
    stolen: float
    throttled: float
    load: float | None
    mhz: float | None
    gpu: Gpu | None


def take_snapshot(gpu_uuid: str | None) -> HostSnapshot:
    """Return the state of the machine; `gpu_uuid` is NVML's name of the GPU, None without one."""
    gpu = None if gpu_uuid is None else _try_read(lambda: _gpu(gpu_uuid))
    load, mhz, stolen_s = _try_read(lambda: os.getloadavg()[0]), _try_read(_clock_mhz), _try_read(_stolen_s)
    return HostSnapshot(now(), load, mhz, stolen_s, _throttled_s(), _try_read(_cpu_seconds) or {}, gpu)


def _try_read(read: Callable[[], T]) -> T | None:
    """Return the value of `read`, None where it fails.

    Monitoring must never end a run, and psutil and the GPU's driver raise errors of several kinds.
    """
    try:
        return read()
    except Exception:
        return None


def diff(before: HostSnapshot, after: HostSnapshot) -> HostDelta:
    """Return the change between two snapshots."""
    seconds = max(after.at - before.at, 1e-3)

    def cores(first: float | None, last: float | None) -> float:
        return 0.0 if first is None or last is None else (last - first) / seconds

    others = {
        f"{name} [{number}]": (used - before.cpu_s[number][1]) / seconds
        for number, (name, used) in after.cpu_s.items()
        if number in before.cpu_s
    }
    stolen, throttled = cores(before.stolen_s, after.stolen_s), cores(before.throttled_s, after.throttled_s)
    return HostDelta(others, stolen, throttled, after.load, after.mhz, after.gpu)


def reasons(usual: HostDelta, slow: HostDelta) -> list[str]:
    """Return why a run may be slow, as half-sentences: how the machine differs from its usual state."""
    found = []
    usual_cores, cores = sum(usual.others.values()), sum(slow.others.values())
    if cores >= usual_cores + NOTABLE_CORES:
        busiest = sorted(slow.others.items(), key=lambda item: -item[1])[:NAMED]
        named = ", ".join(f"{name} {share:.1f}" for name, share in busiest if share >= 0.05)
        found.append(f"other processes take {cores:.1f} cores instead of {usual_cores:.1f} ({named})")
    if slow.stolen >= usual.stolen + NOTABLE_CORES:
        found.append(f"the hypervisor gives {slow.stolen:.1f} cores to others")
    if slow.throttled >= usual.throttled + NOTABLE_CORES:
        found.append(f"the container's CPU quota stops it for {slow.throttled:.0%} of the time")
    if slow.load is not None and usual.load is not None and slow.load > 1.2 * usual.load + 0.5:
        found.append(f"load average {slow.load:.1f} instead of {usual.load:.1f}")
    if usual.mhz and slow.mhz and slow.mhz < LOWER_CLOCK * usual.mhz:
        found.append(f"CPU at {slow.mhz:.0f} MHz instead of {usual.mhz:.0f}")
    return found + (_gpu_reasons(usual.gpu, slow.gpu) if slow.gpu else [])


def _gpu_reasons(usual: Gpu | None, slow: Gpu) -> list[str]:
    before = f" instead of {usual.mhz:.0f}" if usual and slow.mhz < LOWER_CLOCK * usual.mhz else ""
    found = [f"GPU at {slow.mhz:.0f} MHz{before} and {slow.celsius:.0f} °C"]
    if slow.slowed_by:
        found.append(f"GPU slowed down by {', '.join(slow.slowed_by)}")
    if usual and slow.processes > usual.processes:
        found.append(f"{slow.processes} processes on the GPU instead of {usual.processes}")
    return found


def _cpu_seconds() -> dict[int, tuple[str, float]]:
    """Return the name and CPU seconds of every other process that this one may inspect, by process id."""
    import psutil

    found = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        name, times = process.info["name"], process.info["cpu_times"]
        if process.pid != os.getpid() and times is not None:
            found[process.pid] = (name or "", times.user + times.system)
    return found


def _clock_mhz() -> float | None:
    """Return the median clock of the cores in MHz."""
    import psutil

    return statistics.median(core.current for core in psutil.cpu_freq(percpu=True))


def _stolen_s() -> float | None:
    """Return the CPU seconds that the hypervisor gave to others; reported on Linux only."""
    import psutil

    return getattr(psutil.cpu_times(), "steal", None)


def _throttled_s() -> float | None:
    """Return the seconds for which the container was stopped because its CPU quota was used up."""
    for name, key, unit in (
        ("fs/cgroup/cpu.stat", "throttled_usec", 1e-6),  # cgroup v2
        ("fs/cgroup/cpu/cpu.stat", "throttled_time", 1e-9),  # cgroup v1
    ):
        with suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in (SYS / name).read_text().splitlines())[key]) * unit
    return None


def _gpu(uuid: str) -> Gpu:
    """Return the state of a GPU from NVML; fails without the library or a driver, and for a part of a GPU (MIG)."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    bits = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return Gpu(
        mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        celsius=pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        slowed_by=tuple(dict.fromkeys(reason for bit, reason in SLOWED_BY.items() if bits & bit)),
        processes=len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    )
