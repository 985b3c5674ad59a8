"""What the *_loss.py beside this file have in common: they run in processes of their own, with a peer's modules."""

import json
from collections.abc import Callable

import numpy as np
import torch

BATCH = 64  # windows at once


def score(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], windows: str) -> None:
    """Print one JSON object: nats in all and tokens. `loss`: nats per target of inputs and targets, the peer's own.
    windows: an .npz of inputs x and targets y, -1 for none, int64 (windows, tokens)."""
    with np.load(windows, allow_pickle=False) as found:
        x, y = torch.from_numpy(found["x"]), torch.from_numpy(found["y"])
    nats = 0.0
    with torch.inference_mode():
        for xs, ys in zip(x.split(BATCH), y.split(BATCH), strict=True):
            nats += loss(xs, ys).item() * int((ys != -1).sum())
    print(json.dumps({"nats": nats, "tokens": int((y != -1).sum())}))
