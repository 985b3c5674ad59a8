"""Splits a batch into micro-batches, smaller ones after running out of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.errors import MachineError
from data.batch import Batch
from device import memory
from training.context import Session, Trainer

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def sequences_of(trainer: Trainer) -> int:
    """Of a batch."""
    return trainer.plan.batch_tokens // trainer.shape.block_size


def equal_parts(sequences: int, micro_batch: int) -> int:
    """The largest micro-batch of at most `micro_batch` that divides a batch of `sequences`: a rest of another size would be
    compiled as well. `micro_batch` itself where that is less than half of it."""
    most = min(micro_batch, sequences)
    found = next(part for part in range(most, 0, -1) if sequences % part == 0)
    return found if 2 * found >= most else most


def micro_batches(trainer: Trainer) -> list[Batch[Tensor]]:
    """The batch of the next step in micro-batches, on the device.

    A GPU is still computing the step before, whose loss the host reads once it has launched this one. So a thread that
    gathers batches ahead would save nothing.
    """
    batch = trainer.loader.batch(trainer.state.step)
    return [trainer.device.batch(part, trainer.shape) for part in batch.parts(trainer.micro_batch)]


def attempts(session: Session, trainer: Trainer) -> Iterator[memory.Attempt]:
    """Attempts at work in micro-batches, each with half as many sequences at once as the one before, which ran out of
    memory."""
    return memory.attempts(lambda: halve_micro_batch(session, trainer))


def forward_backward(session: Session, trainer: Trainer) -> torch.Tensor:
    """The loss of this step's batch, with its gradient; computed again in smaller micro-batches where memory runs out."""
    import torch

    state = trainer.state
    loss = torch.zeros(())
    for attempt in attempts(session, trainer):
        with attempt:
            with session.clock.charge("data"):
                parts = micro_batches(trainer)
            if trainer.shape.dropout:
                torch.manual_seed(session.config.seed * 1_000_003 + state.step)  # the same masks after a resume
            loss = trainer.training_step.forward_backward(parts, sequences_of(trainer))
    return loss


def halve_micro_batch(session: Session, trainer: Trainer) -> None:
    """Half as many sequences at once, twice as often: the mathematics stays the same. Raises MachineError where there is
    only one already."""
    trainer.optimizer.zero_grad(set_to_none=True)  # of the part of the batch that had been done
    gc.collect()
    trainer.device.release_memory()
    before, step = trainer.micro_batch, trainer.state.step
    if before == 1:
        raise MachineError(
            f"out of memory at step {step} with a single sequence of {trainer.shape.block_size} tokens; kept: every"
            " checkpoint; end what else uses the device, then type the same command"
        )
    trainer.micro_batch = trainer.state.micro_batch = session.world.broadcast(-(-before // 2))
    text = f"out of memory at step {step}: {trainer.micro_batch} sequences at a time from here on instead of {before}"
    session.console.warn(f"{text}; what is computed stays the same")
    trainer.metrics.write({"event": "note", "step": step, "text": text})
