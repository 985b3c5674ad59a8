"""Peak speed and memory of the devices that people train on. What is not here is measured, never guessed.

Peaks are dense (no sparsity) matrix FLOP/s as the makers publish them, with float32 accumulation; the same figures stand
in torchtitan's and nanochat's tables. `expected_mfu` is the share of the peak to plan with before anything was measured:
nanoGPT's 124M model reaches 37 % on one A100 (its scaling_laws notebook), nanochat 41-46 % on H100, consumer cards less.
"""

from __future__ import annotations

from dataclasses import dataclass

TERA = 1e12


@dataclass(frozen=True)
class Device:
    """peak: FLOP/s in `precision`; memory: GiB; bandwidth: GB/s; expected_mfu: share of the peak, 0..1."""

    name: str
    peak: float
    precision: str
    memory: int
    bandwidth: int
    expected_mfu: float
    cuda_names: tuple[str, ...]  # substrings of torch.cuda.get_device_name, most specific device first in DEVICES


DEVICES = (
    Device("a100", 312 * TERA, "bfloat16", 80, 2039, 0.35, ("A100",)),
    Device("h200", 989 * TERA, "bfloat16", 141, 4800, 0.30, ("H200",)),
    Device("h100-nvl", 835 * TERA, "bfloat16", 94, 3900, 0.30, ("H100 NVL",)),
    Device("h100-pcie", 756 * TERA, "bfloat16", 80, 2000, 0.30, ("H100 PCIe",)),
    Device("h100", 989 * TERA, "bfloat16", 80, 3350, 0.30, ("H100",)),
    Device("b200", 2250 * TERA, "bfloat16", 180, 8000, 0.30, ("B200",)),
    Device("mi300x", 1307 * TERA, "bfloat16", 192, 5300, 0.25, ("MI300X",)),
    Device("l4", 121 * TERA, "bfloat16", 24, 300, 0.20, ("NVIDIA L4",)),
    Device("l40s", 362 * TERA, "bfloat16", 48, 864, 0.20, ("L40S",)),
    Device("rtx3090", 71 * TERA, "bfloat16", 24, 936, 0.20, ("RTX 3090",)),
    Device("rtx4090", 165.2 * TERA, "bfloat16", 24, 1008, 0.20, ("RTX 4090",)),
    Device("rtx5090", 209.5 * TERA, "bfloat16", 32, 1790, 0.20, ("RTX 5090",)),
    Device("v100", 125 * TERA, "float16", 32, 900, 0.20, ("V100",)),
    Device("t4", 65 * TERA, "float16", 16, 320, 0.20, ("Tesla T4",)),
)

BY_NAME = {device.name: device for device in DEVICES}


def by_cuda_name(cuda_name: str) -> Device | None:
    """The table's row for the name that CUDA reports, or None: then the peak has to be measured.

    The name must stand as whole words, so that "NVIDIA L4" is not found in "NVIDIA L40S".
    """
    words = f" {cuda_name.replace('-', ' ')} "
    for device in DEVICES:
        if any(f" {alias} " in words for alias in device.cuda_names):
            return device
    return None
