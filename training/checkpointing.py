"""When checkpoints are written, and what happens if a write fails."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TypeVar

from training.context import Session, Trainer

RETRY_S = 1.0  # seconds before a failed write is tried again, as a network file system may recover
Result = TypeVar("Result")


def save_interval(session: Session, trainer: Trainer) -> float:
    """Seconds between checkpoints: checkpoint.every_s, or longer to keep their cost below checkpoint.max_fraction."""
    checkpoint, limit_s = session.config.checkpoint, session.clock.limits.seconds
    wanted_s = checkpoint.every_s or (60.0 if limit_s is None else min(600.0, max(2.0, 0.02 * limit_s)))
    return max(wanted_s, trainer.save_s / checkpoint.max_fraction)


def save_due(session: Session, trainer: Trainer) -> bool:
    """Whether the last checkpoint is older than the interval."""
    return session.clock.spent_s() - trainer.saved_at > save_interval(session, trainer)


def save(session: Session, trainer: Trainer, final: bool) -> None:
    """Write a checkpoint, unless a weight is not finite.

    A failed write is a warning, and the earlier checkpoints stay. If `final`, the write is tried twice, and a second
    failure raises MachineError.
    """
    from run.checkpoint import save_checkpoint
    from run.directory import full_disk

    clock, folder, state = session.clock, session.run.checkpoints, trainer.state
    scaler = trainer.training_step.scaler

    def write() -> None:
        save_checkpoint(folder, trainer.model, trainer.optimizer, state, clock.accounts())

    with clock.charge("checkpoint"):
        began = clock.awake_s()
        state.progress = clock.progress
        state.loss_scale = scaler.get_scale() if scaler.is_enabled() else None
        try:
            if has_finite_weights(trainer):
                retry_once(write) if final else write()
            else:
                session.console.warn(f"no checkpoint at step {state.step}: its weights are not finite")
        except OSError as error:
            if final:
                raise full_disk(folder, error, "the checkpoints before it") from None
            session.console.warn(f"no checkpoint at step {state.step}: {error}; earlier checkpoints are kept")
        trainer.save_s = clock.awake_s() - began
    trainer.saved_at = clock.spent_s()


def has_finite_weights(trainer: Trainer) -> bool:
    """Whether no weight is NaN or infinite: one that is makes the sum of all weights NaN or infinite too."""
    total = sum(weight.detach().sum() for weight in trainer.model.parameters())
    return math.isfinite(float(total))


def retry_once(write: Callable[[], Result]) -> Result:
    """Call `write`; after an OSError, wait RETRY_S seconds and call it once more. Returns its result."""
    try:
        return write()
    except OSError:
        threading.Event().wait(RETRY_S)
        return write()
