"""Metrics of every step, read one step late so that a GPU never waits for the host, and the progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from common.json_io import finite
from run.report.console import Progress, Status
from training.context import Session, Trainer, axes
from training.divergence import SPIKE_STEPS, Diverged, SpikeDetector

if TYPE_CHECKING:
    import torch

# A line of metrics.jsonl for every step up to this one; afterwards, one for each 1/2000 of the budget.
METRICS_EVERY_STEP = 2000


class DeferredMetrics:
    """Reads the loss of a step after the next step was launched, checks it for divergence, and logs it.

    Attributes:
        loss: The last loss that was read, in nats per token; None before the first one.
    """

    def __init__(self, session: Session, trainer: Trainer) -> None:
        self.session, self.trainer = session, trainer
        self.loss: float | None = trainer.state.loss
        self.spike = trainer.spike = SpikeDetector(math.log(trainer.corpus.tokenizer.n_vocab), self.loss)
        # How to read loss and norm, the step, and the line to write, or None.
        self._pending: tuple[Callable[[], list[float]], int, dict[str, Any] | None] | None = None
        self._written_at = -1.0  # progress

    def push(self, loss: torch.Tensor, norm: torch.Tensor, learning_rate: float) -> None:
        """Start copying a step's loss and gradient norm (scalars on the device) to the host; `read` waits for them."""
        values = self.trainer.device.fetch_async(loss, norm)
        step, progress, point = self.trainer.state.step, self.session.clock.progress, None
        if step <= METRICS_EVERY_STEP or progress - self._written_at >= 1 / METRICS_EVERY_STEP or progress >= 1:
            self._written_at = progress
            point = {**axes(self.session, self.trainer), "learning_rate": learning_rate}
        self._pending = (values, step, point)

    def is_healthy(self) -> bool:
        """Read the last loss, and return whether the run is free of a spike, so that its weights are worth saving.

        Weights that a step has damaged show only in the loss of the next step. So one of the two checkpoints that are
        kept may be bad, and this keeps the other one good.
        """
        self.read()
        return self.spike.is_healthy

    def read(self) -> None:
        """Wait for the values of the last `push`, if they were not read yet, and log them.

        Raises Diverged if the loss is not finite or a spike lasts. Every process decides by the loss of rank 0.
        """
        if self._pending is None:
            return
        (values, step, point), self._pending = self._pending, None
        self.loss, norm = self.session.world.broadcast(values())
        if finite(self.loss) is None:
            raise Diverged(f"the loss of step {step} is {self.loss}", step)
        if self.spike.has_diverged(self.loss):
            reason = f"the loss of step {step}, {self.loss:.3g}, has been worse than a guess's for {SPIKE_STEPS} steps"
            raise Diverged(reason, step - SPIKE_STEPS + 1)
        self.trainer.state.loss = self.loss
        if point is not None:
            rate, mfu = speed(self.session, self.trainer)
            point |= {"loss": self.loss, "grad_norm": norm, "tokens_per_second": rate, "mfu": mfu}
            self.trainer.metrics.write(point)
            self.session.dashboard.log(point)


def speed(session: Session, trainer: Trainer) -> tuple[float, float]:
    """The speed of a typical recent step: tokens per second, and model FLOPs utilization (a share of the peak)."""
    seconds = max(session.clock.pace.typical, 1e-9)
    return trainer.cost.tokens / seconds, trainer.cost.flops / seconds / trainer.device.peak_flops


def show_progress(session: Session, trainer: Trainer, bar: Progress, loss: float | None) -> None:
    """Update the progress bar, if it is due; `loss` in nats per token, None before the first one."""
    clock, state = session.clock, trainer.state
    if not bar.is_due(clock.progress):
        return
    # Counted again after the step, so that the number of steps and their pace are of the same moment.
    steps_left, _ = clock.steps_left(state.step, state.tokens, state.flops, trainer.cost)
    rate, mfu = speed(session, trainer)
    bar.update(
        Status(
            step=state.step,
            progress=clock.progress,
            budget_left_s=clock.seconds_left(),
            eta_s=steps_left * clock.pace.typical + clock.reserve_s,
            loss=loss,
            validation_loss=trainer.validation_loss,
            learning_rate=trainer.optimizer.param_groups[0]["lr"],
            tokens_per_second=rate,
            mfu=mfu,
        )
    )
