"""Score a nanoGPT checkpoint on windows: python nanogpt_loss.py CHECKOUT CHECKPOINT WINDOWS.npz"""

import sys

import torch
from scoring import score

sys.path.insert(0, sys.argv[1])
from model import GPT, GPTConfig

saved = torch.load(sys.argv[2], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
# A compiled model saves its parameters with a prefix.
model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
model.eval()
score(lambda x, y: model(x, y)[1], sys.argv[3])
