"""Where a run's first weights come from. A new initialisation is a function and a line in INITIALIZERS."""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.config import Shape
from model.gpt import GPT

Initializer = Callable[[Shape, int, torch.device], GPT]


def scratch(shape: Shape, seed: int, device: torch.device) -> GPT:
    """Random weights by `shape.initialisation`, drawn on `device`. Raises UserError for a shape that makes no model."""
    torch.manual_seed(seed)
    with device:
        return GPT(shape)


INITIALIZERS: dict[str, Initializer] = {"scratch": scratch}
