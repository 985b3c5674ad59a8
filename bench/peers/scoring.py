"""Scoring for the *_loss.py in this folder, which run in their own processes with a peer's modules."""

import json
from collections.abc import Callable

import numpy as np
import torch

BATCH = 64  # windows at once


def score(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], windows: str) -> None:
    """Print a JSON object with the sum of nats and the number of tokens.

    `loss`: the peer's function of inputs and targets, in nats per target. `windows`: an .npz with inputs x and targets y, int64
    (windows, tokens); a target of -1 is ignored."""
    with np.load(windows, allow_pickle=False) as found:
        x, y = torch.from_numpy(found["x"]), torch.from_numpy(found["y"])
    nats = 0.0
    with torch.inference_mode():
        for xs, ys in zip(x.split(BATCH), y.split(BATCH), strict=True):
            nats += loss(xs, ys).item() * int((ys != -1).sum())
    print(json.dumps({"nats": nats, "tokens": int((y != -1).sum())}))
