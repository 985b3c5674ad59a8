"""What else goes on on the machine that a run computes on: load, other processes, clocks and temperatures, as far as the
system says. A look costs some milliseconds; whatever cannot be read is left out."""

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


NAMED = 3  # other processes that are named, the busiest first


WORTH_A_WORD = 0.2  # cores, more than usual


LOWER_CLOCK = 0.92  # of the usual clock


# NVML's reasons for a lower clock (nvmlClocksEventReasons in nvml.h), those that are not the idle or the chosen clock
SLOWED_BY = {0x04: "power cap", 0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


@dataclass(frozen=True)
class Gpu:
    """A GPU at one moment: clock of its processors, temperature, what slows it down, and processes that use it."""

    mhz: float
    celsius: float
    slowed_by: tuple[str, ...]
    processes: int


@dataclass(frozen=True)
class HostSnapshot:
    """The machine at one moment. Seconds count from some earlier moment, so only differences mean anything; cpu_s holds
    the name and the CPU seconds of every other process."""

    at: float
    load: float | None = None
    mhz: float | None = None
    stolen_s: float | None = None
    throttled_s: float | None = None
    cpu_s: dict[int, tuple[str, float]] = field(default_factory=dict)
    gpu: Gpu | None = None


@dataclass(frozen=True)
class HostDelta:
    """The machine between two moments: cores that each other process took, cores that the hypervisor and the container's
    quota took away, and load, clock and GPU at its end."""

    others: dict[str, float]
    stolen: float
    throttled: float
    load: float | None
    mhz: float | None
    gpu: Gpu | None


def take_snapshot(gpu_uuid: str | None) -> HostSnapshot:
    """The machine now; `gpu_uuid` as NVML names the GPU, None without one."""
    gpu = None if gpu_uuid is None else _gpu(gpu_uuid)
    load, mhz, stolen_s = _answer(lambda: os.getloadavg()[0]), _answer(_clock_mhz), _answer(_stolen_s)
    return HostSnapshot(now(), load, mhz, stolen_s, _throttled_s(), _answer(_cpu_seconds) or {}, gpu)


def _answer(question: Callable[[], T]) -> T | None:
    """The answer to a question about the machine, None where this system has none: looking must never end a run, and
    psutil raises errors of several kinds."""
    try:
        return question()
    except Exception:
        return None


def diff(before: HostSnapshot, after: HostSnapshot) -> HostDelta:
    """What went on between two moments."""
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
    """What may make a run slow, in half-sentences: where the machine differs from what is usual."""
    found = []
    took, takes = sum(usual.others.values()), sum(slow.others.values())
    if takes >= took + WORTH_A_WORD:
        busiest = sorted(slow.others.items(), key=lambda each: -each[1])[:NAMED]
        named = ", ".join(f"{name} {share:.1f}" for name, share in busiest if share >= 0.05)
        found.append(f"other processes take {takes:.1f} cores instead of {took:.1f} ({named})")
    if slow.stolen >= usual.stolen + WORTH_A_WORD:
        found.append(f"the hypervisor gives {slow.stolen:.1f} cores to others")
    if slow.throttled >= usual.throttled + WORTH_A_WORD:
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
    """Name and CPU seconds of every other process that may be looked at."""
    import psutil

    found = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        name, times = process.info["name"], process.info["cpu_times"]
        if process.pid != os.getpid() and times is not None:
            found[process.pid] = (name or "", times.user + times.system)
    return found


def _clock_mhz() -> float | None:
    """The median clock of the cores."""
    import psutil

    return statistics.median(core.current for core in psutil.cpu_freq(percpu=True))


def _stolen_s() -> float | None:
    """CPU seconds that a hypervisor gave to others; only Linux counts them."""
    import psutil

    return getattr(psutil.cpu_times(), "steal", None)


def _throttled_s() -> float | None:
    """Seconds that this container was stopped because its CPU quota was used up."""
    units = {"throttled_usec": 1e-6, "throttled_time": 1e-9}  # of cgroup v2 and v1
    for name in ("fs/cgroup/cpu.stat", "fs/cgroup/cpu/cpu.stat"):
        with suppress(OSError, ValueError):
            lines = [line.split() for line in (SYS / name).read_text().splitlines()]
            for key, value in (line for line in lines if len(line) == 2 and line[0] in units):
                return int(value) * units[key]
    return None


def _gpu(uuid: str) -> Gpu | None:
    """The GPU as NVIDIA's management library sees it; None where there is no library, no driver, or part of a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        bits = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        return Gpu(
            mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            celsius=pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            slowed_by=tuple(dict.fromkeys(word for bit, word in SLOWED_BY.items() if bits & bit)),
            processes=len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        )
    except Exception:  # drivers and releases differ in what they raise; a look must never end a run
        return None
