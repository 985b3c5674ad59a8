"""From a plan to what trains: model, optimizer, loader, evaluation ranges, compiled where that pays.

torch is imported inside the functions, so that the scripts answer mistakes and --help at once.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING

from budget.clock import StepCost
from budget.flops import flops_per_token
from budget.planner import Plan
from config import optim_settings, template
from run.record import Metrics
from session import Session, Trainer, timed

if TYPE_CHECKING:
    from data.shards import Corpus
    from run.machine import Machine


def build(session: Session, corpus: Corpus, machine: Machine, plan: Plan) -> Trainer:
    """Model, optimizer, loader and evaluation ranges for a plan."""
    import torch

    from data.loader import EvalRange, Loader
    from model.gpt import GPT
    from model.optim import configure_optimizers
    from run.checkpoint import TrainingState

    config, run = session.config, session.run
    shape = replace(plan.sized(template(config)), dropout=plan.dropout)
    run.require_space(4 * 3 * shape.parameters() * 4)  # weights and two moments in float32; two checkpoints, one being
    torch.manual_seed(config.seed)  # written, and the finished weights
    with machine.device:
        model = GPT(shape)
    optim = config.optim
    betas, settings = (optim.beta1, plan.beta2), replace(optim_settings(config), name=plan.optimizer)
    optimizer = configure_optimizers(model, plan.learning_rate, plan.weight_decay, betas, machine.device.type, settings)
    sequences = plan.batch_tokens // shape.block_size
    loader = Loader(corpus.train, shape.block_size, sequences, config.seed)
    return Trainer(
        shape=shape,
        planned=plan,
        plan=plan,
        machine=machine,
        corpus=corpus,
        model=model,
        optimizer=optimizer,
        scaler=machine.scaler(),
        loader=loader,
        forward=model,
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
    import torch

    setting, compiled = session.config.device.compile, pays_to_compile(session, trainer)
    with session.clock.charge("compile" if compiled else "setup"):
        if compiled:
            session.console.say("compiling the model")
            # A second object on the same weights: checkpoints never see the wrapper's names.
            trainer.forward = torch.compile(trainer.model)
        else:
            run_eagerly(trainer)
        try:
            warm_up(session, trainer)
        except Exception as error:  # whatever a compiler thinks of: a slower run is worth more than none
            if not compiled or setting == "on":
                raise
            session.console.warn(f"the model is not compiled ({type(error).__name__}: {str(error).splitlines()[0]})")
            run_eagerly(trainer)
            warm_up(session, trainer)
    gc.collect()
    gc.freeze()  # what is there now stays; a collection in the loop that looked at all of it would take a step's time


def run_eagerly(trainer: Trainer) -> None:
    trainer.forward = trainer.model
    if trainer.machine.device.type == "cpu":
        trainer.model.touch_rows_only()


def pays_to_compile(session: Session, trainer: Trainer) -> bool:
    """What the plan says; a resumed run has less left to earn it back."""
    plan = trainer.plan
    if not plan.compiled or not trainer.state.step:
        return plan.compiled
    known = trainer.machine.compiling(session.config.device.compile)
    cost_s, speedup = plan.compile_s or known.cost_s, plan.compile_speedup or known.speedup
    return replace(known, cost_s=cost_s, speedup=speedup).pays(session.clock.seconds_left())


def warm_up(session: Session, trainer: Trainer) -> None:
    """Forward and backward, twice; the second one says what a step takes."""
    import torch

    machine = trainer.machine
    sequences = trainer.plan.batch_tokens // trainer.shape.block_size
    micro = min(trainer.micro_batch, sequences)
    tokens = torch.zeros((micro, trainer.shape.block_size), dtype=torch.int64, device=machine.device)

    def forward_and_backward() -> None:
        with machine.autocast():
            loss = trainer.forward(tokens, tokens)
        loss.backward()
        trainer.optimizer.zero_grad(set_to_none=True)
        machine.synchronize()

    session.clock.pace.add(timed(session.clock, forward_and_backward, 2) * sequences / micro)
