"""Divergence is told apart from a spike that training recovers from."""

from __future__ import annotations

import math

import pytest

from training.divergence import SPIKE_NATS, SPIKE_STEPS, SpikeDetector

GUESS = math.log(257)
LOST = GUESS + 2 * SPIKE_NATS


def diverged(losses: list[float], start: float | None = None) -> list[bool]:
    detector = SpikeDetector(GUESS, start)
    return [detector.has_diverged(loss) for loss in losses]


def test_a_model_diverges_if_it_is_worse_than_a_guess_for_many_steps() -> None:
    assert diverged([3.0] + [LOST] * SPIKE_STEPS) == [False] * SPIKE_STEPS + [True]
    assert diverged([LOST] * SPIKE_STEPS, start=3.0)[-1], "also after resuming with a good loss"


@pytest.mark.parametrize(
    "losses",
    [
        [LOST] * 1000,  # bad from the start: nothing was learned that could be lost
        ([3.0] + [LOST] * (SPIKE_STEPS - 1)) * 10,  # spikes that training recovers from
        [3.0] + [GUESS + 0.9 * SPIKE_NATS] * 1000,  # no better than a guess, but no worse
        [3.0] + [5.0] * 1000,  # worse than it was, which a warm-up may do
    ],
)
def test_other_losses_are_no_divergence(losses: list[float]) -> None:
    assert not any(diverged(losses))


def test_a_run_is_not_healthy_during_a_spike() -> None:
    detector = SpikeDetector(GUESS, 3.0)
    assert detector.is_healthy
    detector.has_diverged(LOST)
    assert not detector.is_healthy
    detector.has_diverged(3.0)
    assert detector.is_healthy
