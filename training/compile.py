"""torch.compile where it saves more time than it costs, and the warm-up before the first step."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

from data.batch import Batch
from training.context import Session, Trainer, timed
from training.micro_batching import attempts, equal_parts, sequences_of


def compile_model(session: Session, trainer: Trainer) -> None:
    """Compile the model if that pays, and warm up, so that the first step is as fast as the others.

    The time is charged to the budget; no weight changes. With device.compile=auto, a compiler that fails is a warning
    and the model trains uncompiled.
    """
    from model.compile import cache_state, compile_for_training

    clock, how = session.clock, how_to_compile(session, trainer)
    with clock.charge("setup" if how == "off" else "compile"):
        if how != "off":
            session.console.say("compiling the model" if how == "on" else "compiling the model's blocks")
            trainer.micro_batch = equal_parts(sequences_of(trainer), trainer.micro_batch)
        trainer.training_step.loss_of = compile_for_training(trainer.objective, trainer.model, how)
        failure = None
        try:
            seconds = timed(clock, lambda: warm_up(session, trainer), 1)
        except Exception as error:  # a compiler may raise anything; train uncompiled instead
            if how == "off" or session.config.device.compile == how:
                raise
            failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if failure := session.world.first(failure):
            session.console.warn(f"the model is not compiled ({failure})")
            how = "off"
            trainer.training_step.loss_of = compile_for_training(trainer.objective, trainer.model, how)
            warm_up(session, trainer)
    if how != "off":
        # If this run's own trial filled the cache, it was cold.
        states = (cache_state(), None if trainer.state.step else trainer.plan.compile_cache)
        trainer.compile_cache = "cold" if "cold" in states else "warm"
        session.console.say(f"compiled in {seconds:.1f} s, the compiler's cache was {trainer.compile_cache}")
    gc.collect()
    gc.freeze()  # collections during training skip all objects made so far: visiting them takes as long as a step


def how_to_compile(session: Session, trainer: Trainer) -> str:
    """How to compile: "off", "on" or "regional" (block by block), as in device.compile.

    A new run follows its plan. A resumed run has less time left, so it compiles only if that still pays.
    """
    plan = trainer.plan
    if not plan.compiled or not trainer.state.step:
        return plan.compiling
    seconds_left = session.world.broadcast(session.clock.seconds_left())
    for option in trainer.device.compile_options(session.config.device.compile):
        cost_s, speedup = plan.compile_s or option.cost_s, plan.compile_speedup or option.speedup
        measured = replace(option, cost_s=cost_s, speedup=speedup)
        if option.how == plan.compiling and measured.pays(seconds_left):
            return option.how
    return "off"


def warm_up(session: Session, trainer: Trainer) -> None:
    """Run forward and backward twice on zeros, and estimate the time of a step from the second run.

    If the last micro-batch of a batch is smaller than the others, that size is run first.
    """
    import numpy as np

    device, shape, sequences = trainer.device, trainer.shape, sequences_of(trainer)

    def forward_and_backward(count: int) -> None:
        zeros = np.zeros((count, shape.block_size), dtype=np.int64)  # (B, T)
        trainer.training_step.forward_backward([device.batch(Batch(zeros, zeros), shape)], count)
        trainer.optimizer.zero_grad(set_to_none=True)
        device.synchronize()

    for attempt in attempts(session, trainer):
        with attempt:
            micro = min(trainer.micro_batch, sequences)
            if rest := sequences % micro:
                forward_and_backward(rest)
            seconds = timed(session.clock, partial(forward_and_backward, micro), 2)
            session.clock.pace.add(seconds * sequences / micro)
