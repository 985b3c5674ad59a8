"""The loss of a model on given tokens, computed as in training."""

from __future__ import annotations

from torch import Tensor

from data.batch import Batch
from model.gpt import GPT
from training.objectives import next_token


def loss_of(model: GPT, inputs: Tensor, targets: Tensor, starts: Tensor | None = None) -> Tensor:
    """Return the loss in nats per target."""
    return next_token(model, Batch(inputs, targets, starts))
