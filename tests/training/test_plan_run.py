"""The plan of a run, and the reasons in its record for a different number of tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import training.plan_run
from budget.clock import Limits
from budget.extension import Extension
from budget.flops import flops_per_token
from budget.laws.published import LAWS
from budget.planner.plan import Plan, Request
from budget.planner.planner import assumed_speed, choose, make_plan
from common.checksum import add_checksum
from common.errors import UserError
from config import Config, DataConfig
from data.shards import Split
from device.device import Device
from device.distributed import World
from model.config import PRESETS, Shape
from run.report.console import Console
from training.corpus_text import Text
from training.plan_run import first_request, make_run_plan, saved_plan, size_problems
from training.result import why_off

HOUR = Limits(hours=1.0)
TEMPLATE = Shape(1, 1, 64, 256, 4096, **PRESETS["modern"])


def hours_plan() -> Plan:
    law = LAWS["chinchilla-table3"]
    request = Request(HOUR, TEMPLATE, law, flops_per_second=1e13, overhead_s=100.0)
    return make_plan(request, speed_source="measured")


def test_the_saved_plan_or_its_copy_is_used_again(tmp_path: Path) -> None:
    """A new plan might choose another shape, which the checkpoints would not fit."""
    plan = hours_plan()
    warnings = list[str]()
    run = SimpleNamespace(plan=tmp_path / "plan.json", plan_copy=tmp_path / "copy.json")
    session = SimpleNamespace(run=run, console=SimpleNamespace(warn=warnings.append))
    assert saved_plan(cast(Any, session)) is None
    run.plan.write_text(json.dumps(plan.to_dict()))
    assert saved_plan(cast(Any, session)) == plan
    run.plan_copy.write_text(json.dumps(add_checksum(plan.to_dict())))
    run.plan.write_text(run.plan_copy.read_text().replace('"n_layer": ', '"n_layer": 1'))
    assert saved_plan(cast(Any, session)) == plan
    assert len(warnings) == 1
    assert str(run.plan) in warnings[0]


def test_a_plan_without_a_block_keeps_the_block_of_the_configuration() -> None:
    plan = hours_plan().to_dict()
    template = Shape(1, 1, 64, 256, 4096, **PRESETS["llama"])
    assert Plan.from_dict(plan).sized(template).activation == "relu2"
    del plan["block"]
    assert Plan.from_dict(plan).sized(template).activation == "swiglu"


LEDGER = {"setup": 6.0, "compile": 0.0, "data": 1.0, "train": 3000.0, "eval": 590.0, "checkpoint": 3.0, "idle": 0.0}


@pytest.mark.parametrize(
    ("speed", "training_s", "rates", "parts"),
    [
        (1.03, 3500, [1.0] * 5, []),
        (0.8, 3500, [0.8] * 10, ["that were measured (-20%)"]),
        (1.0, 3000, [1.0] * 10, ["setup 6.0 s, eval 590.0 s, checkpoint 3.0 s", "s were planned"]),
        (0.7, 3500, [1.0, 1.0, 0.8, 0.7, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5], ["(-30%)", "tokens/s (-50%)"]),
        (0.8, 3500, [1.0] * 10, ["700.0 s of training were slower than usual, or repeated"]),
    ],
)
def test_why_off_explains_the_difference_in_tokens(
    speed: float, training_s: float, rates: list[float], parts: list[str]
) -> None:
    plan = hours_plan()
    assert plan.tokens_per_second is not None
    spent = {"tokens": speed * plan.tokens_per_second * training_s, "training_hours": training_s / 3600}
    logged = [rate * plan.tokens_per_second for rate in rates]
    reasons = why_off(plan, spent, LEDGER, Limits(hours=1.0), logged)
    assert bool(reasons) == bool(parts)
    assert all(part in " ".join(reasons) for part in parts)


def test_added_hours_are_a_separate_reason() -> None:
    plan = hours_plan()
    assert plan.hours is not None
    spent = {"tokens": 2 * plan.tokens, "training_hours": 2 * plan.hours}
    reasons = why_off(
        plan, spent, LEDGER, Limits(hours=2.0, added=Extension(hours=1.0)), [plan.tokens_per_second or 0.0] * 10
    )
    assert reasons == ["1h00m were added to the budget"]


def test_the_assumed_speed_on_a_cpu_is_lower_for_thin_models() -> None:
    """bench/results/engine.json has 0.3 of the peak at a width of 64 and nearly half at 128. With one share for all,
    the shapes that were tried first, and at times alone, were too thin."""
    config = Config()
    config.budget.hours = 1 / 12
    text = Text(4096, "bpe-4096", 50_000_000, None)

    def guess(kind: str, mfu: float | None = None) -> Request:
        config.mfu = mfu
        return first_request(config, text, Device(torch.device(kind), "", "float32", 2, 3.6e11, "measured"), 10.0)

    request = guess("cpu")
    thin, wide = (replace(request.template, n_layer=1, n_embd=width) for width in (64, 128))
    shares = [(assumed_speed(request, each) or 0.0) * flops_per_token(each) / 3.6e11 for each in (thin, wide)]
    assert shares == pytest.approx([0.31, 0.45], abs=0.03)
    assert choose(request).shape.n_embd == 128
    assert guess("cpu", mfu=0.2).flops_per_second == guess("cuda", mfu=0.2).flops_per_second == 0.2 * 3.6e11
    assert guess("cpu", mfu=0.2).half_width == 0


def test_free_memory_is_read_after_the_trial_worker_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    plan = hours_plan()

    def free_memory() -> int:
        assert ended
        return 1 << 20

    monkeypatch.setattr(
        training.plan_run, "first_request", lambda *given: SimpleNamespace(template=SimpleNamespace(block_size=8))
    )
    monkeypatch.setattr(training.plan_run, "plan_here", lambda *given: plan)
    tokens, zero = np.zeros(100, dtype=np.uint16), np.zeros(1, dtype=np.int64)
    tokenizer = SimpleNamespace(n_vocab=4096, name="bytes")
    corpus = SimpleNamespace(train=Split("train", [tokens], [zero], [zero], ["x"]), tokenizer=tokenizer, fingerprint="")
    clock = SimpleNamespace(limits=Limits(flops=1e15))
    session = SimpleNamespace(clock=clock, config=Config(), console=Console(), world=World())
    trials = SimpleNamespace(close=lambda: ended.append(True))
    with pytest.raises(UserError, match="GiB to train"):
        make_run_plan(
            cast(Any, session),
            cast(Any, corpus),
            cast(Any, SimpleNamespace(free_memory=free_memory)),
            cast(Any, trials),
        )


def test_a_tokenizer_that_cannot_be_had_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def own_tokenizer(name: str) -> None:
        raise UserError(f"data.tokenizer={name}: no network")

    monkeypatch.setattr("data.tokenizers.tokenizer.own_tokenizer", own_tokenizer)
    (line,) = size_problems(Config(data=DataConfig(tokenizer="a/b")), None, None)
    assert line.endswith("set model.vocab_size (data.tokenizer=a/b: no network)")
