"""One training step, used by the training loop, the trials that measure speed, and the benchmark of the engine."""

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
        loss_of: Maps a batch to its mean loss over the targets, a scalar; compiled or not.
        scaler: Scales the loss under float16; otherwise disabled.
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
        """Add up the gradient of a batch of `sequences` sequences, given as micro-batches of (b, T) tokens.

        Returns the loss of the batch, a scalar on the device. Each part counts by its share of the sequences.
        """
        total = torch.zeros((), device=self.clipped[0].device)
        for part in parts:
            with self.autocast():
                loss = self.loss_of(part) * (len(part.inputs) / sequences)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def clip(self) -> Tensor:
        """Clip the gradient to a norm of `grad_clip`. Returns its norm before, a scalar on the device."""
        self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(self.clipped, self.grad_clip or float("inf"))

    def update(self) -> None:
        """Step the optimizer and clear the gradient."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
