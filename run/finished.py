"""A finished run's model, read back: what evaluate.py and sample.py start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from data.tokenizer import Tokenizer
from errors import UserError
from model.gpt import GPT
from model.shape import Shape
from run.checkpoint import file_hash, load_weights
from run.record import read_json


@dataclass(frozen=True)
class Finished:
    """A model with its tokenizer; `about` is model.json."""

    model: GPT
    tokenizer: Tokenizer
    about: dict[str, Any]


def load_finished(folder: str, device: torch.device) -> Finished:
    """Load outputs/NAME (or the path of a file in it). Raises UserError in one line for anything that is not a
    finished, undamaged model."""
    path = Path(folder)
    path = path.parent if path.is_file() else path
    weights, about = path / "model.safetensors", read_json(path / "model.json")
    if not weights.exists() or about is None:
        hint = "; its run is not finished: type its command again" if (path / "checkpoint").exists() else ""
        raise UserError(f"checkpoint={folder} holds no finished model (model.safetensors and model.json){hint}")
    if about.get("sha256") != file_hash(weights):
        raise UserError(f"{weights} is damaged: its checksum is not the one in model.json; restore it from a copy")
    try:
        shape = Shape.from_dict(about["shape"])
        tensors = load_file(weights, device=str(device))
    except (KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a model ({error})") from None
    with device:
        model = GPT(shape)
    load_weights(model, tensors, str(weights))
    return Finished(model.eval(), Tokenizer.load(path / "tokenizer.json"), about)
