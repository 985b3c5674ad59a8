"""Peak speed and memory of common GPUs. For a device that is not in the table, the peak is measured.

Peaks are the makers' dense matrix FLOP/s (no sparsity) with float32 accumulation, as in the tables of torchtitan and
nanochat. `expected_mfu` is the share of the peak to plan with before a measurement: nanoGPT's 124M model reaches 37 %
on one A100 (its scaling_laws notebook), nanochat 41 to 46 % on H100, consumer cards less. It holds for a width of
REFERENCE_WIDTH; a narrower model spends more of its time moving activations than multiplying.
"""

from __future__ import annotations

from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9
REFERENCE_WIDTH = 768
# Model of the time per token and layer: 72 d^2 FLOPs of matrices at a constant share m of the peak, plus k vectors of
# width d and 2 bytes per value at the memory's bandwidth. nanochat's 41 % at d = 768 and 46 % at d = 1152 on H100
# (989 TFLOP/s, 3.35 TB/s) give m = 0.61 and k = 74. Half the speed of a very wide model is then reached at d = m k /
# 36 x peak / bandwidth.
HALF_WIDTH = 0.61 * 74 / 36


@dataclass(frozen=True)
class DeviceSpec:
    """A row of the table.

    bf16, fp16: peak FLOP/s, bf16 None where the device only emulates it. memory: GiB. bandwidth: GB/s. expected_mfu:
    share of the peak, 0 to 1.
    """

    name: str
    bf16: float | None
    fp16: float
    memory: int
    bandwidth: int
    expected_mfu: float
    cuda_names: tuple[str, ...]  # substrings of torch.cuda.get_device_name, most specific device first in DEVICES

    @property
    def precision(self) -> str:
        """The default precision of a run on this device."""
        return "float16" if self.bf16 is None else "bfloat16"

    @property
    def peak(self) -> float:
        """FLOP/s in `precision`."""
        return self.bf16 or self.fp16

    @property
    def half_width(self) -> float:
        """The width at which a model reaches half the speed of a very wide one: 190 on an A100, 370 on an H100."""
        return HALF_WIDTH * self.peak / (self.bandwidth * GIGA)

    def peak_in(self, precision: str) -> float | None:
        """Return the FLOP/s in a precision; None where the table does not have it."""
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
    """Return the speed at a width relative to that at REFERENCE_WIDTH."""
    return (1 + half_width / REFERENCE_WIDTH) / (1 + half_width / n_embd)


# Words in a device's name that mark a variant of the device in the table, or a part of it.
VARIANTS = {"MIG", "Laptop", "Max", "Ti", "SUPER", "D", "NVL"}
BY_NAME = {device.name: device for device in DEVICES}


def by_cuda_name(cuda_name: str) -> DeviceSpec | None:
    """Return the specification for the name that CUDA reports; None for an unknown name.

    The name must match in whole words, so that "NVIDIA L40S" is not "NVIDIA L4", and must have no additional word of
    VARIANTS.
    """
    words = f" {cuda_name.replace('-', ' ')} "
    variants = VARIANTS & set(words.split())
    for device in DEVICES:
        if any(f" {alias} " in words and variants <= set(alias.split()) for alias in device.cuda_names):
            return device
    return None
