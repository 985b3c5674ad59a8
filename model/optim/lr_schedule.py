"""The learning rate as a pure function of progress, the share of the budget that is spent. Imports no torch.

Nothing here counts steps, so every schedule lands where it should whatever the throughput turned out to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from common.errors import UserError


def cosine(elapsed: float, decay: float) -> float:
    """Half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * elapsed))


def linear(elapsed: float, decay: float) -> float:
    """A straight line (Bergsma et al. 2025, arXiv:2502.15938), against half a cosine."""
    return 1 - elapsed


def wsd(elapsed: float, decay: float) -> float:
    """Constant, then 1 - sqrt over the last `decay` (Haegele et al. 2024, arXiv:2405.18392)."""
    return 1 - math.sqrt(max(0.0, 1 - (1 - elapsed) / decay))


def constant(elapsed: float, decay: float) -> float:
    """The peak, to the end."""
    return 1.0


# Each maps the elapsed share of the time after warm-up to a height from 1 (peak) to 0 (floor). `decay` is a share of
# the same time; only wsd reads it.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "constant": constant,
}


def schedule_problems(shape: str, warmup: float, floor: float, decay: float) -> list[str]:
    """Every setting that makes no schedule, one line each."""
    found = []
    if shape not in SCHEDULES:
        found.append(f"schedule.shape={shape} is unknown; allowed: {', '.join(SCHEDULES)}")
    if not 0 <= warmup < 1:
        found.append(f"schedule.warmup={warmup} must be at least 0 and less than 1: it is a share of the budget")
    if not 0 <= floor <= 1:
        found.append(f"schedule.floor={floor} must be between 0 and 1: it is a share of the peak learning rate")
    if not 0 < decay <= 1:
        found.append(f"schedule.decay={decay} must be greater than 0 and at most 1: it is a share of the budget")
    return found


def learning_rate_scale(progress: float, shape: str, warmup: float, floor: float, decay: float) -> float:
    """What to multiply the peak learning rate by at `progress`: 0 is the start of the budget, 1 its end.

    A straight warm-up over the first `warmup` of the budget, then `shape` down to `floor` (a share of the peak),
    which is reached exactly at progress 1 and held after it; "constant" stays at the peak. wsd decays over the last
    `decay` of the budget, or from the end of the warm-up where the two would overlap. With a warm-up the scale is 0
    at progress 0, so give a step the progress that its end will have. Raises UserError on settings that make no
    schedule.
    """
    if found := schedule_problems(shape, warmup, floor, decay):
        raise UserError(*found)
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    after_warmup = 1 - warmup
    height = SCHEDULES[shape]((progress - warmup) / after_warmup, min(1.0, decay / after_warmup))
    return floor + (1 - floor) * height
