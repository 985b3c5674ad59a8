"""Optimizers: one function each, from a model to a ready `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.gpt import GPT
from model.optim.muon import MuonAdamW
from model.optim.settings import OptimSettings, momentum_at

ADAMW = OptimSettings()
FUSED_DEVICES = ("cuda", "cpu")  # one kernel for all parameters; the fastest form on the CPU as well


def role(name: str, parameter: Tensor) -> str:
    """What a parameter is for: matrix (in a block), table (beside the vocabulary's), embedding, head or vector."""
    if parameter.ndim < 2 or name == "shares":
        return "vector"
    if name.startswith(("bigrams.", "value_tables.")):
        return "table"
    if name.startswith("blocks."):
        return "matrix"
    return "head" if name.startswith("head.") else "embedding"


def parameter_groups(
    model: GPT, weight_decay: float, betas: tuple[float, float], settings: OptimSettings
) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group, by its role. Matrices decay, embeddings, which are matrices in
    GPT-2 and nanoGPT, among them; vectors and the tables beside them do not. `lr_scale` multiplies the scheduled learning
    rate."""
    members: dict[str, list[Tensor]] = {each: [] for each in ("matrix", "table", "embedding", "head", "vector")}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[role(name, parameter)].append(parameter)
    return [
        {
            "role": each,
            "params": params,
            "weight_decay": 0.0 if each in ("vector", "table") else weight_decay,
            "lr_scale": settings.table_rate if each == "table" else 1.0,
            "algorithm": "table" if each == "table" else "adamw",
            "betas": betas,
            "eps": settings.eps,
        }
        for each, params in members.items()
        if params
    ]


def matrices_in(name: str, activation: str) -> int:
    """How many matrices a weight holds, one above the other: queries, keys and values; gate and value of swiglu."""
    if name.endswith("qkv.weight"):
        return 3
    return 2 if name.endswith("up.weight") and activation == "swiglu" else 1


def adamw(
    model: GPT,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    device_type: str,
    settings: OptimSettings,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101): torch's own, but for a model with tables, and on a CPU, where the
    same kernel is to be had without loading torch's compiler, which takes two seconds."""
    groups, fused = parameter_groups(model, weight_decay, betas, settings), device_type in FUSED_DEVICES
    if device_type == "cpu" or any(group["role"] == "table" for group in groups):
        return MuonAdamW(groups, learning_rate, fused)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)


def muon(
    model: GPT,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    device_type: str,
    settings: OptimSettings,
) -> torch.optim.Optimizer:
    """Muon for the matrices in the blocks, AdamW for all else but tables (model/optim/muon.py)."""
    groups = parameter_groups(model, weight_decay, betas, settings)
    names = {p: name for name, p in model.named_parameters()}
    for group in groups:
        if group["role"] == "matrix":
            own = {"momentum": settings.momentum, "normuon": settings.normuon, "cautious": settings.cautious}
            parts = [matrices_in(names[p], model.shape.activation) for p in group["params"]]
            group |= {"algorithm": "muon", "peak_momentum": settings.momentum, "parts": parts, **own}
    return MuonAdamW(groups, learning_rate, fused=device_type in FUSED_DEVICES)


BUILDERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": muon}


def configure_optimizers(
    model: GPT,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    device_type: str,
    settings: OptimSettings = ADAMW,
) -> torch.optim.Optimizer:
    """The optimizer `settings.name` for `model`, whose parameters are already on `device_type` ("cuda", "cpu", ...).

    `learning_rate` is the peak; `set_schedule` moves it from step to step.
    """
    return BUILDERS[settings.name](model, learning_rate, weight_decay, tuple(betas), device_type, settings)


def clipped_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Those whose gradients are clipped. Tables are not: their steps have the same size whatever the gradient's, and a sparse
    gradient has no norm yet."""
    return [p for group in optimizer.param_groups if group["role"] != "table" for p in group["params"]]


def set_schedule(optimizer: torch.optim.Optimizer, learning_rate: float, progress: float) -> None:
    """Give each group `learning_rate` times its own `lr_scale`, and Muon its momentum at a share of the budget."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        if "peak_momentum" in group:
            group["momentum"] = momentum_at(progress, group["peak_momentum"])
