"""What several tests of the model need: random weights, and the loss of given tokens as in training."""

from __future__ import annotations

import torch
from torch import Tensor

from data.batch import Batch
from model.gpt import GPT
from training.objectives import next_token


def loss_of(model: GPT, inputs: Tensor, targets: Tensor, starts: Tensor | None = None) -> Tensor:
    """Return the loss in nats per target."""
    return next_token(model, Batch(inputs, targets, starts))


def randomised(model: GPT) -> GPT:
    """Make all parameters random and large enough to affect the output, norms and biases included."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model
