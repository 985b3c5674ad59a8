"""Nats that a nanoGPT checkpoint needs for given windows: python nanogpt_loss.py CHECKOUT CHECKPOINT WINDOWS.npz

Prints one JSON object: nats in all and tokens. Inputs are x, targets y with -1 for none, int64 (windows, tokens).
"""

import json
import sys

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
from model import GPT, GPTConfig

BATCH = 64
saved = torch.load(sys.argv[2], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
with np.load(sys.argv[3]) as windows:
    x, y = torch.from_numpy(windows["x"]), torch.from_numpy(windows["y"])
nats = 0.0
with torch.inference_mode():
    for xs, ys in zip(x.split(BATCH), y.split(BATCH), strict=True):
        nats += model(xs, ys)[1].item() * int((ys != -1).sum())
print(json.dumps({"nats": nats, "tokens": int((y != -1).sum())}))
