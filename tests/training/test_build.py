"""Micro-batches, compilation and warm-up, before the training loop starts."""

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
from common.signals import Interrupted, Signals
from config import Config
from data.batch import Batch
from device import device as module
from device.device import Device
from device.distributed import World
from model import compile as compiled
from model.compile import compile_for_training
from model.config import PRESETS, Shape
from model.gpt import GPT
from model.optim.build import configure_optimizers
from training.compile import compile_model, how_to_compile, warm_up
from training.context import Session, Trainer
from training.micro_batching import attempts, equal_parts, micro_batches
from training.objectives import next_token
from training.step import TrainingStep

SHAPE = Shape(1, 2, 16, 8, 32, **PRESETS["llama"], eot=9)
GPU = Device(torch.device("cuda"), "", "bfloat16", 1, 1e12, "given")
CPU = replace(GPU, torch_device=torch.device("cpu"))


def planned(**changes: Any) -> Plan:
    """A plan for an hour on a device of 1 TFLOP/s, with some fields changed."""
    template = Shape(1, 1, 64, 256, 4096, **PRESETS["modern"])
    plan = make_plan(Request(Limits(hours=1.0), template, LAWS["chinchilla-table3"], flops_per_second=1e12))
    return replace(plan, **changes)


def trainer(**values: Any) -> Trainer:
    """A trainer with only the attributes that a test needs."""
    usual = {"device": CPU, "shape": SHAPE, "plan": planned(), "state": SimpleNamespace(step=0)}
    return cast(Trainer, SimpleNamespace(**(usual | {"compile_cache": None, "micro_batch": 2} | values)))


def stepping(model: GPT, loss_of: Any = None) -> dict[str, Any]:
    """A trainer's objective, optimizer and training step."""
    optimizer = configure_optimizers(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    step = TrainingStep(loss_of or partial(next_token, model), optimizer, CPU.scaler(), CPU.autocast, 1.0)
    return {"objective": next_token, "optimizer": optimizer, "training_step": step}


def session(setting: str, seconds_left: float = 3600.0, world: World | None = None) -> tuple[Session, list[str]]:
    """A session with device.compile=`setting`, and the list of lines that it prints."""
    config, lines = Config(), []
    config.device.compile = setting
    clock = BudgetClock(Limits(hours=1.0))
    clock.seconds_left = lambda: seconds_left  # type: ignore[method-assign]
    console = SimpleNamespace(say=lines.append, warn=lines.append)
    return cast(Session, SimpleNamespace(config=config, clock=clock, console=console, world=world or World())), lines


def test_micro_batches_split_the_batch_in_order_and_keep_document_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.arange(45).reshape(5, 9) % 10
    loader = SimpleNamespace(batch=lambda step: Batch(tokens[:, :-1], tokens[:, 1:]))
    parts = micro_batches(trainer(loader=loader, micro_batch=2))
    assert [len(part.inputs) for part in parts] == [2, 2, 1]
    assert torch.cat([part.inputs for part in parts]).tolist() == tokens[:, :-1].tolist()
    assert torch.cat([part.targets for part in parts]).tolist() == tokens[:, 1:].tolist()
    assert [part.starts for part in parts] == [None] * 3  # on a CPU, attention uses a mask
    monkeypatch.setattr(module, "best_precision", lambda device: "bfloat16")
    for part in micro_batches(trainer(loader=loader, micro_batch=2)):
        assert part.starts is not None
        flat = part.inputs.flatten().tolist()
        assert part.starts.tolist() == [i for i, token in enumerate(flat) if token == 9 or i % 8 == 0] + [len(flat)]


@pytest.mark.parametrize(
    ("sequences", "micro_batch", "size"),
    [(512, 64, 64), (480, 64, 60), (96, 64, 48), (30, 8, 6), (479, 64, 64), (4, 64, 4)],
)
def test_compiled_micro_batches_have_equal_sizes_if_possible(sequences: int, micro_batch: int, size: int) -> None:
    assert equal_parts(sequences, micro_batch) == size


def test_the_warm_up_runs_every_size_of_micro_batch() -> None:
    model, seen = GPT(SHAPE), []

    def loss_of(batch: Batch[torch.Tensor]) -> torch.Tensor:
        seen.append(len(batch.inputs))
        return next_token(model, batch)

    plan = replace(planned(), batch_tokens=7 * SHAPE.block_size)
    warm_up(session("off")[0], trainer(model=model, plan=plan, micro_batch=3, **stepping(model, loss_of)))
    assert seen == [1, 3, 3]


def test_training_compiles_nothing_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    tokens = np.arange(36).reshape(4, 9) % 10
    loader = SimpleNamespace(batch=lambda step: Batch(tokens[:, :-1], tokens[:, 1:]))
    model, plan = GPT(SHAPE), replace(planned(), batch_tokens=4 * SHAPE.block_size)
    warmed = trainer(
        model=model,
        plan=plan,
        micro_batch=2,
        loader=loader,
        **stepping(model, compile_for_training(next_token, model, "on")),
    )
    warm_up(session("off")[0], warmed)
    compiled_graphs = len(graphs)
    assert compiled_graphs
    for batch in micro_batches(warmed):
        warmed.training_step.forward_backward([batch], 2)
    torch._dynamo.reset()
    assert len(graphs) == compiled_graphs


@pytest.mark.parametrize(
    ("setting", "step", "seconds_left", "how"),
    [
        ("auto", 0, 1.0, "regional"),  # as planned
        ("auto", 5, 70.0, "regional"),
        ("auto", 5, 50.0, "off"),  # a third of 50 s is less than twice the 10 s of compiling
        ("regional", 5, 1.0, "regional"),
    ],
)
def test_a_resumed_run_compiles_only_if_the_time_left_still_pays_for_it(
    setting: str, step: int, seconds_left: float, how: str
) -> None:
    plan = planned(compiled=True, regional=True, compile_s=10.0, compile_speedup=1.5)
    resumed = trainer(plan=plan, device=GPU, state=SimpleNamespace(step=step))
    assert how_to_compile(session(setting, seconds_left)[0], resumed) == how
    assert how_to_compile(session(setting)[0], trainer(device=GPU, state=SimpleNamespace(step=step))) == "off"


class Follower(World):
    """Rank 1 of two processes; rank 0 has the value `others`."""

    def __init__(self, others: Any) -> None:
        super().__init__(rank=1, size=2)
        object.__setattr__(self, "others", others)

    def gather(self, value: Any) -> list[Any]:
        return [self.others, value]  # type: ignore[attr-defined]


def test_processes_compile_alike_even_if_their_clocks_differ() -> None:
    plan = planned(compiled=True, regional=True, compile_s=10.0, compile_speedup=1.5)
    resumed = trainer(plan=plan, device=GPU, state=SimpleNamespace(step=5))
    assert how_to_compile(session("auto", 50.0, Follower(70.0))[0], resumed) == "regional"
    assert how_to_compile(session("auto", 70.0, Follower(50.0))[0], resumed) == "off"


def test_a_compiler_that_fails_elsewhere_turns_compilation_off_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.compile, "warm_up", lambda session, trainer: None)
    model = GPT(SHAPE)
    follower, lines = session("auto", world=Follower("RuntimeError: no compiler"))
    compiling = trainer(model=model, plan=planned(compiled=True, regional=True), **stepping(model))
    compile_model(follower, compiling)
    assert "the model is not compiled (RuntimeError: no compiler)" in lines
    assert compiling.compile_cache is None


def test_a_process_repeats_a_step_if_another_one_ran_out_of_memory() -> None:
    model, lines = GPT(SHAPE), []
    events = SimpleNamespace(write=lambda event: lines.append(event["text"]))
    repeating = trainer(
        model=model, micro_batch=4, state=SimpleNamespace(step=7, micro_batch=None), metrics=events, **stepping(model)
    )
    answers = iter([True, 2, None])  # rank 0: out of memory; its new micro-batch; success
    world = Follower(None)
    object.__setattr__(world, "gather", lambda value: [next(answers), value])
    sizes = []
    for attempt in attempts(session("off", world=world)[0], repeating):
        with attempt:
            sizes.append(repeating.micro_batch)
    assert sizes == [4, 2]
    assert lines == ["out of memory at step 7: 2 sequences at a time from here on instead of 4"]


def test_a_signal_to_one_process_stops_all_of_them() -> None:
    signals = Signals()
    stopping = Session(*[cast(Any, None)] * 3, signals, cast(Any, None), Follower("SIGTERM"))
    with pytest.raises(Interrupted, match="SIGTERM"):
        stopping.check_signals()
    undisturbed = Session(*[cast(Any, None)] * 3, Signals(), cast(Any, None), Follower(None))
    undisturbed.check_signals()


def test_a_failing_compiler_is_a_warning_unless_compilation_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[Any] = []

    def warm_up(session: Session, trainer: Trainer) -> None:
        warmed.append(trainer.training_step.loss_of)
        if not isinstance(warmed[-1].args[0], GPT) or warmed[-1].args[0] is not trainer.model:
            raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(training.compile, "warm_up", warm_up)
    model = GPT(SHAPE)
    plan = planned(compiled=True, regional=True)
    automatic, lines = session("auto")
    compiling = trainer(model=model, plan=plan, **stepping(model))
    compile_model(automatic, compiling)
    assert compiling.training_step.loss_of.args == (model,)  # type: ignore[attr-defined]
    assert len(warmed) == 2
    assert "the model is not compiled (RuntimeError: no compiler here)" in lines
    assert compiling.compile_cache is None
    with pytest.raises(RuntimeError):
        compile_model(session("regional")[0], trainer(model=model, plan=plan, **stepping(model)))


@pytest.mark.parametrize(
    ("own", "of_trial", "step", "state"),
    [
        ("warm", None, 0, "warm"),
        ("cold", None, 0, "cold"),
        ("warm", "cold", 0, "cold"),  # filled by the run's own trial
        ("warm", "cold", 7, "warm"),  # filled by an earlier process
    ],
)
def test_a_cache_that_was_filled_by_the_runs_own_trial_counts_as_cold(
    monkeypatch: pytest.MonkeyPatch, own: str, of_trial: str | None, step: int, state: str
) -> None:
    monkeypatch.setattr(training.compile, "warm_up", lambda session, trainer: None)
    monkeypatch.setattr(compiled, "cache_state", lambda: own)
    plan = planned(compiled=True, regional=True, compile_cache=of_trial)
    asked, lines = session("regional")
    model = GPT(SHAPE)
    compiling = trainer(model=model, plan=plan, state=SimpleNamespace(step=step), **stepping(model))
    compile_model(asked, compiling)
    assert compiling.compile_cache == state
    assert lines[-1].endswith(f"cache was {state}")
