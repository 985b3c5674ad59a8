"""Divergence: detect a diverged model, and return once to an earlier checkpoint with half the learning rate.

torch is imported inside functions, so that --help and errors in the command line appear at once.
"""

from __future__ import annotations

from typing import Any

from training.checkpointing import has_finite_weights, save
from training.context import Session, Trainer
from training.resume import restore

ROLLBACK_RATE = 0.5  # share of the planned learning rate after a rollback
SPIKE_NATS = 1.0  # nats per token above a uniform guess: more than batch noise or a bad initialisation explains
SPIKE_STEPS = 32  # steps in a row; training recovers from shorter spikes


class Diverged(Exception):
    """The loss or a weight is not finite, or the loss has been worse than a uniform guess for long.

    Attributes:
        since: The first step whose loss showed it. The weights before this step are already bad.
    """

    def __init__(self, reason: str, since: int) -> None:
        super().__init__(reason)
        self.since = since


def require_finite_loss(trainer: Trainer, figures: dict[str, Any]) -> None:
    """Raise Diverged if the loss of an evaluation is not finite."""
    step = trainer.state.step
    if figures["loss"] is None:
        raise Diverged(f"the validation loss after step {step} is not finite", step + 1)


def require_finite_weights(session: Session, trainer: Trainer) -> None:
    """Raise Diverged if a weight is NaN or infinite. After the last step, no later loss would show it."""
    step = trainer.state.step
    if not session.world.broadcast(has_finite_weights(trainer)):
        raise Diverged(f"the weights after step {step} are not finite", step + 1)


def peak_learning_rate(trainer: Trainer) -> float:
    """The learning rate at a schedule value of 1: the planned one, or half of it after a rollback."""
    return trainer.plan.learning_rate * (ROLLBACK_RATE if trainer.state.setback else 1.0)


def rollback(session: Session, trainer: Trainer, error: Diverged) -> None:
    """Restore the newest checkpoint from before the divergence; from there, training runs at half the learning rate.

    A run does this once, across all its processes. Raises `error` again the second time, and if there is no checkpoint.
    """
    from run.checkpoint import drop_after, latest_checkpoint

    with session.signals.deferred():
        with session.clock.charge("checkpoint"):
            lost_step, first_time = session.world.broadcast((error.since - 1, trainer.state.setback is None))
            if not first_time:
                raise error
            checkpoint = latest_checkpoint(session.run.checkpoints, session.console.warn, before=lost_step)
            if checkpoint is None:
                raise error
            lost_at, micro_batch = trainer.state.step, trainer.state.micro_batch
            restore(session, trainer, checkpoint)
            trainer.state.machine, trainer.state.micro_batch = trainer.device.title, micro_batch
            drop_after(session.run.checkpoints, trainer.state.step)  # their weights are bad
        back_to = trainer.state.step
        trainer.state.setback = {"step": lost_at, "back_to": back_to, "reason": str(error)}
        text = f"{error}; going back to step {back_to}, once, with {ROLLBACK_RATE:g} of the learning rate"
        session.console.warn(text)
        trainer.metrics.write({"event": "setback", "step": back_to, "text": text})
        save(session, trainer, final=False)  # so that a killed process does not forget the rollback


class SpikeDetector:
    """Watches the loss of every step for a spike that training does not recover from.

    A model has diverged if it was once better than a uniform guess, and then, for SPIKE_STEPS steps in a row, is worse
    than the guess by more than SPIKE_NATS: it has forgotten what it learned.
    """

    def __init__(self, guess: float, loss: float | None) -> None:
        """
        Args:
            guess: The loss of a uniform guess in nats per token: ln(vocabulary).
            loss: The last loss of a resumed run; None for a new one.
        """
        self._guess = guess
        self._learned = loss is not None and loss < guess
        self._steps_above = 0

    def has_diverged(self, loss: float) -> bool:
        """Count the loss of the next step (nats per token), and return whether the model has diverged with it."""
        self._learned = self._learned or loss < self._guess
        above = self._learned and loss > self._guess + SPIKE_NATS
        self._steps_above = self._steps_above + 1 if above else 0
        return self._steps_above >= SPIKE_STEPS

    @property
    def is_healthy(self) -> bool:
        """Whether the last loss was not part of a spike, so that the weights are worth saving."""
        return not self._steps_above
