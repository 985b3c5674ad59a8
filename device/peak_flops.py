"""Measure the peak FLOP/s of a device that the table does not know."""

from __future__ import annotations

from collections.abc import Callable

import torch

from common.monotonic import now

PEAK_SECONDS = 0.25  # long enough for a stable figure on an idle machine
MATMUL_SIZE = {"cpu": 1024}  # elsewhere 8192: large enough to fill a data-centre GPU
MIN_REPEATS = 3


def measure_peak(device: torch.device, dtype: torch.dtype, synchronize: Callable[[], None]) -> float:
    """Return the FLOP/s of the fastest of several large square matrix products in `dtype`, a practical peak for MFU."""
    n = MATMUL_SIZE.get(device.type, 8192)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    began = now()
    while now() - began < PEAK_SECONDS or len(times) <= MIN_REPEATS:
        start = now()
        a @ b
        synchronize()
        times.append(now() - start)
    return 2 * n**3 / min(times[1:])  # the first product also pays for start-up
