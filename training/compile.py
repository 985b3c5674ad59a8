"""torch.compile where it pays, and the warm-up before the first step."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from data.batch import Batch
from training.context import Session, Trainer, timed
from training.micro_batching import attempts, equal_parts, sequences_of

if TYPE_CHECKING:
    pass


def compile_model(session: Session, trainer: Trainer) -> None:
    """torch.compile where it earns its seconds back; either way, run forward and backward once on made-up tokens, so
    that the first step is as fast as the others. No weight changes, and the time is charged."""
    from model.compile import cache_state, compile_for_training

    clock, how = session.clock, how_to_compile(session, trainer)
    with clock.charge("setup" if how == "off" else "compile"):
        if how != "off":
            session.console.say("compiling the model" if how == "on" else "compiling the model's blocks")
            trainer.micro_batch = equal_parts(sequences_of(trainer), trainer.micro_batch)
        trainer.training_step.loss_of = compile_for_training(trainer.objective, trainer.model, how)
        try:
            seconds = timed(clock, lambda: warm_up(session, trainer), 1)
        except Exception as error:  # whatever a compiler thinks of: a slower run is worth more than none
            if how == "off" or session.config.device.compile == how:
                raise
            session.console.warn(f"the model is not compiled ({type(error).__name__}: {str(error).splitlines()[0]})")
            how = "off"
            trainer.training_step.loss_of = compile_for_training(trainer.objective, trainer.model, how)
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
    for way in trainer.device.ways_to_compile(session.config.device.compile):
        cost_s, speedup = plan.compile_s or way.cost_s, plan.compile_speedup or way.speedup
        measured = replace(way, cost_s=cost_s, speedup=speedup)
        if way.how == plan.compiling and measured.pays(session.clock.seconds_left()):
            return way.how
    return "off"


def warm_up(session: Session, trainer: Trainer) -> None:
    """Forward and backward, twice; the second one says what a step takes. Before, where the batch has a rest of another size,
    once with that."""
    import numpy as np

    device, shape, sequences = trainer.device, trainer.shape, sequences_of(trainer)

    def forward_and_backward(count: int) -> None:
        made_up = np.zeros((count, shape.block_size), dtype=np.int64)
        trainer.training_step.forward_backward([device.batch(Batch(made_up, made_up), shape)], count)
        trainer.optimizer.zero_grad(set_to_none=True)
        device.synchronize()

    for attempt in attempts(session, trainer):
        with attempt:
            micro = min(trainer.micro_batch, sequences)
            if rest := sequences % micro:
                forward_and_backward(rest)
            seconds = timed(session.clock, partial(forward_and_backward, micro), 2)
            session.clock.pace.add(seconds * sequences / micro)
