"""Nats that an llm-baselines checkpoint needs for given windows:
python llm_baselines_loss.py CHECKOUT CHECKPOINT WINDOWS.npz [--KEY=VALUE ...], with the options that it was trained with
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

tiktoken.get_encoding = lambda name: None  # asked for by every model, never used here
model = get_model(parse_args_with_format("base", argparse.ArgumentParser(), sys.argv[4:], None))
model.load_state_dict(torch.load(sys.argv[2], map_location="cpu", weights_only=True)["model"])
model.eval()
score(lambda x, y: model(x, targets=y)["loss"], sys.argv[3])
