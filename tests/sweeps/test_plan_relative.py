"""Values at or around a plan for the sweeps in sweeps/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from common.errors import UserError
from config import Config
from model.config import PLAIN, PRESETS
from sweeps.engine.job import make_job
from sweeps.engine.plan_relative import FIXED, VALUES, isoflop_sizes, width_depth

SMALL: dict[str, Any] = {
    "n_layer": 2,
    "n_embd": 128,
    "parameters_law": 918e3,
    "flops": 7e12,
    "tokens": 1.2e6,
    "learning_rate": 0.01,
    "batch_tokens": 1024,
    "block_size": 64,
    "bigram_rows": 262144,
    "block": PLAIN,
    "optimizer": "muon",
}
LARGE: dict[str, Any] = {
    "n_layer": 14,
    "n_embd": 896,
    "parameters_law": 180e6,
    "flops": 1e18,
    "tokens": 1e9,
    "learning_rate": 1e-3,
    "batch_tokens": 131072,
    "block_size": 512,
    "bigram_rows": 0,
    "optimizer": "adamw",
    "block": {name: PRESETS["modern"][name] for name in PLAIN},
}


def test_large_plans_use_the_published_values() -> None:
    assert VALUES["depths"](LARGE) == ["8", "12", "18", "24"]
    assert VALUES["baseline_depths"](LARGE) == ["24", "18"]
    assert VALUES["depths_width"](LARGE) == ["768"]
    assert VALUES["baseline_batch"](LARGE) == [str(66 * 512)]
    assert VALUES["baseline_block"](LARGE) == ["512"]


def test_small_plans_use_values_around_the_plan() -> None:
    assert VALUES["depths"](SMALL) == ["1", "2", "3", "4"]
    assert VALUES["depths_width"](SMALL) == ["128"]
    assert VALUES["learning_rates"](SMALL) == ["0.0025", "0.005", "0.01", "0.02", "0.04"]
    assert VALUES["batches"](SMALL) == ["256", "512", "1024", "2048", "4096"]
    assert VALUES["baseline_batch"](SMALL) == ["1024"]


def test_the_slowest_job_can_afford_the_evaluated_tokens() -> None:
    assert VALUES["eval_tokens"](SMALL) == ["32768"]
    assert VALUES["eval_tokens"](LARGE) == ["262144"]
    assert VALUES["eval_tokens"](SMALL | {"tokens": 1e4}) == ["4096"]


@pytest.mark.parametrize("plan", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", VALUES)
def test_values_differ_and_swept_names_have_several(name: str, plan: dict[str, Any]) -> None:
    values = VALUES[name](plan)
    assert len(set(values)) == len(values)
    assert (len(values) == 1) == (name in FIXED or name.endswith("_widths"))


@pytest.mark.parametrize("plan", [SMALL, LARGE, SMALL | {"n_layer": 1, "n_embd": 64}], ids=["small", "large", "least"])
def test_wide_and_deep_shapes_have_nearly_the_same_size(plan: dict[str, Any]) -> None:
    """All have 12 n_layer n_embd^2 within 15 % of the same value, as in the competition."""
    sizes = [tuple(map(int, value.split("x"))) for value in width_depth(plan)]
    blocks = [layers * width**2 for layers, width in sizes]
    assert max(blocks) / min(blocks) < 1.36
    assert len(sizes) >= 3


@pytest.mark.parametrize("plan", [SMALL, LARGE], ids=["small", "large"])
def test_isoflop_sizes_centre_on_the_plan(plan: dict[str, Any]) -> None:
    sizes = [tuple(map(int, value.split("x"))) for value in isoflop_sizes(plan)]
    ratios = [layers * width**2 / (plan["n_layer"] * plan["n_embd"] ** 2) for layers, width in sizes]
    assert ratios == pytest.approx([0.25, 0.5, 1, 2, 4], rel=0.51)
    assert 1 in ratios
    assert len({layers for layers, _ in sizes}) == 5


@pytest.mark.parametrize("plan", [SMALL, LARGE, SMALL | {"n_layer": 1, "n_embd": 64}], ids=["small", "large", "least"])
@pytest.mark.parametrize(("sweep", "shapes"), [("isoflop", isoflop_sizes), ("width_depth", width_depth)])
def test_each_depth_of_a_sweep_resolves_to_its_width(plan: dict[str, Any], sweep: str, shapes: Any) -> None:
    from sweeps.engine.hydra_callback import width_of

    (text,) = VALUES[f"{sweep}_widths"](plan)
    listed = text.removeprefix("${width_of:").removesuffix("}").split(",")
    found = []
    for depth in VALUES[f"{sweep}_layers"](plan):
        root = OmegaConf.create({"model": {"n_layer": int(depth)}})
        found.append(f"{depth}x{width_of(*listed, _root_=root)}")
    assert found == shapes(plan)
    with pytest.raises(UserError, match="is not a depth of this sweep"):
        width_of(*listed, _root_=OmegaConf.create({"model": {"n_layer": 63}}))


def test_all_runs_of_the_isoflop_sweep_have_one_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their budgets may lie on both sides of a threshold where plans change block size, bigram rows or block."""
    from sweeps.engine import hydra_callback as record
    from sweeps.engine import wandb_agent

    monkeypatch.setattr(record, "make_plan", lambda yaml: SMALL)
    params = wandb_agent.compose_sweep("isoflop", ["budget.hours=0.05"])["hydra"]["sweeper"]["params"]
    assert len(params["budget.flops"].split(",")) == 3
    given = {key.removeprefix("model."): str(value) for key, value in params.items() if key.startswith("model.")}
    del given["n_layer"], given["n_embd"]
    assert given == {"block_size": "64", "bigram_rows": "262144"} | {name: str(value) for name, value in PLAIN.items()}


def test_overrides_show_the_resolved_width(tmp_path: Path) -> None:
    config = Config()
    config.model.n_layer, config.model.n_embd, config.output_dir = 2, 128, str(tmp_path)
    for text in ("${width_of:1x64,2x128}", "$\\{width_of\\:1x64\\,2x128\\}"):
        job = make_job(config, 0, ["model.n_layer=2", f"model.n_embd={text}"], str(tmp_path))
        assert job.overrides == ("model.n_layer=2", "model.n_embd=128")
