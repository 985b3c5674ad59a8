"""docs/performance.md matches the files in bench/results/."""

from __future__ import annotations

import pytest

from bench.docs.performance_page import DOC, read_results, text
from bench.peers.against import time_to_loss


def test_the_performance_page_matches_the_results() -> None:
    assert DOC.read_text() == text(read_results()), "run python -m bench.docs.performance_page"


def test_every_result_has_its_command() -> None:
    assert all(result["how"] for result in read_results().values())


def test_time_to_loss_is_interpolated_between_two_budgets() -> None:
    points = [{"seconds": 300.0, "loss": 3.7}, {"seconds": 100.0, "loss": 4.0}, {"seconds": 75.0, "loss": 4.1}]
    assert time_to_loss(4.0, 300.0, points) == pytest.approx(3.0)
    found = time_to_loss(4.05, 300.0, points)
    assert found is not None
    assert 3.0 < found < 4.0
    assert time_to_loss(4.2, 300.0, points) == 4.0, "a lower bound if all runs were better"
    assert time_to_loss(3.6, 300.0, points) is None
