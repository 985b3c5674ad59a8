"""What the training loop is handed: batches in pieces, and a model that is compiled where that pays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import training.compile
from budget.clock import BudgetClock, Limits
from budget.laws.published import LAWS
from budget.planner.plan import Plan, Request
from budget.planner.planner import make_plan
from config import Config
from data.batch import Batch
from device import device as module
from device.device import Device
from model import compile as compiled
from model.compile import compile_for_training
from model.config import PRESETS, Shape
from model.gpt import GPT
from model.optim.build import configure_optimizers
from training.compile import compile_model, how_to_compile, warm_up
from training.context import Session, Trainer
from training.micro_batching import equal_parts, micro_batches
from training.objectives import next_token
from training.step import TrainingStep

SHAPE = Shape(1, 2, 16, 8, 32, **PRESETS["llama"], eot=9)
GPU = Device(torch.device("cuda"), "", "bfloat16", 1, 1e12, "given")
CPU = replace(GPU, device=torch.device("cpu"))


def planned(**changes: Any) -> Plan:
    template = Shape(1, 1, 64, 256, 4096, **PRESETS["modern"])
    plan = make_plan(Request(Limits(hours=1.0), template, LAWS["chinchilla-table3"], flops_per_second=1e12))
    return replace(plan, **changes)


def trainer(**values: Any) -> Trainer:
    usual = {"machine": CPU, "shape": SHAPE, "plan": planned(), "state": SimpleNamespace(step=0)}
    return cast(Trainer, SimpleNamespace(**(usual | {"compile_cache": None, "micro_batch": 2} | values)))


def stepping(model: GPT, loss_of: Any = None) -> dict[str, Any]:
    """A trainer's objective, optimizer and training step."""
    optimizer = configure_optimizers(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    step = TrainingStep(loss_of or partial(next_token, model), optimizer, CPU.scaler(), CPU.autocast, 1.0)
    return {"objective": next_token, "optimizer": optimizer, "training_step": step}


def session(setting: str, seconds_left: float = 3600.0) -> tuple[Session, list[str]]:
    config, said = Config(), []
    config.device.compile = setting
    clock = BudgetClock(Limits(hours=1.0))
    clock.seconds_left = lambda: seconds_left  # type: ignore[method-assign]
    console = SimpleNamespace(say=said.append, warn=said.append)
    return cast(Session, SimpleNamespace(config=config, clock=clock, console=console)), said


def test_micro_batches_are_the_batch_in_order_each_with_its_own_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.arange(45).reshape(5, 9) % 10
    loader = SimpleNamespace(batch=lambda step: Batch(tokens[:, :-1], tokens[:, 1:]))
    parts = micro_batches(trainer(loader=loader, micro_batch=2))
    assert [len(part.inputs) for part in parts] == [2, 2, 1]
    assert torch.cat([part.inputs for part in parts]).tolist() == tokens[:, :-1].tolist()
    assert torch.cat([part.targets for part in parts]).tolist() == tokens[:, 1:].tolist()
    assert [part.starts for part in parts] == [None] * 3  # on a CPU there is a mask
    monkeypatch.setattr(module, "best_precision", lambda device: "bfloat16")
    for part in micro_batches(trainer(loader=loader, micro_batch=2)):
        assert part.starts is not None
        flat = part.inputs.flatten().tolist()
        assert part.starts.tolist() == [i for i, each in enumerate(flat) if each == 9 or i % 8 == 0] + [len(flat)]


@pytest.mark.parametrize(
    ("sequences", "micro_batch", "parts"),
    [(512, 64, 64), (480, 64, 60), (96, 64, 48), (30, 8, 6), (479, 64, 64), (4, 64, 4)],
)
def test_what_is_compiled_sees_parts_of_one_size_where_that_is_to_be_had(
    sequences: int, micro_batch: int, parts: int
) -> None:
    assert equal_parts(sequences, micro_batch) == parts


def test_every_size_that_a_step_has_is_warmed_up_before_it() -> None:
    model, seen = GPT(SHAPE), []

    def loss_of(batch: Batch[torch.Tensor]) -> torch.Tensor:
        seen.append(len(batch.inputs))
        return next_token(model, batch)

    plan = replace(planned(), batch_tokens=7 * SHAPE.block_size)
    here = trainer(model=model, plan=plan, micro_batch=3, **stepping(model, loss_of))
    warm_up(session("off")[0], here)
    assert seen == [1, 3, 3]


def test_what_the_warm_up_compiled_is_what_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    tokens = np.arange(36).reshape(4, 9) % 10
    loader = SimpleNamespace(batch=lambda step: Batch(tokens[:, :-1], tokens[:, 1:]))
    model, plan = GPT(SHAPE), replace(planned(), batch_tokens=4 * SHAPE.block_size)
    here = trainer(
        model=model,
        plan=plan,
        micro_batch=2,
        loader=loader,
        **stepping(model, compile_for_training(next_token, model, "on")),
    )
    warm_up(session("off")[0], here)
    before = len(graphs)
    assert before
    for batch in micro_batches(here):
        here.training_step.forward_backward([batch], 2)
    torch._dynamo.reset()
    assert len(graphs) == before


@pytest.mark.parametrize(
    ("setting", "step", "seconds_left", "how"),
    [
        ("auto", 0, 1.0, "regional"),  # as planned
        ("auto", 5, 70.0, "regional"),
        ("auto", 5, 50.0, "off"),  # a third of it is no longer twice the 10 seconds
        ("regional", 5, 1.0, "regional"),
    ],
)
def test_a_resumed_run_compiles_where_what_is_left_earns_it_back(
    setting: str, step: int, seconds_left: float, how: str
) -> None:
    plan = planned(compiled=True, regional=True, compile_s=10.0, compile_speedup=1.5)
    found = how_to_compile(
        session(setting, seconds_left)[0], trainer(plan=plan, machine=GPU, state=SimpleNamespace(step=step))
    )
    assert found == how
    assert how_to_compile(session(setting)[0], trainer(machine=GPU, state=SimpleNamespace(step=step))) == "off"


def test_a_compiler_that_fails_costs_its_gain_only_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[Any] = []

    def warm_up(session: Session, trainer: Trainer) -> None:
        warmed.append(trainer.training_step.loss_of)
        if not isinstance(warmed[-1].args[0], GPT) or warmed[-1].args[0] is not trainer.model:
            raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(training.compile, "warm_up", warm_up)
    model = GPT(SHAPE)
    plan = planned(compiled=True, regional=True)
    here, said = session("auto")
    compiling = trainer(model=model, plan=plan, **stepping(model))
    compile_model(here, compiling)
    assert compiling.training_step.loss_of.args == (model,)  # type: ignore[attr-defined]
    assert len(warmed) == 2
    assert "the model is not compiled (RuntimeError: no compiler here)" in said
    assert compiling.compile_cache is None
    with pytest.raises(RuntimeError):
        compile_model(session("regional")[0], trainer(model=model, plan=plan, **stepping(model)))


@pytest.mark.parametrize(
    ("own", "of_trial", "step", "state"),
    [
        ("warm", None, 0, "warm"),
        ("cold", None, 0, "cold"),
        ("warm", "cold", 0, "cold"),  # its own trial had filled it
        ("warm", "cold", 7, "warm"),  # that was an earlier process
    ],
)
def test_a_cache_that_the_runs_own_trial_filled_was_cold(
    monkeypatch: pytest.MonkeyPatch, own: str, of_trial: str | None, step: int, state: str
) -> None:
    monkeypatch.setattr(training.compile, "warm_up", lambda session, trainer: None)
    monkeypatch.setattr(compiled, "cache_state", lambda: own)
    plan = planned(compiled=True, regional=True, compile_cache=of_trial)
    here, said = session("regional")
    model = GPT(SHAPE)
    found = trainer(model=model, plan=plan, state=SimpleNamespace(step=step), **stepping(model))
    compile_model(here, found)
    assert found.compile_cache == state
    assert said[-1].endswith(f"cache was {state}")
