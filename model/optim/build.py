"""Optimizers: parameter groups by role, and one function per optimizer that returns a `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from model.gpt import GPT
from model.optim.muon import MuonAdamW
from model.optim.settings import OptimSettings, momentum_at

Groups = list[dict[str, Any]]
ADAMW = OptimSettings()
FUSED_DEVICES = ("cuda", "cpu")  # devices with a fused AdamW kernel, the fastest implementation on both


def role(name: str, parameter: Tensor) -> str:
    """Return the role of a parameter, which decides its optimizer settings.

    Roles: "matrix" (in a block), "table" (bigram and value embeddings), "embedding" (tokens and positions), "head" (untied)
    and "vector" (norms, biases and x0 shares).
    """
    if parameter.ndim < 2 or name == "shares":
        return "vector"
    if name.startswith(("bigrams.", "value_tables.")):
        return "table"
    if name.startswith("blocks."):
        return "matrix"
    return "head" if name.startswith("head.") else "embedding"


def parameter_groups(model: GPT, weight_decay: float, betas: tuple[float, float], settings: OptimSettings) -> Groups:
    """Return the optimizer's parameter groups, one for each role; every trainable parameter is in exactly one group.

    Matrices, embeddings and the head have weight decay, as in nanoGPT; vectors and tables have none. `lr_scale` multiplies
    the scheduled learning rate.
    """
    members: dict[str, list[Tensor]] = {name: [] for name in ("matrix", "table", "embedding", "head", "vector")}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[role(name, parameter)].append(parameter)
    return [
        {
            "role": group_role,
            "params": params,
            "weight_decay": 0.0 if group_role in ("vector", "table") else weight_decay,
            "lr_scale": settings.table_rate if group_role == "table" else 1.0,
            "algorithm": "table" if group_role == "table" else "adamw",
            "betas": betas,
            "eps": settings.eps,
        }
        for group_role, params in members.items()
        if params
    ]


def matrices_in(name: str, activation: str) -> int:
    """Return how many matrices are stacked along dimension 0 of a weight: 3 for queries, keys and values, 2 for gate and
    value of swiglu, else 1."""
    if name.endswith("qkv.weight"):
        return 3
    return 2 if name.endswith("up.weight") and activation == "swiglu" else 1


def adamw(model: GPT, groups: Groups, learning_rate: float, device_type: str, settings: OptimSettings) -> Optimizer:
    """Return AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    `MuonAdamW` replaces torch's optimizer for models with bigram or value embeddings, and on a CPU, where it calls the same
    kernel without importing torch's compiler, which takes two seconds.
    """
    fused = device_type in FUSED_DEVICES
    if device_type == "cpu" or any(group["role"] == "table" for group in groups):
        return MuonAdamW(groups, learning_rate, fused)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)


def muon(model: GPT, groups: Groups, learning_rate: float, device_type: str, settings: OptimSettings) -> Optimizer:
    """Return Muon for the matrices in the blocks and AdamW for the rest, except tables (see `model.optim.muon`)."""
    names = {p: name for name, p in model.named_parameters()}
    for group in groups:
        if group["role"] == "matrix":
            options = {"momentum": settings.momentum, "normuon": settings.normuon, "cautious": settings.cautious}
            parts = [matrices_in(names[p], model.shape.activation) for p in group["params"]]
            group |= {"algorithm": "muon", "peak_momentum": settings.momentum, "parts": parts, **options}
    return MuonAdamW(groups, learning_rate, fused=device_type in FUSED_DEVICES)


BUILDERS: dict[str, Callable[..., Optimizer]] = {"adamw": adamw, "muon": muon}


def configure_optimizers(
    model: GPT,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    device_type: str,
    settings: OptimSettings = ADAMW,
) -> Optimizer:
    """Return the optimizer `settings.name` for `model`, whose parameters are already on `device_type` ("cuda", "cpu", ...).

    `learning_rate` is the peak; `set_schedule` sets the learning rate of each step.
    """
    groups = parameter_groups(model, weight_decay, (betas[0], betas[1]), settings)
    return BUILDERS[settings.name](model, groups, learning_rate, device_type, settings)


def clipped_parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters whose gradients are clipped: all but tables.

    The size of a table's update does not depend on the size of its gradient, and torch cannot compute the norm of a sparse
    gradient.
    """
    return [p for group in optimizer.param_groups if group["role"] != "table" for p in group["params"]]


def set_schedule(optimizer: Optimizer, learning_rate: float, progress: float) -> None:
    """Set each group's learning rate to `learning_rate` times its `lr_scale`, and Muon's momentum at `progress`, the
    fraction of the budget that is spent."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        if "peak_momentum" in group:
            group["momentum"] = momentum_at(progress, group["peak_momentum"])
