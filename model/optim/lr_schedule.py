"""Learning-rate schedules as pure functions of progress, the fraction of the budget that is spent. Does not import torch.

No schedule counts steps, so each reaches its floor exactly at the end of the budget, at any throughput.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(elapsed: float, decay: float) -> float:
    """Return half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * elapsed))


def linear(elapsed: float, decay: float) -> float:
    """Return a straight line to 0, which Bergsma et al. 2025 (arXiv:2502.15938) prefer to a cosine."""
    return 1 - elapsed


def wsd(elapsed: float, decay: float) -> float:
    """Return 1, then 1 - sqrt over the last `decay` (warmup-stable-decay, Haegele et al. 2024, arXiv:2405.18392)."""
    return 1 - math.sqrt(max(0.0, 1 - (1 - elapsed) / decay))


def constant(elapsed: float, decay: float) -> float:
    """Return 1: the learning rate stays at its peak."""
    return 1.0


# Each function maps the elapsed fraction of the time after warm-up to a height from 1 (peak) to 0 (floor). `decay` is a
# fraction of the same time; only wsd reads it.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "constant": constant,
}


def schedule_problems(shape: str, warmup: float, floor: float, decay: float) -> list[str]:
    """Return every invalid setting, one line each; an empty list if all are valid."""
    problems = []
    if shape not in SCHEDULES:
        problems.append(f"schedule.shape={shape} is unknown; allowed: {', '.join(SCHEDULES)}")
    if not 0 <= warmup < 1:
        problems.append(f"schedule.warmup={warmup} must be at least 0 and less than 1: it is a fraction of the budget")
    if not 0 <= floor <= 1:
        problems.append(f"schedule.floor={floor} must be between 0 and 1: it is a fraction of the peak learning rate")
    if not 0 < decay <= 1:
        problems.append(f"schedule.decay={decay} must be greater than 0 and at most 1: it is a fraction of the budget")
    return problems


def learning_rate_scale(progress: float, shape: str, warmup: float, floor: float, decay: float) -> float:
    """Return the factor of the peak learning rate at `progress`: 0 is the start of the budget, 1 its end.

    The factor rises linearly over the first `warmup` of the budget, then follows `shape` down to `floor` (a fraction of the
    peak), which it reaches at progress 1 and keeps after it; "constant" stays at the peak. wsd decays over the last `decay`
    of the budget, or from the end of the warm-up if the two would overlap. With a warm-up the factor is 0 at progress 0, so
    pass the progress at the end of a step, not at its start. The settings must be valid (`schedule_problems`).
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    after_warmup = 1 - warmup
    height = SCHEDULES[shape]((progress - warmup) / after_warmup, min(1.0, decay / after_warmup))
    return floor + (1 - floor) * height
