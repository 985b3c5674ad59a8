"""Score an llm-baselines checkpoint on windows. The options are those that it was trained with.

python llm_baselines_loss.py CHECKOUT CHECKPOINT WINDOWS.npz [--KEY=VALUE ...]
"""

import argparse
import sys
from pathlib import Path

import tiktoken
import torch
from scoring import score

sys.path.insert(0, str(Path(sys.argv[1]) / "src"))
from models.utils import get_model

from config import parse_args_with_format

tiktoken.get_encoding = lambda name: None  # every model loads it, but it is not used here
model = get_model(parse_args_with_format("base", argparse.ArgumentParser(), sys.argv[4:], None))
model.load_state_dict(torch.load(sys.argv[2], map_location="cpu", weights_only=True)["model"])
model.eval()
score(lambda x, y: model(x, targets=y)["loss"], sys.argv[3])
