"""Optimizers: one function each, from a model to a ready `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from errors import UserError

FUSED_DEVICES = ("cuda", "cpu")  # one kernel for all parameters; the fastest form on the CPU as well


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one of two groups: matrices, which decay, and vectors, which do not.

    Embeddings are matrices here, as in GPT-2 and nanoGPT. `lr_scale` multiplies the scheduled learning rate.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0},
    ]


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    device_type: str,
    eps: float,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=device_type in FUSED_DEVICES)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw}


def configure_optimizers(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    device_type: str,
    name: str = "adamw",
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """The optimizer `name` for `model`, whose parameters are already on `device_type` ("cuda", "cpu", ...).

    `learning_rate` is the peak; `set_learning_rate` moves it from step to step. Raises UserError on an unknown name.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optim.name={name} is unknown; allowed: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](model, learning_rate, weight_decay, tuple(betas), device_type, eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each group `learning_rate` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Of the groups that decay at all."""
    for group in optimizer.param_groups:
        if group["weight_decay"]:
            group["weight_decay"] = weight_decay
