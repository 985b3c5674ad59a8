"""The benchmarks of parts and of plans: which runs they ask for, and what they make of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench.ablate import differences, order_of, rows_of, summary
from bench.tune import neighbours

# Nothing of any recipe, on a machine that gets slower and slower.
DRIFT = [4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6, 4.7, 4.8]


def runs(losses: list[float], seed: int = 0) -> list[dict[str, Any]]:
    """As many of `modern` and its rows as there are losses: the recipe, three rows, the recipe, ..."""
    rows = ["modern" if at % 4 == 0 else f"modern without {at}" for at in range(len(losses))]
    return [{"row": row, "seed": seed, "loss": loss, "tokens": 1} for row, loss in zip(rows, losses, strict=True)]


def test_every_row_lies_between_two_runs_of_its_recipe() -> None:
    rows = rows_of(["model.n_layer=2"])
    order = list(order_of(rows, 0))
    assert len({name for name, _ in order}) == len(order), "each run has a folder of its own"
    assert {row for _, row in order} == set(rows)
    assert order != list(order_of(rows, 1)), "another order with each seed"
    found = set(differences([{"row": row, "seed": 0, "loss": 4.0, "tokens": 1} for _, row in order]))
    assert found == set(rows) - {"modern", "classic"}


def test_a_machine_that_gets_slower_is_no_difference() -> None:
    assert [values[0] for values in differences(runs(DRIFT)).values()] == pytest.approx([-0.1, 0, 0.1, -0.1, 0, 0.1])


def test_noise_is_that_of_a_difference() -> None:
    later = [loss + (0.5 if at % 4 else 0.4) for at, loss in enumerate(DRIFT)]  # all rows 0.1 worse with this seed
    table, noise = summary(runs(DRIFT) + runs(later, seed=1))
    assert noise == pytest.approx(math.sqrt(2) * 0.05)
    assert next(row["worse"] for row in table if row["name"] == "modern without 2") == pytest.approx(0.05)


def test_a_run_that_failed_leaves_the_others() -> None:
    broken = runs(DRIFT)
    del broken[4]["loss"]
    assert differences(broken)["modern without 2"] == pytest.approx([4.2 - (4.0 + 4.8) / 2])


def test_neighbours_differ_from_the_plan_in_one_choice() -> None:
    plan = {
        "n_layer": 1,
        "n_embd": 64,
        "batch_tokens": 1024,
        "learning_rate": 0.01,
        "optimizer": "muon",
        "block_size": 64,
    }
    rows = neighbours(plan)
    planned = rows.pop("as planned")
    assert "model.size=1x64" in planned
    assert set(rows) == {
        "2 x 64",
        "1 x 128",
        "2 x 128",
        *(f"{w} x {f}" for w in ("batch", "learning rate") for f in (0.5, 2)),
    }
    assert all(len(set(row) - set(planned)) == 1 for row in rows.values())
    assert "optim.batch_tokens=512" in rows["batch x 0.5"]
