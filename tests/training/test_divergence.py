"""A lost model is told from a spike that training survives."""

from __future__ import annotations

import math

import pytest

from training.divergence import SPIKE_NATS, SPIKE_STEPS, SpikeDetector

GUESS = math.log(257)
LOST = GUESS + 2 * SPIKE_NATS


def lasts(losses: list[float], start: float | None = None) -> list[bool]:
    spike = SpikeDetector(GUESS, start)
    return [spike.has_diverged(loss) for loss in losses]


def test_worse_than_guessing_for_long_is_lost() -> None:
    assert lasts([3.0] + [LOST] * SPIKE_STEPS) == [False] * SPIKE_STEPS + [True]
    assert lasts([LOST] * SPIKE_STEPS, start=3.0)[-1], "also in a run that went on from a good loss"


@pytest.mark.parametrize(
    "losses",
    [
        [LOST] * 1000,  # a bad start is not a loss of what was learned
        ([3.0] + [LOST] * (SPIKE_STEPS - 1)) * 10,  # spikes that pass
        [3.0] + [GUESS + 0.9 * SPIKE_NATS] * 1000,  # no better than a guess, but no worse
        [3.0] + [5.0] * 1000,  # worse than it was, which a warm-up may do
    ],
)
def test_everything_else_goes_on(losses: list[float]) -> None:
    assert not any(lasts(losses))


def test_weights_of_a_spike_are_not_worth_keeping() -> None:
    spike = SpikeDetector(GUESS, 3.0)
    assert spike.is_healthy
    spike.has_diverged(LOST)
    assert not spike.is_healthy
    spike.has_diverged(3.0)
    assert spike.is_healthy
