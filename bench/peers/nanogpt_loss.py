"""Nats that a nanoGPT checkpoint needs for given windows: python nanogpt_loss.py CHECKOUT CHECKPOINT WINDOWS.npz"""

import sys

import torch
from scoring import score

sys.path.insert(0, sys.argv[1])
from model import GPT, GPTConfig

saved = torch.load(sys.argv[2], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
score(lambda x, y: model(x, y)[1], sys.argv[3])
