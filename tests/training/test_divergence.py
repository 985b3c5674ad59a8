"""A lost model is told from a spike that training survives."""

from __future__ import annotations

import math

import pytest

from training.divergence import ABOVE, LASTING, Spike

GUESS = math.log(257)
LOST = GUESS + 2 * ABOVE


def lasts(losses: list[float], start: float | None = None) -> list[bool]:
    spike = Spike(GUESS, start)
    return [spike.has_diverged(loss) for loss in losses]


def test_worse_than_guessing_for_long_is_lost() -> None:
    assert lasts([3.0] + [LOST] * LASTING) == [False] * LASTING + [True]
    assert lasts([LOST] * LASTING, start=3.0)[-1], "also in a run that went on from a good loss"


@pytest.mark.parametrize(
    "losses",
    [
        [LOST] * 1000,  # a bad start is not a loss of what was learned
        ([3.0] + [LOST] * (LASTING - 1)) * 10,  # spikes that pass
        [3.0] + [GUESS + 0.9 * ABOVE] * 1000,  # no better than a guess, but no worse
        [3.0] + [5.0] * 1000,  # worse than it was, which a warm-up may do
    ],
)
def test_everything_else_goes_on(losses: list[float]) -> None:
    assert not any(lasts(losses))


def test_weights_of_a_spike_are_not_worth_keeping() -> None:
    spike = Spike(GUESS, 3.0)
    assert spike.is_healthy
    spike.has_diverged(LOST)
    assert not spike.is_healthy
    spike.has_diverged(3.0)
    assert spike.is_healthy
