"""torch.compile, of a whole model or of its blocks, and whether it found its work done already."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.gpt import GPT


def compile_for_training(objective: Callable[[GPT, Any], Tensor], model: GPT, how: str) -> Callable[[Any], Tensor]:
    """The loss of a batch under `objective`, in eager mode ("off"), compiled as a whole ("on"), or with each block of the
    model compiled ("regional"). Blocks have the same code, so one compilation serves them all
    (docs.pytorch.org/tutorials/recipes/regional_compilation.html).

    `model` itself is never wrapped: checkpoints see its own parameter names, and an evaluation, which has other shapes
    and another mode, compiles nothing.
    """
    if how == "on":
        return partial(torch.compile(objective), model)
    if model.wte.weight.device.type == "cpu":
        model.use_sparse_gradients()
    if how == "off":
        return partial(objective, model)
    blocks = nn.ModuleList([cast(nn.Module, torch.compile(block)) for block in model.blocks])
    twin = copy.copy(model)  # a second object on the same weights
    twin._modules = {**model._modules, "blocks": blocks}
    return partial(objective, twin)


def cache_state() -> str:
    """How the compiler found its cache on the disk, which is in TORCHINDUCTOR_CACHE_DIR or below the system's folder for
    temporary files: "warm" where it held all that this process compiled, "cold" where something had to be made."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    missed = found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"]
    return "warm" if found["fxgraph_cache_hit"] and not missed else "cold"
