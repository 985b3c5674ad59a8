"""When checkpoints are written, and what happens when the disk refuses."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from training.context import Session, Trainer

if TYPE_CHECKING:
    pass

RETRY_S = 1.0  # a network file system that has refused is asked once more after this long


Result = TypeVar("Result")


def save_interval(session: Session, trainer: Trainer) -> float:
    """Seconds from one checkpoint to the next: as often as is wished, as rarely as keeps them cheap."""
    checkpoint, limit_s = session.config.checkpoint, session.clock.limits.seconds
    wished = checkpoint.every_s or (60.0 if limit_s is None else min(600.0, max(2.0, 0.02 * limit_s)))
    return max(wished, trainer.save_s / checkpoint.max_fraction)


def save_due(session: Session, trainer: Trainer) -> bool:
    """Whether the last checkpoint is old enough for another one."""
    return session.clock.spent_s() - trainer.saved_at > save_interval(session, trainer)


def save(session: Session, trainer: Trainer, final: bool) -> None:
    """Write a checkpoint. A disk that refuses costs a warning, and the earlier checkpoints stay; only at the end it is
    an error. Weights that are no numbers are not written over good ones."""
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
                session.console.warn(f"no checkpoint at step {state.step}: its weights are no numbers")
        except OSError as error:
            if final:
                raise full_disk(folder, error, "the checkpoints before it") from None
            session.console.warn(f"no checkpoint at step {state.step}: {error}; the earlier ones are kept")
        trainer.save_s = clock.awake_s() - began
    trainer.saved_at = clock.spent_s()


def has_finite_weights(trainer: Trainer) -> bool:
    """Whether every weight is a finite number: a sum with another one in it is none."""
    total = sum(weight.detach().sum() for weight in trainer.model.parameters())
    return math.isfinite(float(total))


def retry_once(write: Callable[[], Result]) -> Result:
    """What `write` returns; where the disk refuses, what it returns when it is called once more."""
    try:
        return write()
    except OSError:
        threading.Event().wait(RETRY_S)
        return write()
