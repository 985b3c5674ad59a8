"""Split a batch into micro-batches, and into smaller ones after running out of memory."""

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
    """The number of sequences in a batch."""
    return trainer.plan.batch_tokens // trainer.shape.block_size


def equal_parts(sequences: int, micro_batch: int) -> int:
    """The largest divisor of `sequences` that is at most `micro_batch`: the compiler then sees one batch size only.

    If that is less than half of `micro_batch`, `micro_batch` itself: many small parts cost more than a second graph.
    """
    largest = min(micro_batch, sequences)
    divisor = next(part for part in range(largest, 0, -1) if sequences % part == 0)
    return divisor if 2 * divisor >= largest else largest


def micro_batches(trainer: Trainer) -> list[Batch[Tensor]]:
    """The batch of the next step as micro-batches on the device, each of at most (micro_batch, T) tokens.

    No thread gathers batches ahead: a GPU still computes the previous step meanwhile.
    """
    batch = trainer.loader.batch(trainer.state.step)
    return [trainer.device.batch(part, trainer.shape) for part in batch.parts(trainer.micro_batch)]


def attempts(session: Session, trainer: Trainer) -> Iterator[memory.Attempt]:
    """Attempts at the same work: each one that runs out of memory is followed by one with half the micro-batch.

    Used as `device.memory.attempts`. If one process fails, all of them try again.
    """
    for attempt in memory.attempts(lambda: halve_micro_batch(session, trainer)):
        yield attempt
        attempt.failed = session.world.first(attempt.failed or None) is not None


def forward_backward(session: Session, trainer: Trainer) -> torch.Tensor:
    """Run forward and backward over the batch of the next step, and return its loss (a scalar on the device).

    The gradient is added up over the micro-batches. If memory runs out, the step is repeated with smaller ones.
    """
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
    """Halve the sequences per forward pass; the batch and the mathematics of a step stay the same.

    Raises MachineError if a single sequence does not fit.
    """
    trainer.optimizer.zero_grad(set_to_none=True)  # drop the gradient of the micro-batches that were done
    gc.collect()
    trainer.device.release_memory()
    too_large, step = trainer.micro_batch, trainer.state.step
    if too_large == 1:
        raise MachineError(
            f"out of memory at step {step} with a single sequence of {trainer.shape.block_size} tokens; every"
            " checkpoint is kept; free the device of other processes, then type the same command"
        )
    trainer.micro_batch = trainer.state.micro_batch = session.world.broadcast(-(-too_large // 2))  # rounded up
    text = (
        f"out of memory at step {step}: {trainer.micro_batch} sequences at a time from here on instead of {too_large}"
    )
    session.console.warn(f"{text}; the batch stays the same")
    trainer.metrics.write({"event": "note", "step": step, "text": text})
