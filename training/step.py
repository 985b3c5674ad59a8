"""One training step. The loop, the trials that measure a shape's speed and the engine's benchmark all use this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.batch import Batch
from model.optim.build import clipped_parameters


@dataclass
class TrainingStep:
    """The forward and backward passes over a batch, and the update that follows.

    Attributes:
        loss_of: The objective, compiled or not: the mean loss over the targets of a batch, a scalar.
        autocast: Makes the context of each forward pass.
        grad_clip: Largest norm of the gradient; 0 leaves the gradient as it is.
    """

    loss_of: Callable[[Batch[Tensor]], Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager[Any]]
    grad_clip: float

    def __post_init__(self) -> None:
        self.clipped = clipped_parameters(self.optimizer)

    def forward_backward(self, parts: Iterable[Batch[Tensor]], sequences: int) -> Tensor:
        """Add up the gradient of a batch of `sequences` that is given in parts; returns its loss, a scalar."""
        total = torch.zeros((), device=self.clipped[0].device)
        for part in parts:
            with self.autocast():
                loss = self.loss_of(part) * (len(part.inputs) / sequences)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def clip(self) -> Tensor:
        """Clip the gradient to `grad_clip`; returns its norm before that, a scalar."""
        self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(self.clipped, self.grad_clip or float("inf"))

    def update(self) -> None:
        """Step the optimizer and clear the gradient."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
