"""torch.compile, of a whole model or of its blocks, and whether it found its work done already."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

from model.gpt import GPT


def for_training(model: GPT, how: str) -> nn.Module:
    """The model to train with: as it is written ("off"), compiled as a whole ("on") or block by block ("regional"). Blocks
    have the same code, so that one is compiled for all of them (docs.pytorch.org/tutorials/recipes/regional_compilation.html).

    Compiled it is a second object on the same weights: checkpoints never see a wrapper's names, and an evaluation, whose
    shapes and mode are others, compiles nothing.
    """
    if how == "on":
        return cast(nn.Module, torch.compile(model))
    if model.wte.weight.device.type == "cpu":
        model.touch_rows_only()
    if how == "off":
        return model
    blocks = nn.ModuleList([cast(nn.Module, torch.compile(block)) for block in model.blocks])
    twin = copy.copy(model)
    twin._modules = {**model._modules, "blocks": blocks}
    return twin


def cache_state() -> str:
    """How the compiler found its cache on the disk, which is in TORCHINDUCTOR_CACHE_DIR or below the system's folder for
    temporary files: "warm" where it held all that this process compiled, "cold" where something had to be made."""
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    missed = found["fxgraph_cache_miss"] + found["fxgraph_cache_bypass"]
    return "warm" if found["fxgraph_cache_hit"] and not missed else "cold"
