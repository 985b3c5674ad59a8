"""How a run goes on after a fault: with the seconds that it has spent, from its newest checkpoint, perhaps on another machine;
and from an earlier one, at half the rate, when its loss is no number any more.

torch is imported inside the functions, so that the scripts answer mistakes and --help at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.checkpointing import save
from training.context import Session, Trainer
from training.resume import restore

if TYPE_CHECKING:
    pass

ROLLBACK_RATE = 0.5  # of the planned learning rate, after a run has gone back once


class Diverged(Exception):
    """The model is lost: its loss is no number, or has been worse than guessing for long. `since`: the step whose loss was
    the first to show it, so that the weights after the one before it are lost already."""

    def __init__(self, reason: str, since: int) -> None:
        super().__init__(reason)
        self.since = since


def require_finite_loss(trainer: Trainer, figures: dict[str, Any]) -> None:
    """Raises Diverged for an evaluation whose loss is no number."""
    step = trainer.state.step
    if figures["loss"] is None:
        raise Diverged(f"the validation loss after step {step} is no number", step + 1)


def peak_rate(trainer: Trainer) -> float:
    """The learning rate that the schedule is a share of."""
    return trainer.plan.learning_rate * (ROLLBACK_RATE if trainer.state.setback else 1.0)


def rollback(session: Session, trainer: Trainer, error: Diverged) -> None:
    """Once in a run's life: from the newest checkpoint of good weights on with half the learning rate. Raises `error` again
    where that was done before, and where there is none."""
    from run.checkpoint import drop_after, latest_checkpoint

    with session.signals.deferred():
        with session.clock.charge("checkpoint"):
            first = trainer.state.setback is None
            found = latest_checkpoint(session.run.checkpoints, session.console.warn, error.since - 1) if first else None
            if found is None:
                raise error
            lost_at, micro_batch = trainer.state.step, trainer.state.micro_batch
            restore(session, trainer, found)
            trainer.state.machine, trainer.state.micro_batch = trainer.device.title, micro_batch
            drop_after(session.run.checkpoints, trainer.state.step)  # their weights are lost
        back_to = trainer.state.step
        trainer.state.setback = {"step": lost_at, "back_to": back_to, "reason": str(error)}
        text = f"{error}; going back to step {back_to}, once, with {ROLLBACK_RATE:g} of the learning rate"
        session.console.warn(text)
        trainer.metrics.write({"event": "setback", "step": back_to, "text": text})
        save(session, trainer, final=False)  # so that a kill does not forget that it was once


ABOVE = 1.0  # nats per token above a guess: no noise of a batch and no bad initialisation is that bad


LASTING = 32  # steps in a row; a spike that is survived is over sooner


class Spike:
    """Told of every step's loss. A model that once did better than guessing and then, for LASTING steps in a row, does
    worse by more than ABOVE has forgotten everything: the rest of the budget would be thrown after it."""

    def __init__(self, guess: float, loss: float | None) -> None:
        """`guess`: nats per token of a model that knows nothing, ln of the vocabulary; `loss`: where the run stands."""
        self._guess = guess
        self._learned = loss is not None and loss < guess
        self._above = 0

    def has_diverged(self, loss: float) -> bool:
        """Whether, with this step's loss, the model is lost."""
        self._learned = self._learned or loss < self._guess
        self._above = self._above + 1 if self._learned and loss > self._guess + ABOVE else 0
        return self._above >= LASTING

    @property
    def is_healthy(self) -> bool:
        """Whether these weights are worth going back to."""
        return not self._above
