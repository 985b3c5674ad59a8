"""Initialisations of a run: where its first weights come from. A new one is a function and a line in INITIALIZERS."""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.gpt import GPT
from model.shape import Shape

Initializer = Callable[[Shape, int, torch.device], GPT]


def scratch(shape: Shape, seed: int, device: torch.device) -> GPT:
    """Random weights by `shape.initialisation`, drawn on `device`. Raises UserError for a shape that makes no model."""
    torch.manual_seed(seed)
    with device:
        return GPT(shape)


INITIALIZERS: dict[str, Initializer] = {"scratch": scratch}
