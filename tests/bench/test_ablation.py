"""bench.quality.ablation: the order of its runs and its statistics."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from bench.quality.ablation import differences, estimate_noise, rows_of, run_order, step_like_run, summary
from device.device import open_device
from model.config import PRESETS, Shape
from model.optim.settings import OptimSettings


def runs(seed: int = 0, luck: float = 0.0) -> list[dict[str, Any]]:
    """Synthetic runs in the order recipe, three rows, recipe, ... on a machine that gets slower.

    The loss falls by 0.3 nats per unit of ln tokens, and row N is N/10 nats worse than the recipe."""
    rows = ["modern" if at % 4 == 0 else f"modern without {at}" for at in range(9)]
    found = []
    for at, row in enumerate(rows):
        tokens = 1e6 * (0.98**at) * (1 + 0.1 * seed)
        own = 0.1 * at + luck if at % 4 else 0.0
        loss = 4.0 + 0.05 * seed - 0.3 * math.log(tokens / 1e6) + own
        found.append({"name": f"{row} {at}", "row": row, "seed": seed, "loss": loss, "tokens": round(tokens)})
    return found


def test_the_recipe_is_run_after_every_third_row() -> None:
    rows = rows_of(["model.n_layer=2"])
    order = list(run_order(rows, 0))
    assert len({name for name, _ in order}) == len(order), "each run has its own folder"
    assert {row for _, row in order} == set(rows)
    assert order != list(run_order(rows, 1)), "the order depends on the seed"
    kinds = [row in ("modern", "classic") for _, row in order]
    assert kinds[0]
    assert kinds[-1]
    assert all(any(kinds[at : at + 4]) for at in range(len(kinds)))


def test_a_slower_machine_does_not_change_the_differences() -> None:
    slope, found = differences(runs() + runs(seed=1), "modern")
    assert slope == pytest.approx(-0.3, abs=1e-5)
    assert {row: round(values[0], 4) for row, values in found.items()} == {
        f"modern without {at}": round(0.1 * at, 4) for at in range(9) if at % 4
    }


def test_the_step_time_counts_in_worse() -> None:
    table, slopes, _ = summary(runs(), {"modern without 1": 1.1, "modern without 2": 1.0})
    rows = {row["name"]: row for row in table}
    assert rows["modern without 1"]["worse"] == pytest.approx(0.1 + 0.3 * math.log(1.1), abs=1e-4)
    assert rows["modern without 2"]["worse"] == pytest.approx(0.2, abs=1e-4)
    assert rows["modern without 3"]["worse"] is None, "its step was not timed"
    assert slopes["classic"] == 0.0


def test_noise_is_robust_against_an_outlier() -> None:
    luck = random.Random(0)
    for runs_each in (2, 4):
        rows = {f"{row}": [row + luck.gauss(0, 0.02) for _ in range(runs_each)] for row in range(300)}
        assert estimate_noise(rows) == pytest.approx(0.02, rel=0.15)
        assert estimate_noise(rows | {"outlier": [0.0] * (runs_each - 1) + [9.0]}) == pytest.approx(0.02, rel=0.15)
    assert estimate_noise({"one": [1.0]}) is None


def test_the_difference_of_a_row_is_the_mean_of_its_runs() -> None:
    table, _, noise = summary(runs() + runs(seed=1, luck=0.1), {})
    assert next(row["per_token"] for row in table if row["name"] == "modern without 2") == pytest.approx(0.25, abs=1e-4)
    assert noise["classic"] is None


def test_a_failed_run_does_not_affect_the_others() -> None:
    broken = runs()
    del broken[4]["loss"], broken[5]["loss"]
    _, found = differences(broken, "modern")
    assert found["modern without 2"] == pytest.approx([0.2], abs=1e-4)
    assert "modern without 5" not in found


def test_a_step_has_the_shape_and_settings_of_the_run(tmp_path: Path) -> None:
    for layers in (1, 4):
        shape = Shape(layers, 1, 64, 64, 512, **PRESETS["modern"])
        folder = tmp_path / f"{layers}"
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps({"batch_tokens": 512, "optimizer": "muon"}))
        (folder / "model.json").write_text(json.dumps({"shape": shape.to_dict()}))
        (folder / "config.yaml").write_text(json.dumps({"optim": vars(OptimSettings(normuon=layers == 4))}))
    device = open_device("cpu", None, "float32", 1.0)
    steps = [step_like_run(tmp_path / layers, device) for layers in ("1", "4")]
    assert [step.shape.n_layer for step in steps] == [1, 4]
    groups = [step.optimizer.param_groups for step in steps]
    assert [next(group for group in each if group["role"] == "matrix")["normuon"] for each in groups] == [False, True]
