"""The device that a run computes on: its precision, threads, peak speed, memory and transfers."""

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
from device.compile_cost import CompileOption
from device.host_monitor import HostSnapshot, take_snapshot
from device.peak_flops import measure_peak
from device.specs import by_cuda_name
from model.attention import document_starts
from model.config import Shape
from model.loss import rows_per_slice

# Expected seconds and speed-up of torch.compile, until measured. GPU: nanoGPT's README has 250 to 135 ms per step on
# an A100, taken lower here. CPU: Inductor's C++ back end takes 23 to 46 s on two cores, and its step loses the fused
# forms and the sparse embedding gradients of the eager one, so no gain is expected.
COMPILE_COST_S = {"cuda": 45.0, "cpu": 45.0}
COMPILE_SPEEDUP = {"cuda": 1.5, "cpu": 1.0}
# Regional compilation (block by block) takes a share of that time for the same gain: 0.18 to 0.28 with 16 layers in
# accelerate's benchmark (benchmarks/torch.compile of its repository); models planned here have fewer layers. With
# these values, training on a GPU is not compiled below 90 s, by block up to 270 s, and as a whole above.
REGIONAL_SHARE = 1 / 3

MEMORY_SHARE = 0.6  # of the free memory, for the estimated micro-batch; the estimate misses some of what a step takes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 1 << 30  # glibc's malloc.h
FIRST_LOSS_SCALE = 2.0**16  # torch's default; GradScaler halves it after an overflow
# Tokens per forward pass on a CPU, per thread and at most. Two to four times as many were within 10 % of this speed on one
# and two threads; small passes keep trials short. More than two threads were not measured.
CPU_MICRO_TOKENS, CPU_MOST_TOKENS = 4096, 16384


@dataclass(frozen=True)
class Device:
    """A device that is ready for use.

    precision: float32 | bfloat16 | float16. peak_flops: FLOP/s in `precision`. peak_source: table | measured | given.
    """

    torch_device: torch.device
    name: str
    precision: str
    threads: int
    peak_flops: float
    peak_source: str

    @property
    def title(self) -> str:
        """The device, threads and precision in words, to notice when a run resumes on another device."""
        return f"{self.name}, {self.threads} threads, {self.precision}"

    @property
    def torch_version(self) -> str:
        return torch.__version__

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of a forward pass."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch_device.type, getattr(torch, self.precision))

    def scaler(self, scale: float | None = None) -> torch.amp.GradScaler:
        """Return the gradient scaler, which is active in float16 only.

        `scale` is the loss scale that an earlier process of the run had reached.
        """
        return torch.amp.GradScaler(
            self.torch_device.type, init_scale=scale or FIRST_LOSS_SCALE, enabled=self.precision == "float16"
        )

    def synchronize(self) -> None:
        """Wait until the device has finished all work."""
        synchronize(self.torch_device)

    @property
    def steps_ahead(self) -> int:
        """How many training steps the host may launch ahead: a GPU computes one while the host prepares the next."""
        return 1 if self.torch_device.type == "cuda" else 0

    def fetch_async(self, *values: torch.Tensor) -> Callable[[], list[float]]:
        """Start copying scalars to the host; return a function that waits for the copies and returns the floats.

        On a GPU it waits for these copies only, whereas `.item()` would wait for all work launched since.
        """
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
        """Return a numpy array as a contiguous tensor on the device, without waiting for the copy.

        It is contiguous even for views, such as the inputs of a batch: a compiled model is specialised to one layout,
        and an asynchronous copy from a non-contiguous tensor would block.
        """
        tensor = torch.from_numpy(array)
        if self.torch_device.type == "cuda":
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            return pinned.copy_(tensor).to(self.torch_device, non_blocking=True)
        return tensor.contiguous().to(self.torch_device)

    def batch(self, host: Batch[Any], shape: Shape) -> Batch[torch.Tensor]:
        """Return a batch of numpy arrays (B, T) on the device, with the document starts where attention needs them."""
        starts = self.document_starts(host.inputs, shape)
        return Batch(self.to_device(host.inputs), self.to_device(host.targets), starts)

    def document_starts(self, tokens: Any, shape: Shape) -> torch.Tensor | None:
        """Return the offsets where documents start in `tokens` (B, T), a numpy array, for `GPT.forward`.

        None where documents are not separated, or where a mask separates them: the kernel for variable lengths takes
        half precision, head sizes that are multiples of 8 up to 256, and no dropout.
        """
        if shape.eot is None or shape.dropout or shape.head_size % 8 or shape.head_size > 256:
            return None
        # The kernel needs half precision, on Ampere or later.
        if self.precision == "float32" or best_precision(self.torch_device) != "bfloat16":
            return None
        starts = self.to_device(document_starts(tokens, shape.eot))
        torch._dynamo.maybe_mark_dynamic(starts, 0)  # their number differs between batches: compile once for all
        return starts

    def snapshot(self) -> HostSnapshot:
        """Return what else is running on the machine now, besides this process."""
        return take_snapshot(gpu_uuid(self.torch_device))

    def free_memory(self) -> int:
        """Return the bytes that can still be allocated."""
        if self.torch_device.type == "cuda":
            return torch.cuda.mem_get_info(self.torch_device)[0]
        return available_memory()

    def reset_peak_memory(self) -> int:
        """Restart the measurement of `peak_memory`; return the bytes in use now."""
        if self.torch_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.torch_device)
            return torch.cuda.memory_reserved(self.torch_device)
        with suppress(OSError):  # Linux only; elsewhere the peak is that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5")
        return int(psutil.Process().memory_info().rss)

    def peak_memory(self) -> int:
        """Return the most bytes in use since `reset_peak_memory`."""
        if self.torch_device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.torch_device)
        return peak_process_memory()

    def release_memory(self) -> None:
        """Return cached memory of freed tensors to the system."""
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        with suppress(OSError, AttributeError):  # glibc keeps freed memory, which would count for the next shape
            ctypes.CDLL(None).malloc_trim(0)

    def micro_batch(self, shape: Shape, sequences: int) -> int:
        """Return how many sequences per forward pass should fit: `sequences`, or a smaller power of two."""
        memory = MEMORY_SHARE * self.free_memory()
        cpu_tokens = min(CPU_MICRO_TOKENS * self.threads, CPU_MOST_TOKENS)
        most = cpu_tokens if self.torch_device.type == "cpu" else sequences * shape.block_size
        for micro in (sequences, *(1 << power for power in reversed(range(sequences.bit_length())))):
            tokens = micro * shape.block_size
            if tokens <= most and self.step_memory(shape, tokens) <= memory:
                return micro
        return 1

    def step_memory(self, shape: Shape, tokens: int) -> int:
        """Estimate the bytes of a forward and a backward pass over `tokens` tokens.

        The activations take 24 values of width D per token and layer. The logits take as many rows as model/loss.py
        holds at a time, once in the compute precision and twice in float32.
        """
        precision = getattr(torch, self.precision)
        kept = 24 * shape.n_layer * shape.n_embd * precision.itemsize
        rows = rows_per_slice(tokens, shape.vocab_size, self.torch_device.type, precision)
        return tokens * kept + rows * shape.vocab_size * (precision.itemsize + 8)

    def compile_options(self, setting: str) -> list[CompileOption]:
        """Return the ways to compile that a value of device.compile allows, the preferred one first, at their expected cost.

        With "auto" the list is empty on a kind of device where compilation was never tried.
        """
        kind, asked = self.torch_device.type, setting != "auto"
        if setting == "off" or (not asked and kind not in COMPILE_COST_S):
            return []
        cost_s, speedup = COMPILE_COST_S.get(kind, 0.0), COMPILE_SPEEDUP.get(kind, 1.0)
        whole = CompileOption("on", cost_s, speedup, asked)
        regional = CompileOption("regional", REGIONAL_SHARE * cost_s, speedup, asked)
        return [way for way in (whole, regional) if setting in ("auto", way.how)]


def peak_process_memory() -> int:
    """Return the most bytes that this process used: VmHWM on Linux, which can be reset and which psutil does not report."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # not on every system

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


def available_memory() -> int:
    """Return the bytes that this process can still allocate, within the limit of its container."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        about = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        # The page cache (a corpus that was just verified, for one) counts as used, but is freed on demand.
        files = sum(int(value) for name, value in about if name in ("inactive_file", "active_file"))
        used = int((group / "memory.current").read_text()) - files
        return min(free, int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError):  # no limit
        return free


def gpu_uuid(device: torch.device) -> str | None:
    """Return the UUID by which NVML knows a GPU; None for any other device."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None
    return f"GPU-{uuid}" if uuid else None


def synchronize(device: torch.device) -> None:
    """Wait for the device; the CPU needs no wait."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def open_device(name: str, threads: int | None, precision: str, peak_flops: float | None) -> Device:
    """Return the device for `name` (auto, cpu, cuda, cuda:1, mps or a name of the device table), ready for use.

    Raises UserError where this machine does not have it.
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
    """Configure this process to compute on the device."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.init()  # a device with an index is not initialised by every call of torch
        if device.index is not None:
            torch.cuda.set_device(device)  # the default for calls without a device
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    Each step frees its activations and allocates them again; the page faults slow down a small model
    (docs/performance.md). Without glibc this does nothing.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)


def best_precision(device: torch.device) -> str:
    """Return bfloat16 on GPUs that support it natively (Ampere or later), float16 on others, float32 elsewhere."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def find_device(name: str) -> torch.device:
    """Return the torch device for a name. Raises UserError where this machine does not have it."""
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
            raise UserError(
                f"device={name} does not exist; this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0"
            )
        return device
    if cuda and (known := by_cuda_name(torch.cuda.get_device_name())) is not None and known.name == name:
        return torch.device("cuda")
    here = torch.cuda.get_device_name() if cuda else "no CUDA device"
    raise UserError(
        f"device={name} is not on this machine ({here}); use device=auto, or plan for the absent device with plan.py"
    )
