"""Evaluation mode for the length of a with block, and the dtype in which a model computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn off dropout and gradients inside the with block, then restore the model's mode, also after an exception."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with `x`: autocast's if it is enabled on the device of `x`, else that of `x`."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
