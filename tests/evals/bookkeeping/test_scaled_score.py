"""Tests of scores per parameter against published ones."""

from __future__ import annotations

import pytest

from evals.bookkeeping.scaled_score import scaled_gain, scaled_score

# (score in percent, million parameters, published figure): RoBERTa, OPT, T5, GPT-2, Llama and BabyLlama on BLiMP and on its
# supplement, from "Small Models, Big Impact: The BabyLM Challenge" (Vaira and Chavales), slide "Scaled BLiMP".
PUBLISHED = [
    (69.5, 125, 0.55), (62.6, 125, 0.50), (58.8, 222, 0.26), (64.5, 705, 0.09), (62.8, 360, 0.17), (64.7, 58, 1.11),
    (47.5, 125, 0.38), (54.7, 125, 0.43), (43.9, 222, 0.19), (49.3, 705, 0.06), (48.2, 360, 0.13), (47.6, 58, 0.82),
]  # fmt: skip


@pytest.mark.parametrize(("percent", "millions", "published"), PUBLISHED)
def test_scaled_scores_are_those_published(percent: float, millions: int, published: float) -> None:
    assert scaled_score(percent / 100, millions * 1_000_000) == published


def test_truncation_is_that_of_decimal_numbers() -> None:
    assert scaled_score(0.58, 1_000_000) == 58.0
    assert scaled_score(0.29, 100_000_000) == 0.29
    assert scaled_score(0.58 - 2e-16, 1_000_000) == 58.0  # an average
    assert scaled_score(2 / 3, 1_000_000) == 66.66


def test_the_gain_is_what_exceeds_guessing() -> None:
    assert scaled_gain(0.695, 0.5, 125_000_000) == pytest.approx(19.5 / 125)
    assert scaled_gain(0.45, 0.5, 125_000_000) == pytest.approx(-5 / 125)
    guessing = scaled_score(0.5, 58_000_000)
    assert guessing > scaled_score(0.695, 125_000_000)
    assert scaled_gain(0.5, 0.5, 58_000_000) == 0
