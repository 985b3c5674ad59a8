"""The one correction of a run, and what its record says of the plan."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import settle
from budget.clock import Limits, Pace, StepCost
from budget.flops import flops_per_token
from budget.laws import LAWS
from budget.planner import Plan, Request, assumed_speed, choose, make_plan
from budget.rules import GIVEN_STEPS, STEP_RULES, batch_for, learning_rate_for
from config import Config
from data.shards import Split
from errors import UserError
from model.optim import configure_optimizers
from model.shape import PRESETS, Shape
from plan import Text, first_request
from run.checkpoint import TrainingState
from run.console import Console
from run.machine import Machine
from sealed import seal
from settle import apply_correction, correct, interruptions_s, saved_plan, settle_plan, why_off
from tests.conftest import command, folder_of, train
from tests.test_train import points, result_of

# The batch and the rates are free, and the assumed speed is far from true: 100 % of a peak many times the real one.
WRONG = (
    "optim.batch_tokens=null", "optim.learning_rate=null", "optim.weight_decay=null", "mfu=1.0",
    "device.peak_flops=1e12", "budget.hours=0.005", "eval.every=0", "samples.prompts=[]",
)  # fmt: skip


def test_a_wrong_plan_is_corrected_once_also_across_a_resume(place: Path) -> None:
    with subprocess.Popen(command(place, *WRONG, name="wrong"), cwd=place, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = list((place / "outputs").glob("wrong-*/log.txt"))
            if found and "corrected:" in found[0].read_text():
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait()
    train(place, *WRONG, name="wrong")
    folder, result = folder_of(place, "wrong"), result_of(place, "wrong")
    assert (folder / "log.txt").read_text().count("corrected:") == 1
    plan, correction, spent = (
        json.loads((folder / "plan.json").read_text()),
        result["plan"]["correction"],
        result["spent"],
    )
    assert result["plan"]["predicted_tokens"] == plan["tokens"] > 10 * spent["tokens"]
    assert correction["tokens"] < plan["tokens"] / 5
    # The rules' answers for the tokens that there really are, not for those of the plan.
    assert correction["batch_tokens"] == batch_for(
        correction["tokens"],
        6 * plan["parameters_law"] * correction["tokens"],
        plan["block_size"],
        STEP_RULES[plan["optimizer"]],
    )
    assert correction["batch_tokens"] < plan["batch_tokens"]
    assert correction["trained"] == correction["step"] * plan["batch_tokens"]
    later = spent["steps"] - correction["step"]
    assert spent["tokens"] == correction["trained"] + later * correction["batch_tokens"]
    assert max(p["learning_rate"] for p in points(folder)) == pytest.approx(correction["learning_rate"], rel=0.1)
    assert "that were assumed" in result["plan"]["why_off"][0]


HOUR = Limits(hours=1.0)
TEMPLATE = Shape(1, 1, 64, 256, 4096, **PRESETS["modern"])


def hours_plan(limits: Limits = HOUR, flops_per_second: float = 1e13, optimizer: str | None = None) -> Plan:
    law = LAWS["chinchilla-table3"]
    request = Request(limits, TEMPLATE, law, flops_per_second=flops_per_second, overhead_s=100.0, optimizer=optimizer)
    return make_plan(request, speed_source="measured")


def test_a_plan_outlives_a_ledger_that_was_lost(tmp_path: Path) -> None:
    """Another plan might choose another shape, which no checkpoint of the run would fit."""
    plan = hours_plan()
    said = list[str]()
    run = SimpleNamespace(plan=tmp_path / "plan.json", plan_copy=tmp_path / "copy.json")
    session = SimpleNamespace(run=run, console=SimpleNamespace(warn=said.append))
    assert saved_plan(cast(Any, session)) is None
    run.plan.write_text(json.dumps(plan.to_dict()))
    assert saved_plan(cast(Any, session)) == plan
    run.plan_copy.write_text(json.dumps(seal(plan.to_dict())))
    run.plan.write_text(run.plan_copy.read_text().replace('"n_layer": ', '"n_layer": 1'))
    assert saved_plan(cast(Any, session)) == plan
    assert len(said) == 1
    assert str(run.plan) in said[0]


def test_a_plan_of_before_blocks_leaves_the_block_as_it_was_asked_for() -> None:
    plan = hours_plan().to_dict()
    template = Shape(1, 1, 64, 256, 4096, **PRESETS["llama"])
    assert Plan.from_dict(plan).sized(template).activation == "relu2"
    del plan["block"]
    assert Plan.from_dict(plan).sized(template).activation == "swiglu"


def test_a_run_that_moved_to_another_machine_is_corrected_again() -> None:
    """Once a tenth of what was left is done, with the speed that the new machine has."""
    plan = hours_plan()
    moved, said = corrected(plan, 0.4, progress=0.56, moved_at=0.5, resumed=True)
    assert moved.plan.tokens < plan.tokens
    assert moved.state.moved_at is None
    assert len(said) == 1
    early, _ = corrected(plan, 0.4, progress=0.54, moved_at=0.5, resumed=True)
    assert early.state.correction is None
    before = {"changed": True, "batch_tokens": 64}
    alike, said = corrected(plan, 1.01, moved_at=0.01, resumed=True, correction=before)
    assert (alike.state.correction, said) == (before, []), (
        "as fast as the machine before: what was corrected there stays"
    )


def test_a_step_back_to_before_the_correction_takes_it_back() -> None:
    plan = hours_plan()
    trainer, _ = corrected(plan, 0.5)
    assert trainer.plan != plan
    trainer.state = TrainingState()
    session = SimpleNamespace(config=Config(), clock=Clock(Limits(hours=1.0), 1.0))
    session.clock.pace.add(1.0)
    apply_correction(cast(Any, session), cast(Any, trainer))
    assert trainer.plan == plan
    assert trainer.cost.tokens == plan.batch_tokens
    assert trainer.optimizer.param_groups[0]["weight_decay"] == plan.weight_decay


class Clock:
    """As much of BudgetClock as the correction looks at."""

    def __init__(self, limits: Limits, training_s: float, progress: float = 0.11, resumed: bool = False) -> None:
        self.limits, self.progress, self.reserve_s, self.earlier_s = limits, progress, 3.0, 1.0 if resumed else 0.0
        self.pace = Pace()
        self._training_s = training_s

    def training_s(self) -> float:
        return self._training_s

    def tokens_per_second(self, cost: StepCost) -> float:
        return cost.tokens / self.pace.typical

    def seconds_left(self) -> float:
        return (1 - self.progress) * (self.limits.seconds or 0.0)


def corrected(plan: Plan, speed: float, tightest: str = "hours", **changes: Any) -> tuple[SimpleNamespace, list[str]]:
    """The trainer after `correct`, called when 11 % of an hour are spent, at `speed` times the planned tokens per second."""
    config, said = Config(), list[str]()
    for name, value in changes.pop("knobs", {}).items():
        setattr(config.optim, name, value)
    assert plan.tokens_per_second is not None
    step = int(0.11 * plan.steps)
    rate = speed * plan.tokens_per_second
    limits, progress = changes.pop("limits", Limits(hours=1.0)), changes.pop("progress", 0.11)
    clock = Clock(limits, step * plan.batch_tokens / rate + changes.pop("lost_s", 0.0), progress,
                  changes.pop("resumed", False))  # fmt: skip
    clock.pace.add(plan.batch_tokens / rate)
    shape = plan.sized(TEMPLATE)
    model = torch.nn.Linear(2, 2)
    optimizer = configure_optimizers(model, 1e-3, plan.weight_decay, (0.9, 0.95), "cpu")
    tokens = np.zeros(10_000, dtype=np.uint16)
    split = Split("train", [tokens], [np.zeros(1, int)], [np.zeros(1, int)], ["x"])
    trainer = SimpleNamespace(
        plan=plan, shape=shape, optimizer=optimizer, corpus=SimpleNamespace(train=split), micro_batch=8, loader=None,
        planned=plan,
        cost=StepCost(plan.batch_tokens, 1.0),
        state=TrainingState(
            step,
            step * plan.batch_tokens,
            correction=changes.pop("correction", None),
            moved_at=changes.pop("moved_at", None),
            setback=changes.pop("setback", None),
        ),
        interim=SimpleNamespace(n_windows=10), window_s=0.0, save_s=0.0, report_s=0.0, **changes,
    )  # fmt: skip
    session = SimpleNamespace(config=config, clock=clock, console=SimpleNamespace(say=said.append))
    correct(cast(Any, session), cast(Any, trainer), tightest)
    return trainer, said


@pytest.mark.parametrize("speed", [0.94, 1.03])
def test_a_little_off_nothing_changes_but_the_matter_is_settled(speed: float) -> None:
    plan = hours_plan()
    trainer, said = corrected(plan, speed)
    assert (trainer.plan, trainer.loader, said) == (plan, None, [])
    assert trainer.state.correction["changed"] is False


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_another_speed_brings_the_rules_answers_for_the_tokens_there_will_be(speed: float, resumed: bool) -> None:
    plan = hours_plan()
    trainer, said = corrected(plan, speed, resumed=resumed)
    later, shape = trainer.plan, plan.sized(TEMPLATE)
    assert plan.tokens_per_second is not None
    left_s = 0.89 * 3600 - 3.0  # the reserve
    assert later.tokens == pytest.approx(0.11 * plan.tokens + left_s * speed * plan.tokens_per_second, rel=0.001)
    assert later.batch_tokens == batch_for(
        later.tokens, 6 * plan.parameters_law * later.tokens, plan.block_size, STEP_RULES[plan.optimizer]
    )
    assert later.learning_rate == learning_rate_for(shape, later.tokens, later.batch_tokens, later.optimizer)
    assert later.weight_decay == trainer.optimizer.param_groups[0]["weight_decay"]
    assert trainer.optimizer.param_groups[1]["weight_decay"] == 0
    assert trainer.cost.tokens == later.batch_tokens
    assert (later.n_layer, later.n_embd, later.warmup) == (plan.n_layer, plan.n_embd, plan.warmup)
    assert len(said) == 1


def test_a_run_that_has_gone_back_is_corrected_by_its_recent_steps() -> None:
    """The seconds of the steps that it lost bought tokens that are no longer counted."""
    plan = hours_plan()
    assert plan.tokens_per_second is not None
    lost_s = 0.1 * plan.tokens / plan.tokens_per_second
    trainer, said = corrected(plan, 1.0, setback={"step": 9}, lost_s=lost_s)
    assert (trainer.plan, said) == (plan, [])
    assert corrected(plan, 1.0, lost_s=lost_s)[0].plan.tokens < plan.tokens


def test_the_batch_of_given_steps_is_corrected_by_the_plans_own_rule() -> None:
    """Where steps are given, a smaller batch would leave hours unspent."""
    limits = Limits(hours=1.0, steps=2000)
    plan = hours_plan(limits, flops_per_second=6e8, optimizer="adamw")
    assert plan.batch_tokens > batch_for(
        plan.tokens, 6 * plan.parameters_law * plan.tokens, plan.block_size, STEP_RULES[plan.optimizer]
    )
    trainer, _ = corrected(plan, 0.8, limits=limits)
    later = trainer.plan
    rule = (later.tokens, 6 * plan.parameters_law * later.tokens, plan.block_size)
    assert later.batch_tokens == batch_for(*rule, GIVEN_STEPS) > batch_for(*rule, STEP_RULES[plan.optimizer])


def test_what_the_user_fixed_is_not_corrected() -> None:
    plan = hours_plan()
    fixed = {"batch_tokens": plan.batch_tokens, "learning_rate": 0.123, "weight_decay": 0.05}
    trainer, _ = corrected(replace(plan, learning_rate=0.123, weight_decay=0.05), 0.25, knobs=fixed)
    assert {name: getattr(trainer.plan, name) for name in fixed} == fixed
    assert trainer.plan.tokens < 0.5 * plan.tokens


def test_a_compiled_model_keeps_its_micro_batch() -> None:
    plan = hours_plan()
    eager, _ = corrected(plan, 0.1)
    assert eager.plan.batch_tokens < plan.batch_tokens
    sequences = plan.batch_tokens // plan.block_size
    compiled, _ = corrected(replace(plan, compiled=True, micro_batch=sequences), 0.1)
    compiled_large, _ = corrected(replace(plan, compiled=True), 0.1)
    assert compiled_large.plan.batch_tokens % (8 * plan.block_size) == 0
    assert compiled.plan.batch_tokens % (8 * plan.block_size) == 0


def test_what_is_still_to_come_besides_steps_is_taken_off() -> None:
    session = SimpleNamespace(clock=Clock(Limits(hours=1.0), 1.0), config=Config())
    session.config.eval.every = 0.1
    trainer = SimpleNamespace(interim=SimpleNamespace(n_windows=10), window_s=0.5, save_s=0.5, report_s=2.0)
    # Eight evaluations of 5 s, the report, the reserve of 3 s, and a save a minute or less often.
    assert 45 <= interruptions_s(cast(Any, session), cast(Any, trainer)) <= 45 + 0.89 * 60 * 0.5
    session.clock.limits = Limits(hours=1.0, counts="training")
    assert interruptions_s(cast(Any, session), cast(Any, trainer)) == 0


def test_another_limit_settles_it_and_too_early_does_not() -> None:
    plan = hours_plan()
    trainer, _ = corrected(plan, 0.2, tightest="tokens")
    assert trainer.state.correction["changed"] is False
    early, _ = corrected(plan, 0.2, progress=0.09)
    assert early.state.correction is None
    steps, _ = corrected(plan, 0.2, tightest="steps", limits=Limits(steps=100))
    assert steps.state.correction is None


LEDGER = {"setup": 6.0, "compile": 0.0, "data": 1.0, "train": 3000.0, "eval": 590.0, "checkpoint": 3.0, "idle": 0.0}


@pytest.mark.parametrize(
    ("speed", "training_s", "rates", "said"),
    [
        (1.03, 3500, [1.0] * 5, []),
        (0.8, 3500, [0.8] * 10, ["that were measured (-20%)"]),
        (1.0, 3000, [1.0] * 10, ["setup 6.0 s, eval 590.0 s, checkpoint 3.0 s", "s were planned"]),
        (0.7, 3500, [1.0, 1.0, 0.8, 0.7, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5], ["(-30%)", "tokens/s (-50%)"]),
        (0.8, 3500, [1.0] * 10, ["700.0 s of training were slower than usual, or lost to a kill"]),
    ],
)
def test_the_record_says_why_tokens_were_off(
    speed: float, training_s: float, rates: list[float], said: list[str]
) -> None:
    plan = hours_plan()
    assert plan.tokens_per_second is not None
    spent = {"tokens": speed * plan.tokens_per_second * training_s, "training_hours": training_s / 3600}
    logged = [rate * plan.tokens_per_second for rate in rates]
    reasons = why_off(plan, spent, LEDGER, Limits(hours=1.0), logged)
    assert bool(reasons) == bool(said)
    assert all(part in " ".join(reasons) for part in said)


def test_added_hours_are_a_reason_of_their_own() -> None:
    plan = hours_plan()
    assert plan.hours is not None
    spent = {"tokens": 2 * plan.tokens, "training_hours": 2 * plan.hours}
    reasons = why_off(plan, spent, LEDGER, Limits(hours=1.0, extend_hours=1.0), [plan.tokens_per_second or 0.0] * 10)
    assert reasons == ["1 hours were added to the budget"]


def test_the_first_guess_on_a_cpu_knows_that_thin_models_are_slower() -> None:
    """bench/results/engine.json and trials had 0.3 of the peak at a width of 64 and near half of it at 128: with one share for
    all, the shapes that were tried first, and at times alone, were too thin."""
    config = Config()
    config.budget.hours = 1 / 12
    text = Text(4096, "bpe-4096", 50_000_000, None)

    def guess(kind: str, mfu: float | None = None) -> Request:
        config.mfu = mfu
        return first_request(config, text, Machine(torch.device(kind), "", "float32", 2, 3.6e11, "measured"), 10.0)

    request = guess("cpu")
    thin, wide = (replace(request.template, n_layer=1, n_embd=width) for width in (64, 128))
    shares = [(assumed_speed(request, each) or 0.0) * flops_per_token(each) / 3.6e11 for each in (thin, wide)]
    assert shares == pytest.approx([0.31, 0.45], abs=0.03)
    assert choose(request).shape.n_embd == 128
    assert guess("cpu", mfu=0.2).flops_per_second == guess("cuda", mfu=0.2).flops_per_second == 0.2 * 3.6e11
    assert guess("cpu", mfu=0.2).half_width == 0


def test_memory_is_counted_without_what_trials_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    plan = hours_plan()

    def free_memory() -> int:
        assert ended
        return 1 << 20

    monkeypatch.setattr(settle, "first_request", lambda *given: SimpleNamespace(template=SimpleNamespace(block_size=8)))
    monkeypatch.setattr(settle, "plan_here", lambda *given: plan)
    tokens, zero = np.zeros(100, dtype=np.uint16), np.zeros(1, dtype=np.int64)
    tokenizer = SimpleNamespace(n_vocab=4096, name="bytes")
    corpus = SimpleNamespace(train=Split("train", [tokens], [zero], [zero], ["x"]), tokenizer=tokenizer, fingerprint="")
    clock = SimpleNamespace(limits=Limits(flops=1e15))
    session = SimpleNamespace(clock=clock, config=Config(), console=Console())
    trials = SimpleNamespace(close=lambda: ended.append(True))
    with pytest.raises(UserError, match="GiB to train"):
        settle_plan(
            cast(Any, session),
            cast(Any, corpus),
            cast(Any, SimpleNamespace(free_memory=free_memory)),
            cast(Any, trials),
        )
