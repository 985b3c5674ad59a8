"""bench.quality.plan_neighbours: the rows, resumed measurements and the fitted curve."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.peers.stint_run import run_folder_name
from bench.quality import plan_neighbours as tune
from bench.quality.plan_neighbours import curve, measured, rows_of
from budget.laws.published import LAWS, SMALL_CURVE
from device.device import Device
from model.config import PLAIN, PRESETS, Shape

PLAN: dict[str, Any] = {
    "n_layer": 4,
    "n_head": 2,
    "n_embd": 128,
    "batch_tokens": 1024,
    "learning_rate": 0.01,
    "vocab_size": 4096,
    "bigram_rows": 131072,
    "flops": 1e13,
    "optimizer": "muon",
    "block_size": 64,
}


def test_neighbours_differ_from_the_plan_in_one_choice() -> None:
    plan = PLAN | {"n_layer": 1, "n_head": 1, "n_embd": 64, "bigram_rows": 262144, "flops": 7e12}
    rows = {name: row.arguments() for name, row in rows_of(plan).items()}
    planned = rows.pop("as planned")
    assert {"model.n_layer=1", "model.n_embd=64"} <= set(planned)
    assert set(rows) == {
        "2 x 64",
        "1 x 128",
        "2 x 128",
        *("1 x 32", "1 x 48", "1 x 96"),
        *(f"{w} x {f}" for w in ("batch", "learning rate") for f in (0.5, 2)),
        "cosine",
        "no x0 shortcut",
        "plain block",
    }
    changed = {name: set(row) - set(planned) for name, row in rows.items()}
    block = {text for text in changed.pop("plain block") if text.startswith("model.")}
    assert {text.partition("=")[0] for text in block} == {f"model.{name}" for name in PLAIN}
    several = ("1 x 128", "2 x 128", "1 x 96", "1 x 32")  # these also change the bigram rows
    assert all(len(row) == 1 for name, row in changed.items() if name not in several)
    assert "model.bigram_rows=131072" in rows["1 x 128"], "by the rule for this width"
    assert "optim.batch_tokens=512" in rows["batch x 0.5"]


def test_a_planned_plain_block_is_compared_with_the_modern_one() -> None:
    rows = rows_of(PLAN | {"block": PLAIN})
    assert "plain block" not in rows
    assert "no x0 shortcut" not in rows, "it has none"
    planned, other = rows["as planned"].shape, rows["modern block"].shape
    assert (planned.norm, other.norm) == ("layernorm", "rmsnorm")
    assert replace(other, **PLAIN) == planned


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The plans and timings that were made, in order."""
    found: list[str] = []
    names = {row: name for name, row in rows_of(PLAN).items()}
    monkeypatch.setattr(tune, "plan_for", lambda *arguments: found.append("plan") or PLAN)

    def speed_of(row: tune.Row, planned: tune.Row, device: Device) -> float:
        found.append(names[row])
        return 1.0

    monkeypatch.setattr(tune, "speed_of", speed_of)
    return found


def test_a_second_call_reuses_plan_speeds_and_runs(tmp_path: Path, asked: list[str]) -> None:
    place = tmp_path / "10min"
    measured(place, 10.0, "corpus", 1, [0], ["2 x 128"])
    assert asked == ["plan", "as planned", "2 x 128"]
    (place / run_folder_name("2 x 128", 0) / "run").mkdir(parents=True)
    (place / run_folder_name("2 x 128", 0) / "run" / "result.json").write_text("{}")
    plan, rows, speeds = measured(place, 10.0, "corpus", 1, [0], ["cosine"])
    assert asked[3:] == ["cosine"]
    assert plan == PLAN
    assert set(rows) == set(speeds) == {"as planned", "2 x 128", "cosine"}


def test_incomparable_runs_are_refused(tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(SystemExit, match="1x128: the rows are as planned"):
        measured(tmp_path, 10.0, "corpus", 1, [0], ["1x128"])
    measured(tmp_path, 10.0, "corpus", 1, [0], ["cosine"])
    with pytest.raises(SystemExit, match=r"device\.threads=1, not 2"):
        measured(tmp_path, 10.0, "corpus", 2, [0], ["cosine"])


def test_the_fit_recovers_a_known_curve() -> None:
    """The fit recovers a known curve. Rows with another batch or rate are ignored, and each block has its own level."""
    law, runs = LAWS["chinchilla-table3"], []
    for name, tokens in (
        ("1 x 64", 1e7),
        ("2 x 128", 5e6),
        ("4 x 64", 2e7),
        ("2 x 192", 4e6),
        ("1 x 128", 1e6),
        ("2 x 64", 3e6),
    ):
        layers, width = (int(part) for part in name.split(" x "))
        size = Shape(layers, width // 64, width, 64, 4096, **PRESETS["modern"]).matmul_parameters()
        flops = 6 * size * tokens
        loss = math.exp(3.0 - 0.05 * math.log(flops) + 0.03 * math.log(size / (0.8 * law.parameters(flops))) ** 2)
        runs.append({"name": name, "size": name, "tokens": tokens, "loss": loss})
    runs.append({"name": "batch x 2", "size": "1 x 64", "tokens": 1e7, "loss": 9.0})
    plain = [run | {"loss": 0.98 * run["loss"]} for run in runs[3:]]
    for later, block in ((runs[3:], {}), (plain, PLAIN)):
        found = curve([{"planned": {}, "runs": runs[:3]}, {"planned": {"block": block}, "runs": later}])
        assert (found["slope"], found["curvature"], found["centre"]) == pytest.approx((0.05, 0.03, 0.8))
        assert found["rms"] < 1e-6
        assert found["runs"] == 6


def test_the_planner_uses_the_measured_curve() -> None:
    found = json.loads(tune.RESULT.read_text())["curve"]
    assert SMALL_CURVE[1:3] == pytest.approx((found["slope"], found["curvature"]), abs=0.001)
    assert SMALL_CURVE[3] == pytest.approx(found["centre"], abs=0.01)
    assert SMALL_CURVE[0] == pytest.approx(found["flops"][1], rel=0.3)
