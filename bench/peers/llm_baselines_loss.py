"""Nats that an llm-baselines checkpoint needs for given windows:
python llm_baselines_loss.py CHECKOUT CHECKPOINT WINDOWS.npz [--KEY=VALUE ...], with the options that it was trained with

Prints one JSON object: nats in all and tokens. Inputs are x, targets y with -1 for none, int64 (windows, tokens).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import tiktoken
import torch

sys.path.insert(0, str(Path(sys.argv[1]) / "src"))
from models.utils import get_model

from config import parse_args_with_format

tiktoken.get_encoding = lambda name: None  # asked for by every model, never used here
BATCH = 64
model = get_model(parse_args_with_format("base", argparse.ArgumentParser(), sys.argv[4:], None))
model.load_state_dict(torch.load(sys.argv[2], map_location="cpu", weights_only=True)["model"])
model.eval()
with np.load(sys.argv[3]) as windows:
    x, y = torch.from_numpy(windows["x"]), torch.from_numpy(windows["y"])
nats = 0.0
with torch.inference_mode():
    for xs, ys in zip(x.split(BATCH), y.split(BATCH), strict=True):
        nats += model(xs, targets=ys)["loss"].item() * int((ys != -1).sum())
print(json.dumps({"nats": nats, "tokens": int((y != -1).sum())}))
