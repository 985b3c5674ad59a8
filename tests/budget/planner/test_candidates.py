"""Candidate shapes, also where the user fixed unusual or impossible sizes."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest

from budget.clock import Limits
from budget.laws.published import LAWS
from budget.planner.candidates import candidates, heads_for, least_memory
from budget.planner.plan import Request
from budget.planner.planner import make_plan
from common.errors import UserError
from model.config import LARGEST, PRESETS, Shape

MODERN = Shape(1, 1, 64, 512, 50304, **PRESETS["modern"])


def request(**changes: Any) -> Request:
    return replace(Request(Limits(flops=1e18), MODERN, LAWS["chinchilla-table3"]), **changes)


@pytest.mark.parametrize("width", range(2, 2050, 2))
def test_heads_of_an_even_width_have_an_even_width(width: int) -> None:
    assert width % heads_for(width) == 0
    assert width // heads_for(width) % 2 == 0


@pytest.mark.parametrize(
    "fixed",
    [
        {},
        {"n_layer": 24},
        {"n_head": 64},
        {"n_head": 101},
        {"n_head": 2048},
        {"n_layer": 9999, "n_head": 7},
        {"n_layer": 1000, "n_head": 7},
        *({"n_embd": width} for width in (96, 130, 200, 640, 1000)),
        {"n_layer": 3000},
    ],
)
def test_candidates_are_valid_whatever_the_user_fixes(fixed: dict[str, int]) -> None:
    found = candidates(request(**fixed))
    assert found
    for shape in found:
        assert shape.problems() == []
        assert {name: getattr(shape, name) for name in fixed} == fixed


def test_wide_aspect_bounds_still_plan_quickly() -> None:
    began = time.process_time()
    plan = make_plan(request(aspect=(0.1, 1e6)))
    assert time.process_time() - began < 10
    assert plan.n_layer <= LARGEST["n_layer"]


def test_the_usual_proportions_are_tried_layer_by_layer() -> None:
    widest = [shape.n_layer for shape in candidates(request()) if shape.n_embd == 8192]
    assert sorted(widest) == list(range(82, 205))


def test_the_grid_of_small_sizes_is_fine() -> None:
    """Every optimum has a candidate nearby, such as 1 x 128 between 4 x 64 and 2 x 128."""
    sizes = [shape.matmul_parameters() for shape in candidates(request(template=replace(MODERN, vocab_size=4096)))]
    small = [size for size in sizes if size < 10e6]
    assert all(larger < 1.6 * smaller for smaller, larger in itertools.pairwise(small))


def test_sizes_that_do_not_fit_into_the_memory_are_refused() -> None:
    memory = 16 * 2.0**30
    fits = make_plan(request(memory=memory))
    assert least_memory(fits.sized(MODERN)) <= memory
    with pytest.raises(UserError, match=r"at least .* GiB, the device has 16\.0 GiB"):
        make_plan(request(memory=memory, n_layer=48, n_embd=8192))
