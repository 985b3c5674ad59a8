"""Training with torch.compile: the whole model or block by block, and the state of the compiler's cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.gpt import GPT


def compile_for_training(objective: Callable[[GPT, Any], Tensor], model: GPT, how: str) -> Callable[[Any], Tensor]:
    """Return a function that computes the loss of a batch under `objective`.

    `how` is "off" (eager mode), "on" (objective and model compiled as a whole) or "regional" (each block compiled; all
    blocks have the same code and share one compilation, see
    docs.pytorch.org/tutorials/recipes/regional_compilation.html).

    `model` itself is not wrapped, so checkpoints keep its parameter names, and evaluation, which uses other shapes and
    modes, compiles nothing.
    """
    if how == "on":
        return partial(torch.compile(objective), model)
    if model.wte.weight.device.type == "cpu":
        model.use_sparse_gradients()
    if how == "off":
        return partial(objective, model)
    blocks = nn.ModuleList([cast(nn.Module, torch.compile(block)) for block in model.blocks])
    compiled = copy.copy(model)  # a shallow copy: it shares the weights
    compiled._modules = {**model._modules, "blocks": blocks}
    return partial(objective, compiled)


def cache_state() -> str:
    """Return "warm" if the compiler's disk cache held everything that this process compiled, else "cold".

    The cache is in TORCHINDUCTOR_CACHE_DIR, by default in the system's folder for temporary files.
    """
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    missed = inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"]
    return "warm" if inductor["fxgraph_cache_hit"] and not missed else "cold"
