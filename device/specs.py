"""Peak speed and memory of the devices that people train on. What is not here is measured, never guessed.

Peaks are dense (no sparsity) matrix FLOP/s as the makers publish them, with float32 accumulation; the same figures stand
in torchtitan's and nanochat's tables. `expected_mfu` is the share of the peak to plan with before anything was measured:
nanoGPT's 124M model reaches 37 % on one A100 (its scaling_laws notebook), nanochat 41-46 % on H100, consumer cards less. It
is for a width of REFERENCE_WIDTH; a thin model spends more of its time moving activations than multiplying.
"""

from __future__ import annotations

from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9
REFERENCE_WIDTH = 768
# Time per token and layer: matrices at a constant share m of the peak, 72 d^2 FLOPs, and k values of 2 bytes and width d
# moved at the memory's bandwidth. nanochat's 41 % at a width of 768 and 46 % at 1152 on H100 (989 TFLOP/s, 3.35 TB/s) give
# m = 0.61 and k = 74; then half of what a very wide model reaches is reached at a width of m k / 36 x peak / bandwidth.
HALF_WIDTH = 0.61 * 74 / 36


@dataclass(frozen=True)
class DeviceSpec:
    """bf16, fp16: FLOP/s, bf16 None where the device only emulates it; memory: GiB; bandwidth: GB/s; expected_mfu: share
    of the peak, 0..1."""

    name: str
    bf16: float | None
    fp16: float
    memory: int
    bandwidth: int
    expected_mfu: float
    cuda_names: tuple[str, ...]  # substrings of torch.cuda.get_device_name, most specific device first in DEVICES

    @property
    def precision(self) -> str:
        """What a run takes when nobody says otherwise."""
        return "float16" if self.bf16 is None else "bfloat16"

    @property
    def peak(self) -> float:
        """FLOP/s in `precision`."""
        return self.bf16 or self.fp16

    @property
    def half_width(self) -> float:
        """Width of a model that reaches half the speed of a very wide one: 190 on an A100, 370 on an H100."""
        return HALF_WIDTH * self.peak / (self.bandwidth * GIGA)

    def peak_in(self, precision: str) -> float | None:
        """FLOP/s, None where it is not known: then it is measured."""
        return {"bfloat16": self.bf16, "float16": self.fp16}.get(precision)


DEVICES = (
    DeviceSpec("a100", 312 * TERA, 312 * TERA, 80, 2039, 0.35, ("A100",)),
    DeviceSpec("h200", 989 * TERA, 989 * TERA, 141, 4800, 0.30, ("H200",)),
    DeviceSpec("h100-nvl", 835 * TERA, 835 * TERA, 94, 3900, 0.30, ("H100 NVL",)),
    DeviceSpec("h100-pcie", 756 * TERA, 756 * TERA, 80, 2000, 0.30, ("H100 PCIe",)),
    DeviceSpec("h100", 989 * TERA, 989 * TERA, 80, 3350, 0.30, ("H100",)),
    DeviceSpec("b200", 2250 * TERA, 2250 * TERA, 180, 8000, 0.30, ("B200",)),
    DeviceSpec("mi300x", 1307 * TERA, 1307 * TERA, 192, 5300, 0.25, ("MI300X",)),
    DeviceSpec("l4", 121 * TERA, 121 * TERA, 24, 300, 0.20, ("NVIDIA L4",)),
    DeviceSpec("l40s", 362 * TERA, 362 * TERA, 48, 864, 0.20, ("L40S",)),
    DeviceSpec("rtx3090", 71 * TERA, 71 * TERA, 24, 936, 0.20, ("RTX 3090",)),
    DeviceSpec("rtx4090", 165.2 * TERA, 165.2 * TERA, 24, 1008, 0.20, ("RTX 4090",)),
    DeviceSpec("rtx5090", 209.5 * TERA, 209.5 * TERA, 32, 1790, 0.20, ("RTX 5090",)),
    DeviceSpec("v100", None, 125 * TERA, 32, 900, 0.20, ("V100",)),
    DeviceSpec("t4", None, 65 * TERA, 16, 320, 0.20, ("Tesla T4",)),
)


def width_factor(half_width: float, n_embd: int) -> float:
    """Speed at a width relative to that at REFERENCE_WIDTH."""
    return (1 + half_width / REFERENCE_WIDTH) / (1 + half_width / n_embd)


# Words that make a part of a device, or another one, of a name in the table.
OTHERS = {"MIG", "Laptop", "Max", "Ti", "SUPER", "D", "NVL"}
BY_NAME = {device.name: device for device in DEVICES}


def by_cuda_name(cuda_name: str) -> DeviceSpec | None:
    """The table's row for the name that CUDA reports, or None: then the peak has to be measured.

    The name must stand as whole words, so that "NVIDIA L4" is not found in "NVIDIA L40S", and none of OTHERS beside it.
    """
    words = f" {cuda_name.replace('-', ' ')} "
    others = OTHERS & set(words.split())
    for device in DEVICES:
        if any(f" {alias} " in words and others <= set(alias.split()) for alias in device.cuda_names):
            return device
    return None
