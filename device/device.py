"""The device a run computes on: which one, in which precision, with how many threads, and how fast it can be."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from common.cpu import usable_cores
from common.errors import UserError
from data.batch import Batch
from device.compile_cost import Compiling
from device.host_monitor import HostSnapshot, take_snapshot
from device.peak_flops import measure_peak
from device.specs import by_cuda_name
from model.attention import document_starts
from model.config import Shape
from model.loss import rows_per_slice

# Expected until it was measured. nanoGPT's README: 250 to 135 ms a step on an A100, here taken lower. Inductor's C++ back
# end on two cores takes 23 to 46 s; what the eager step has there, forms written out and sparse tables, it does without, so
# nothing is expected of it.
COMPILE_COST_S = {"cuda": 45.0, "cpu": 45.0}
COMPILE_SPEEDUP = {"cuda": 1.5, "cpu": 1.0}
# Block by block compiles in a share of that time and brings as much: a model of 16 layers took 0.18 to 0.28 of it in
# accelerate's benchmark (benchmarks/torch.compile of its repository), and those planned here have fewer. So for training
# on a GPU: nothing below 90 seconds, blocks up to 270, the whole model beyond, where what is between the blocks counts too.
REGIONAL_SHARE = 1 / 3

MEMORY_SHARE = 0.6  # of free memory that a micro-batch may be estimated to need; the rest is for what estimates miss
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30  # glibc's malloc.h
FIRST_LOSS_SCALE = 2.0**16  # torch's own; halved at once where it is too large
# Tokens at once for each thread of a CPU: with four times as many, 1 x 64 to 2 x 128 were 0.95 to 1.03 times as fast on one
# thread, with twice as many 0.97 to 1.03 times on two, and 4 x 256 0.90 and 1.02 times. Few at once keep trials short.
# More than two threads were never tried: from four on it is what it was before.
CPU_MICRO_TOKENS, CPU_MOST_TOKENS = 4096, 16384


@dataclass(frozen=True)
class Device:
    """peak_flops: FLOP/s in `precision`, from the table or measured (peak_source)."""

    torch_device: torch.device
    name: str
    precision: str
    threads: int
    peak_flops: float
    peak_source: str

    @property
    def title(self) -> str:
        """What a run that moves here should know of it."""
        return f"{self.name}, {self.threads} threads, {self.precision}"

    @property
    def torch_version(self) -> str:
        return torch.__version__

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch_device.type, getattr(torch, self.precision))

    def scaler(self, scale: float | None = None) -> torch.amp.GradScaler:
        """Scales the loss where gradients would vanish in float16's range, does nothing elsewhere. `scale`: what an
        earlier process of the run had reached."""
        return torch.amp.GradScaler(
            self.torch_device.type, init_scale=scale or FIRST_LOSS_SCALE, enabled=self.precision == "float16"
        )

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        synchronize(self.torch_device)

    @property
    def steps_ahead(self) -> int:
        """Training steps that the host may have launched and not seen the end of: a GPU works while the next is prepared."""
        return 1 if self.torch_device.type == "cuda" else 0

    def later(self, *values: torch.Tensor) -> Callable[[], list[float]]:
        """Scalars on the device as numbers, once they are asked for. On a GPU the copies are under way from now on and only
        these are waited for: `.item()` would stand in line behind all work that was launched since."""
        if self.torch_device.type != "cuda":
            return lambda: [value.item() for value in values]
        host = torch.empty(len(values), dtype=torch.float32, pin_memory=True)
        host.copy_(torch.stack([value.float() for value in values]), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.torch_device))

        def read() -> list[float]:
            copied.synchronize()
            return [float(value) for value in host.tolist()]

        return read

    def to_device(self, array: Any) -> torch.Tensor:
        """A numpy array as a contiguous tensor on the device, without waiting for the copy. Contiguous also where the array,
        like the inputs of a batch, is a view: a compiled model is made for one layout, and a copy from a GPU's host waits
        where it has to make one."""
        tensor = torch.from_numpy(array)
        if self.torch_device.type == "cuda":
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            return pinned.copy_(tensor).to(self.torch_device, non_blocking=True)
        return tensor.contiguous().to(self.torch_device)

    def batch(self, host: Batch[Any], shape: Shape) -> Batch[torch.Tensor]:
        """A batch of numpy arrays on the device, with the starts of its documents where attention needs them."""
        starts = self.document_starts(host.inputs, shape)
        return Batch(self.to_device(host.inputs), self.to_device(host.targets), starts)

    def document_starts(self, tokens: Any, shape: Shape) -> torch.Tensor | None:
        """For `GPT.forward`, where documents start in `tokens`, a numpy array (B, T); None where they are not kept apart, or
        by a mask. The kernel that takes it knows half precision, whole groups of 8 values a head, and no dropout."""
        if shape.eot is None or shape.dropout or shape.head_size % 8 or shape.head_size > 256:
            return None
        if (
            self.precision == "float32" or best_precision(self.torch_device) != "bfloat16"
        ):  # before Ampere there is none
            return None
        starts = self.to_device(document_starts(tokens, shape.eot))
        torch._dynamo.maybe_mark_dynamic(starts, 0)  # their number is another in each batch: compile once for all
        return starts

    def snapshot(self) -> HostSnapshot:
        """What goes on on the machine now, besides this process."""
        return take_snapshot(gpu_uuid(self.torch_device))

    def free_memory(self) -> int:
        """Bytes that may still be taken."""
        if self.torch_device.type == "cuda":
            return torch.cuda.mem_get_info(self.torch_device)[0]
        return available_memory()

    def restart_peak_memory(self) -> int:
        """Measure `peak_memory` from here on; returns the bytes in use now."""
        if self.torch_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.torch_device)
            return torch.cuda.memory_reserved(self.torch_device)
        with suppress(OSError):  # not on every system: the peak is then that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5")
        return int(psutil.Process().memory_info().rss)

    def peak_memory(self) -> int:
        """Most bytes in use since `restart_peak_memory`, those in use then included."""
        if self.torch_device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.torch_device)
        return peak_process_memory()

    def release_memory(self) -> None:
        """Give back what is cached of tensors that are gone."""
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        with suppress(OSError, AttributeError):  # glibc keeps what was freed, which would count for the next shape
            ctypes.CDLL(None).malloc_trim(0)

    def micro_batch(self, shape: Shape, sequences: int) -> int:
        """Sequences per forward pass that should fit, at most `sequences`: a power of two, or all of them."""
        memory = MEMORY_SHARE * self.free_memory()
        cpu_tokens = min(CPU_MICRO_TOKENS * self.threads, CPU_MOST_TOKENS)
        most = cpu_tokens if self.torch_device.type == "cpu" else sequences * shape.block_size
        for micro in (sequences, *(1 << power for power in reversed(range(sequences.bit_length())))):
            tokens = micro * shape.block_size
            if tokens <= most and self.step_memory(shape, tokens) <= memory:
                return micro
        return 1

    def step_memory(self, shape: Shape, tokens: int) -> int:
        """Bytes that a forward and a backward pass over so many tokens take, about: 24 values of the width a token and
        layer, kept for the backward pass, and what model/loss.py holds of logits at a time, once in the compute precision
        and twice in float32."""
        precision = getattr(torch, self.precision)
        kept = 24 * shape.n_layer * shape.n_embd * precision.itemsize
        rows = rows_per_slice(tokens, shape.vocab_size, self.torch_device.type, precision)
        return tokens * kept + rows * shape.vocab_size * (precision.itemsize + 8)

    def ways_to_compile(self, setting: str) -> list[Compiling]:
        """Those that a setting of device.compile allows, the preferred one first, with what each is expected to cost and to
        bring on this device; none by itself where that was never tried."""
        kind, asked = self.torch_device.type, setting != "auto"
        if setting == "off" or (not asked and kind not in COMPILE_COST_S):
            return []
        cost_s, speedup = COMPILE_COST_S.get(kind, 0.0), COMPILE_SPEEDUP.get(kind, 1.0)
        whole = Compiling("on", cost_s, speedup, asked)
        regional = Compiling("regional", REGIONAL_SHARE * cost_s, speedup, asked)
        return [way for way in (whole, regional) if setting in ("auto", way.how)]


def peak_process_memory() -> int:
    """Most bytes that this process had in use: VmHWM on Linux, the only figure that can be started anew, which psutil does
    not report."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # not on every system

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


def available_memory() -> int:
    """Bytes that this process may still take: what the system could free, and no more than a container's limit."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        about = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        # Files that were read count as used until somebody needs the room: a corpus that was just verified, for one.
        files = sum(int(value) for name, value in about if name in ("inactive_file", "active_file"))
        used = int((group / "memory.current").read_text()) - files
        return min(free, int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError):  # no limit
        return free


def gpu_uuid(device: torch.device) -> str | None:
    """The name under which NVIDIA's management library knows a GPU; None for any other device."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None
    return f"GPU-{uuid}" if uuid else None


def synchronize(device: torch.device) -> None:
    """Wait for the device; the CPU is never ahead of itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def open_device(name: str, threads: int | None, precision: str, peak_flops: float | None) -> Device:
    """The device that `name` (auto, cpu, cuda, cuda:1, mps or a name of the device table) means here.

    Raises UserError when it is not there.
    """
    device = find_device(name)
    threads = threads or usable_cores()
    set_up(device, threads)
    if precision == "auto":
        precision = best_precision(device)
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    known = by_cuda_name(shown) if device.type == "cuda" else None
    if peak_flops is not None:
        return Device(device, shown, precision, threads, peak_flops, "given")
    if known is not None and (peak := known.peak_in(precision)) is not None:
        return Device(device, shown, precision, threads, peak, "table")
    peak = measure_peak(device, getattr(torch, precision), lambda: synchronize(device))
    return Device(device, shown, precision, threads, peak, "measured")


def set_up(device: torch.device, threads: int) -> None:
    """What a process has to set before it computes on a device."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.init()  # not every question that torch asks a GPU does it, where the GPU has a number
        if device.index is not None:
            torch.cuda.set_device(device)  # whatever asks for "the" GPU means this one
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def keep_freed_memory() -> None:
    """Have glibc keep what is freed instead of giving it back to the system: each step frees its activations and asks for
    them again, and thousands of page faults a step slow a small model down (docs/performance.md).
    Elsewhere than on glibc nothing happens."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)


def best_precision(device: torch.device) -> str:
    """bfloat16 where a GPU really has it, not where it is emulated (before Ampere): there float16."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def find_device(name: str) -> torch.device:
    """The device that a name means here. Raises UserError when it is not there."""
    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if name == "cpu" or (name == "mps" and mps):
        return torch.device(name)
    if name.startswith("cuda") and cuda:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise UserError(f"device={name} is not a CUDA device; allowed: cuda, cuda:0, cuda:1, ...") from None
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(f"device={name} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
        return device
    if cuda and (known := by_cuda_name(torch.cuda.get_device_name())) is not None and known.name == name:
        return torch.device("cuda")
    here = torch.cuda.get_device_name() if cuda else "no CUDA device"
    raise UserError(
        f"device={name} is not on this machine ({here}); use device=auto, or plan.py to plan for it from here"
    )
