"""The device a run computes on: which one, in which precision, with how many threads, and how fast it can be."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from budget.devices import by_cuda_name
from budget.probe import measure_peak
from errors import UserError
from model.shape import Shape

# Compilation pays when what it saves of the budget is at least twice what it costs. Seconds and speed-up: nanoGPT's
# README (250 to 135 ms a step on an A100, here taken lower) and inductor's C++ back end on two cores (1.29x, 46 s cold).
COMPILE_COST_S = {"cuda": 45.0, "cpu": 60.0}
COMPILE_SPEEDUP = {"cuda": 1.5, "cpu": 1.2}

MEMORY_SHARE = 0.6  # of free memory that a micro-batch may be estimated to need; the rest is for what estimates miss
CPU_MICRO_TOKENS = 16384  # beyond this a CPU's caches gain nothing


@dataclass(frozen=True)
class Machine:
    """peak_flops: FLOP/s in `precision`, from the table or measured (peak_source)."""

    device: torch.device
    name: str
    precision: str
    threads: int
    peak_flops: float
    peak_source: str

    @property
    def torch_version(self) -> str:
        return torch.__version__

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        synchronize(self.device)

    def to_device(self, array: Any) -> torch.Tensor:
        """A numpy array as a tensor on the device, without waiting for the copy."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def free_memory(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")

    def micro_batch(self, shape: Shape, sequences: int) -> int:
        """Sequences per forward pass that should fit, at most `sequences`: a power of two, or all of them."""
        value_bytes = 2 if self.precision == "bfloat16" else 4
        # About 24 values of the width are kept per layer for the backward pass; logits are kept once in the compute
        # precision and twice in float32.
        per_token = 24 * shape.n_layer * shape.n_embd * value_bytes + shape.vocab_size * (value_bytes + 8)
        tokens = MEMORY_SHARE * self.free_memory() / per_token
        if self.device.type == "cpu":
            tokens = min(tokens, CPU_MICRO_TOKENS)
        fits = max(1, int(tokens // shape.block_size))
        return sequences if fits >= sequences else 1 << (fits.bit_length() - 1)

    def compiles(self, setting: str, seconds: float | None, deterministic: bool) -> bool:
        """Whether to torch.compile, for `seconds` of budget (None: no limit of time).

        auto leaves it off where two compiled runs would differ in their last bits and the budget is in steps, so that
        such runs stay reproducible, and on devices where it was not tried.
        """
        kind = self.device.type
        if setting != "auto":
            return setting == "on"
        if kind not in COMPILE_COST_S or deterministic or seconds is None:
            return False
        return seconds * (1 - 1 / COMPILE_SPEEDUP[kind]) > 2 * COMPILE_COST_S[kind]


def synchronize(device: torch.device) -> None:
    """Wait for the device; the CPU is never ahead of itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def find_machine(name: str, threads: int | None, precision: str, peak_flops: float | None) -> Machine:
    """The device that `name` (auto, cpu, cuda, cuda:1, mps or a name of the device table) means here.

    Raises UserError when it is not there.
    """
    device = _device(name)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or usable
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    known = by_cuda_name(shown) if device.type == "cuda" else None
    if peak_flops is not None:
        return Machine(device, shown, precision, threads, peak_flops, "given")
    if known is not None and known.precision == precision:
        return Machine(device, shown, precision, threads, known.peak, "table")
    peak = measure_peak(device, getattr(torch, precision), lambda: synchronize(device))
    return Machine(device, shown, precision, threads, peak, "measured")


def _device(name: str) -> torch.device:
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
