"""Tests of learning-rate schedules: each reaches its floor at the end of the budget, whatever the step sizes."""

from __future__ import annotations

import itertools
import math

import pytest

from model.optim.lr_schedule import SCHEDULES, learning_rate_scale, schedule_problems

SETTINGS = list(itertools.product(SCHEDULES, (0.0, 0.02, 0.5, 0.95), (0.0, 0.1, 1.0), (0.1, 0.2, 1.0)))
GRID = [i / 2000 for i in range(2001)]


@pytest.mark.parametrize(("shape", "warmup", "floor", "decay"), SETTINGS)
def test_it_rises_to_the_peak_and_falls_to_the_floor(shape: str, warmup: float, floor: float, decay: float) -> None:
    scales = [learning_rate_scale(progress, shape, warmup, floor, decay) for progress in GRID]
    after = [scale for progress, scale in zip(GRID, scales, strict=True) if progress >= warmup]
    before = [scale for progress, scale in zip(GRID, scales, strict=True) if progress < warmup]
    assert learning_rate_scale(warmup, shape, warmup, floor, decay) == pytest.approx(1.0)
    assert before == sorted(before)
    assert after == sorted(after, reverse=True)
    assert min(scales) >= 0
    assert max(scales) <= 1 + 1e-12
    end = 1.0 if shape == "constant" else floor
    assert learning_rate_scale(1.0, shape, warmup, floor, decay) == end
    assert learning_rate_scale(1.7, shape, warmup, floor, decay) == end


@pytest.mark.parametrize(("shape", "warmup", "floor", "decay"), SETTINGS)
def test_it_never_jumps(shape: str, warmup: float, floor: float, decay: float) -> None:
    """A step of 1e-9 of the budget changes every schedule little; 1 - sqrt, the steepest, by sqrt(1e-9 / shortest decay)."""
    for progress in [*GRID, warmup, 1 - decay, 1.0]:
        left = learning_rate_scale(progress - 1e-9, shape, warmup, floor, decay)
        assert learning_rate_scale(progress, shape, warmup, floor, decay) == pytest.approx(left, abs=2e-4)


@pytest.mark.parametrize("shape", SCHEDULES)
def test_warm_up_is_small_but_not_zero_from_the_start(shape: str) -> None:
    assert 0 < learning_rate_scale(1e-6, shape, 0.02, 0.1, 0.2) < 1e-3
    assert learning_rate_scale(0.005, shape, 0.02, 0.1, 0.2) == pytest.approx(0.25)
    assert learning_rate_scale(0.0, shape, 0.0, 0.1, 0.2) == 1.0
    assert learning_rate_scale(-0.1, shape, 0.02, 0.1, 0.2) == 0.0


@pytest.mark.parametrize("progress", [0.1, 0.3, 0.55, 0.8, 0.9, 0.99])
def test_closed_forms(progress: float) -> None:
    warmup, floor, decay = 0.1, 0.05, 0.25
    elapsed = (progress - warmup) / 0.9
    expected = {
        "cosine": floor + (1 - floor) * (1 + math.cos(math.pi * elapsed)) / 2,
        "linear": 1 + (floor - 1) * elapsed,
        "wsd": 1.0 if progress <= 0.75 else 1 + (floor - 1) * math.sqrt((progress - 0.75) / 0.25),
        "constant": 1.0,
    }
    for shape, value in expected.items():
        assert learning_rate_scale(progress, shape, warmup, floor, decay) == pytest.approx(value), shape


def test_a_decay_that_reaches_into_the_warm_up_begins_after_it() -> None:
    assert learning_rate_scale(0.5, "wsd", 0.5, 0.0, 1.0) == 1.0
    assert learning_rate_scale(0.625, "wsd", 0.5, 0.0, 1.0) == pytest.approx(0.5)


def test_invalid_settings_are_all_reported_at_once() -> None:
    assert schedule_problems("cosine", 0.02, 0.1, 0.2) == []
    found = schedule_problems("triangle", 1.0, -0.1, 0.0)
    assert [message.split("=")[0] for message in found] == [
        "schedule.shape",
        "schedule.warmup",
        "schedule.floor",
        "schedule.decay",
    ]
