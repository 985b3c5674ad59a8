"""The first weights of a run. To add a source of weights, write a function and add it to WEIGHT_SOURCES."""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.config import Shape
from model.gpt import GPT

WeightSource = Callable[[Shape, int, torch.device], GPT]


def scratch(shape: Shape, seed: int, device: torch.device) -> GPT:
    """Draw random weights on `device` by `shape.initialisation`. Raises UserError if the sizes do not fit together."""
    torch.manual_seed(seed)
    with device:
        return GPT(shape)


WEIGHT_SOURCES: dict[str, WeightSource] = {"scratch": scratch}
