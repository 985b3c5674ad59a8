"""Tests of docs/benchmarks.md."""

from __future__ import annotations

from bench.docs.benchmarks_page import DOC, outcome, text
from bench.docs.performance_page import read_results


def test_the_page_matches_the_results() -> None:
    assert DOC.read_text() == text(read_results()), "run python -m bench.docs.benchmarks_page"


def test_a_score_is_bold_if_it_beats_the_untrained_model_and_guessing() -> None:
    task = {"score": 0.561, "interval": [0.55, 0.57], "chance": 0.5, "delta": 0.094, "delta_interval": [0.088, 0.099]}
    assert outcome(task) == "**56.1 (+9.4, +8.8 to +9.9)**"
    assert outcome(task | {"delta_interval": [-0.001, 0.099]}) == "56.1 (+9.4, -0.1 to +9.9)"
    assert outcome(task | {"chance": 0.56}) == "56.1 (+9.4, +8.8 to +9.9)"
