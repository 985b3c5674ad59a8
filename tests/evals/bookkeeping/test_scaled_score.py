"""Tests of scores per parameter, and of scores adjusted by size, against published ones."""

from __future__ import annotations

import pytest

from evals.bookkeeping.scaled_score import scaled_gain, scaled_score, size_adjusted

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


def test_size_adjusted_scores_are_those_published() -> None:
    """Zindi's examples, and the scores of its forum's three models on their public scores."""
    assert size_adjusted(0.5, 400_000_000, 0.4e9) == pytest.approx(0.25)
    assert size_adjusted(0.4, 200_000_000, 0.4e9) == pytest.approx(0.3)
    for score, parameters, published in (
        (0.4965, 50_480_128, 0.4668),
        (0.5211, 105_493_504, 0.4559),
        (0.5326, 42_087_424, 0.5061),
    ):
        assert size_adjusted(score, parameters, 421_939_200) == pytest.approx(published, abs=1e-4)
    assert size_adjusted(None, 1, 1.0) is None
