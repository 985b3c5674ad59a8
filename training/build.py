"""Build what a plan describes: the model with its first weights, the optimizer, the loader and the evaluation windows.

torch is imported inside functions, so that --help and errors in the command line appear at once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from budget.clock import StepCost
from budget.flops import flops_per_token
from budget.planner.plan import Plan
from config import optim_settings, template, with_eot
from run.metrics import Metrics
from training.context import Session, Trainer
from training.start import record_start, weights_in_words
from training.task_evaluation import run_tasks

if TYPE_CHECKING:
    from data.shards import Corpus
    from device.device import Device
    from model.gpt import GPT


def initialize_model(session: Session, corpus: Corpus, device: Device, plan: Plan) -> GPT:
    """Make the model of a plan with its first weights.

    Raises UserError if the disk has no space for its checkpoints.
    """
    from training.initialize import WEIGHT_SOURCES

    console, config = session.console, session.config
    shape = replace(plan.sized(template(config)), dropout=plan.dropout)
    shape = with_eot(config, shape, corpus.tokenizer.eot)
    # 4 bytes each for weights and two moments; two checkpoints, one being written, and the finished weights.
    session.run.require_space(4 * 3 * shape.parameters() * 4)
    source = weight_source(session)
    first = WEIGHT_SOURCES[source](shape, config, device.torch_device)
    if first.about:
        console.say(f"init    {weights_in_words(first.about)}")
    record_start(session, corpus, shape, first.about)
    return first.model


def weight_source(session: Session) -> str:
    """The source of the first weights: random ones if a checkpoint of the run will replace them.

    The model that the run started from may then be gone.
    """
    from run.checkpoint import latest_checkpoint

    source = session.config.init.source
    if source == "scratch" or latest_checkpoint(session.run.checkpoints, session.console.warn) is None:
        return source
    return "scratch"


def build(session: Session, corpus: Corpus, device: Device, plan: Plan, model: GPT) -> Trainer:
    """Make the optimizer, the loader and the evaluation windows for a plan and its model."""
    from data.eval_windows import EvalRange
    from data.loader import Loader
    from model.optim.build import configure_optimizers
    from run.checkpoint import TrainingState
    from training.objectives import OBJECTIVES
    from training.step import TrainingStep

    config, run, shape = session.config, session.run, model.shape
    optim, objective = config.optim, OBJECTIVES["next_token"]
    betas, settings = (optim.beta1, plan.beta2), replace(optim_settings(config), name=plan.optimizer)
    optimizer = configure_optimizers(
        model, plan.learning_rate, plan.weight_decay, betas, device.torch_device.type, settings
    )
    sequences = plan.batch_tokens // shape.block_size
    share = session.world.share(sequences)
    loader = Loader(corpus.train, shape.block_size, sequences, config.seed, share)
    return Trainer(
        shape=shape,
        plan=plan,
        device=device,
        corpus=corpus,
        model=model,
        objective=objective,
        optimizer=optimizer,
        training_step=TrainingStep(
            partial(objective, model), optimizer, device.scaler(), device.autocast, optim.grad_clip
        ),
        loader=loader,
        state=TrainingState(limits=session.clock.limits.amounts),
        metrics=Metrics(run.metrics, session.console.warn),
        cost=StepCost(plan.batch_tokens, plan.batch_tokens * flops_per_token(shape)),
        micro_batch=session.world.broadcast(
            optim.micro_batch or plan.micro_batch or device.micro_batch(shape, sequences)
        ),
        interim=EvalRange(corpus.val, shape.block_size, config.eval.interim_tokens, corpus.tokenizer.eot),
        final=EvalRange(corpus.val, shape.block_size, config.eval.tokens, corpus.tokenizer.eot),
        tasks=run_tasks(session),
    )
