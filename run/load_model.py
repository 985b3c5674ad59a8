"""Loads the model of a finished run, for evaluate.py and sample.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.checksum import verify_checksum
from common.errors import UserError
from common.json_io import read_json
from common.safe_read import is_count, member
from data.tokenizer import Tokenizer
from model.config import Shape
from model.gpt import GPT
from run.checkpoint import check_shapes, file_hash, load_weights

# Tokens. No tensor of a rotary model shows its context length, which sets the size of its tables.
LONGEST_BLOCK = 1 << 20


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with its tokenizer; `about` is the content of model.json."""

    model: GPT
    tokenizer: Tokenizer
    about: dict[str, Any]


def load_model(folder: str, device: torch.device) -> LoadedModel:
    """Load the model in `folder` (outputs/NAME, or a file in it) onto `device`.

    Raises UserError in one line for anything but a complete, undamaged model.
    """
    path = Path(folder)
    path = path.parent if path.is_file() else path
    weights, about = path / "model.safetensors", read_json(path / "model.json")
    if not weights.exists() or not isinstance(about, dict):
        hint = "; its run is not finished, repeat its command" if (path / "checkpoint").exists() else ""
        raise UserError(f"checkpoint={folder} holds no finished model (model.safetensors and model.json){hint}")
    try:
        about = verify_checksum(about)
    except ValueError as error:
        raise UserError(f"{path / 'model.json'} is damaged ({error}); restore it from a copy") from None
    try:
        if about.get("sha256") != file_hash(member(path, weights.name)):
            raise UserError(f"{weights} is damaged: its checksum is not the one in model.json; restore it from a copy")
        tensors = load_file(weights, device=str(device))
        shape = _shape(about["shape"], tensors, str(weights))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a model ({error})") from None
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    if about.get("tokenizer_fingerprint", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise UserError(f"{path / 'tokenizer.json'} is not the tokenizer of this model; restore it from a copy")
    if tokenizer.n_vocab > shape.vocab_size:
        raise UserError(f"{path} holds a tokenizer of {tokenizer.n_vocab} ids and a model of {shape.vocab_size}")
    with device:
        model = GPT(shape)
    load_weights(model, tensors, str(weights))
    return LoadedModel(model.eval(), tokenizer, about)


def _shape(content: Any, tensors: dict[str, torch.Tensor], origin: str) -> Shape:
    """The shape in model.json. It is checked against the tensors before the model is built, as it could ask for terabytes."""
    shape = Shape.from_dict(content)
    sizes = (shape.n_layer, shape.n_head, shape.n_embd, shape.vocab_size, shape.bigram_rows, shape.ffn_hidden or 0)
    if not all(map(is_count, sizes)) or shape.n_layer > len(tensors) or not is_count(shape.block_size, LONGEST_BLOCK):
        raise ValueError("the shape in model.json does not match the weights")
    if problems := shape.problems():
        raise ValueError(problems[0])
    with torch.device("meta"):
        check_shapes(GPT(shape), tensors, origin)
    return shape
