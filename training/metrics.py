"""Per-step metrics, read one step late so that the host never waits for the GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from budget.flops import flops_per_token
from common.json_io import finite
from run.report.console import Progress, Status
from training.context import Session, Trainer, axes
from training.divergence import LASTING, Diverged, Spike

if TYPE_CHECKING:
    import torch


METRICS_EVERY_STEP = 2000  # beyond that many steps, one line of metrics.jsonl for each 1/2000 of the budget


class DeferredMetrics:
    """Reads the loss of a step once the next one was launched, checks it, and writes it down."""

    def __init__(self, session: Session, trainer: Trainer) -> None:
        self.session, self.trainer = session, trainer
        self.loss: float | None = trainer.state.loss
        self.spike = trainer.spike = Spike(math.log(trainer.corpus.tokenizer.n_vocab), self.loss)
        self._waiting: tuple[Callable[[], list[float]], dict[str, Any]] | None = None
        self._written = -1.0

    def push(self, loss: torch.Tensor, norm: torch.Tensor, learning_rate: float) -> None:
        numbers = self.trainer.device.fetch_async(loss, norm)
        self._waiting = (numbers, {**axes(self.session, self.trainer), "learning_rate": learning_rate})

    def is_healthy(self) -> bool:
        """Whether the loss, the last step's included, is where it should be: two checkpoints are kept, and no more than one
        of them may be of weights that are lost, as those after a step show only in the loss of the next."""
        self.read()
        return self.spike.is_healthy

    def read(self) -> None:
        """Raises Diverged when the model is lost: the rest of the budget would be thrown after it."""
        if self._waiting is None:
            return
        numbers, point = self._waiting
        step, self._waiting = point["step"], None
        self.loss, norm = numbers()
        if finite(self.loss) is None:
            raise Diverged(f"the loss of step {step} is {self.loss}", step)
        if self.spike.has_diverged(self.loss):
            reason = f"the loss of step {step}, {self.loss:.3g}, has been worse than a guess's for long"
            raise Diverged(reason, step - LASTING + 1)
        self.trainer.state.loss = self.loss
        many = step > METRICS_EVERY_STEP
        if many and point["progress"] - self._written < 1 / METRICS_EVERY_STEP and point["progress"] < 1:
            return
        self._written = point["progress"]
        rate = self.session.clock.tokens_per_second(self.trainer.cost)
        mfu = rate * flops_per_token(self.trainer.shape) / self.trainer.device.peak_flops
        point |= {"loss": self.loss, "grad_norm": norm, "tokens_per_second": rate, "mfu": mfu}
        self.trainer.metrics.write(point)
        self.session.dashboard.log(point)


def show_progress(session: Session, trainer: Trainer, bar: Progress, loss: float | None) -> None:
    clock, state = session.clock, trainer.state
    # Anew: the steps that were left before this one, at the pace of now, would be wrong where the pace has changed.
    left, _ = clock.steps_left(state.step, state.tokens, state.flops, trainer.cost)
    rate = clock.tokens_per_second(trainer.cost)
    bar.update(
        Status(
            step=state.step,
            steps_left=left,
            progress=clock.progress,
            budget_left_s=clock.seconds_left(),
            eta_s=left * clock.pace.typical + clock.reserve_s,
            loss=loss,
            validation_loss=trainer.validation_loss,
            learning_rate=trainer.optimizer.param_groups[0]["lr"],
            tokens_per_second=rate,
            mfu=rate * flops_per_token(trainer.shape) / trainer.device.peak_flops,
        )
    )
