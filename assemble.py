"""From a plan to what trains: model, optimizer, loader, evaluation ranges, compiled where that pays.

torch is imported inside the functions, so that the scripts answer mistakes and --help at once.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from budget.clock import StepCost
from budget.flops import flops_per_token
from budget.planner import Plan
from config import optim_settings, template, with_eot
from data.batch import Batch
from run.record import Metrics
from session import Session, Trainer, attempts, timed

if TYPE_CHECKING:
    from torch import Tensor

    from data.shards import Corpus
    from model.gpt import GPT
    from run.machine import Machine


def initial_model(session: Session, corpus: Corpus, machine: Machine, plan: Plan) -> GPT:
    """The model of a plan with its first weights."""
    from training.initialize import INITIALIZERS

    config = session.config
    shape = replace(plan.sized(template(config)), dropout=plan.dropout)
    shape = with_eot(config, shape, corpus.tokenizer.eot)
    # Weights and two moments in float32; of these two checkpoints, one being written, and the finished weights.
    session.run.require_space(4 * 3 * shape.parameters() * 4)
    return INITIALIZERS["scratch"](shape, config.seed, machine.device)


def build(session: Session, corpus: Corpus, machine: Machine, plan: Plan, model: GPT) -> Trainer:
    """Optimizer, loader and evaluation ranges for a plan and its model."""
    from data.loader import EvalRange, Loader
    from model.optim import configure_optimizers
    from run.checkpoint import TrainingState
    from training.objectives import OBJECTIVES
    from training.step import TrainingStep

    config, run, shape = session.config, session.run, model.shape
    optim, objective = config.optim, OBJECTIVES["next_token"]
    betas, settings = (optim.beta1, plan.beta2), replace(optim_settings(config), name=plan.optimizer)
    optimizer = configure_optimizers(model, plan.learning_rate, plan.weight_decay, betas, machine.device.type, settings)
    sequences = plan.batch_tokens // shape.block_size
    loader = Loader(corpus.train, shape.block_size, sequences, config.seed)
    return Trainer(
        shape=shape,
        plan=plan,
        machine=machine,
        corpus=corpus,
        model=model,
        objective=objective,
        optimizer=optimizer,
        training_step=TrainingStep(
            partial(objective, model), optimizer, machine.scaler(), machine.autocast, optim.grad_clip
        ),
        loader=loader,
        state=TrainingState(limit_s=session.clock.limits.seconds),
        metrics=Metrics(run.metrics, session.console.warn),
        cost=StepCost(plan.batch_tokens, plan.batch_tokens * flops_per_token(shape)),
        micro_batch=optim.micro_batch or plan.micro_batch or machine.micro_batch(shape, sequences),
        interim=EvalRange(corpus.val, shape.block_size, config.eval.interim_tokens),
        final=EvalRange(corpus.val, shape.block_size, config.eval.tokens),
    )


def compile_model(session: Session, trainer: Trainer) -> None:
    """torch.compile where it earns its seconds back; either way, run forward and backward once on made-up tokens, so
    that the first step is as fast as the others. No weight changes, and the time is charged."""
    from model.compiled import cache_state, for_training

    clock, how = session.clock, how_to_compile(session, trainer)
    with clock.charge("setup" if how == "off" else "compile"):
        if how != "off":
            session.console.say("compiling the model" if how == "on" else "compiling the model's blocks")
            trainer.micro_batch = equal_parts(sequences_of(trainer), trainer.micro_batch)
        trainer.training_step.loss_of = for_training(trainer.objective, trainer.model, how)
        try:
            seconds = timed(clock, lambda: warm_up(session, trainer), 1)
        except Exception as error:  # whatever a compiler thinks of: a slower run is worth more than none
            if how == "off" or session.config.device.compile == how:
                raise
            session.console.warn(f"the model is not compiled ({type(error).__name__}: {str(error).splitlines()[0]})")
            how = "off"
            trainer.training_step.loss_of = for_training(trainer.objective, trainer.model, how)
            warm_up(session, trainer)
    if how != "off":
        # What a trial of this run left in the cache was no earlier run's.
        found = (cache_state(), None if trainer.state.step else trainer.plan.compile_cache)
        trainer.compile_cache = "cold" if "cold" in found else "warm"
        session.console.say(f"compiled in {seconds:.1f} s, the compiler's cache was {trainer.compile_cache}")
    gc.collect()
    gc.freeze()  # what is there now stays; a collection in the loop that looked at all of it would take a step's time


def how_to_compile(session: Session, trainer: Trainer) -> str:
    """What the plan says, as in device.compile; a resumed run has less left to earn it back."""
    plan = trainer.plan
    if not plan.compiled or not trainer.state.step:
        return plan.compiling
    for way in trainer.machine.ways_to_compile(session.config.device.compile):
        cost_s, speedup = plan.compile_s or way.cost_s, plan.compile_speedup or way.speedup
        measured = replace(way, cost_s=cost_s, speedup=speedup)
        if way.how == plan.compiling and measured.pays(session.clock.seconds_left()):
            return way.how
    return "off"


def sequences_of(trainer: Trainer) -> int:
    """Of a batch."""
    return trainer.plan.batch_tokens // trainer.shape.block_size


def equal_parts(sequences: int, micro_batch: int) -> int:
    """The largest micro-batch of at most `micro_batch` that divides a batch of `sequences`: a rest of another size would be
    compiled as well. `micro_batch` itself where that is less than half of it."""
    most = min(micro_batch, sequences)
    found = next(part for part in range(most, 0, -1) if sequences % part == 0)
    return found if 2 * found >= most else most


def warm_up(session: Session, trainer: Trainer) -> None:
    """Forward and backward, twice; the second one says what a step takes. Before, where the batch has a rest of another size,
    once with that."""
    import numpy as np

    machine, shape, sequences = trainer.machine, trainer.shape, sequences_of(trainer)

    def forward_and_backward(count: int) -> None:
        made_up = np.zeros((count, shape.block_size), dtype=np.int64)
        trainer.training_step.forward_backward([machine.batch(Batch(made_up, made_up), shape)], count)
        trainer.optimizer.zero_grad(set_to_none=True)
        machine.synchronize()

    for attempt in attempts(session, trainer):
        with attempt:
            micro = min(trainer.micro_batch, sequences)
            if rest := sequences % micro:
                forward_and_backward(rest)
            seconds = timed(session.clock, partial(forward_and_backward, micro), 2)
            session.clock.pace.add(seconds * sequences / micro)


def micro_batches(trainer: Trainer) -> list[Batch[Tensor]]:
    """The batch of the next step in micro-batches, on the device.

    A GPU is still computing the step before, whose loss the host reads once it has launched this one. So a thread that
    gathers batches ahead would save nothing.
    """
    batch = trainer.loader.batch(trainer.state.step)
    return [trainer.machine.batch(part, trainer.shape) for part in batch.parts(trainer.micro_batch)]
