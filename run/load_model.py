"""Loads the model of a run, finished or not: for evaluate.py and sample.py, and as the start of another run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.errors import UserError
from common.safe_read import member
from data.tokenizers.tokenizer import Tokenizer
from model.config import Shape
from model.gpt import GPT
from run.checkpoint import check_shapes, load_weights
from run.checkpoint_state import file_hash
from run.saved_model import ModelPlace, SavedModel, checkpointed_models, final_model, find_model, shape_of

# A run that is training replaces its checkpoints, perhaps just while one is read.
ATTEMPTS, WAIT_S = 5, 0.2


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with its tokenizer.

    Attributes:
        about: The content of model.json, or the same keys for a checkpoint.
        note: One line that says how far the run was; empty for the model of a finished run.
    """

    model: GPT
    tokenizer: Tokenizer
    about: dict[str, Any]
    note: str


def load_model(folder: str, device: torch.device, option: str = "checkpoint") -> LoadedModel:
    """Load the model of the run in `folder` (outputs/NAME, or a checkpoint or file in it) onto `device`.

    Of a run that is not finished, the newest intact checkpoint is loaded. `option` names the option in messages. Raises
    UserError in one line for anything but a complete, undamaged model.
    """
    place = find_model(folder, option)
    return _loaded(final_model(place), device) if place.finished else _newest_intact(place, device)


def _newest_intact(place: ModelPlace, device: torch.device) -> LoadedModel:
    """The model of the newest checkpoint that can be read."""
    problem = UserError(f"{place.given} has no intact checkpoint; repeat the run's command")
    for _ in range(ATTEMPTS):
        listed = place.checkpoints
        for saved in checkpointed_models(place):
            try:
                return _loaded(saved, device)
            except UserError as error:
                problem = error
        if listed == place.checkpoints:  # nothing was replaced meanwhile: what is left is damaged
            break
        threading.Event().wait(WAIT_S)
    raise problem


def _loaded(saved: SavedModel, device: torch.device) -> LoadedModel:
    """Verify and load a saved model."""
    weights, about = saved.weights, saved.about
    try:
        if about.get("sha256") != file_hash(member(weights.parent, weights.name)):
            raise UserError(
                f"{weights} is damaged: its checksum is not the one recorded with it; restore it from a copy"
            )
        tensors = load_file(weights, device=str(device))
        shape = _checked_shape(saved, tensors)
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights.parent} cannot be read as a model ({error})") from None
    tokenizer = Tokenizer.load(saved.tokenizer)
    if about.get("tokenizer_fingerprint", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise UserError(f"{saved.tokenizer} is not the tokenizer of this model; restore it from a copy")
    if tokenizer.n_vocab > shape.vocab_size:
        raise UserError(
            f"{saved.tokenizer.parent} holds a tokenizer of {tokenizer.n_vocab} ids and a model of {shape.vocab_size}"
        )
    with device:
        model = GPT(shape)
    load_weights(model, tensors, str(weights))
    return LoadedModel(model.eval(), tokenizer, about, saved.note)


def _checked_shape(saved: SavedModel, tensors: dict[str, torch.Tensor]) -> Shape:
    """The recorded shape. It is checked against the tensors before the model is built, as it could ask for terabytes."""
    shape = shape_of(saved.about)
    if shape.n_layer > len(tensors):
        raise ValueError("its shape does not match the weights")
    if shape.problems() or shape.parameters() != sum(tensor.numel() for tensor in tensors.values()):
        with torch.device("meta"):  # names what is wrong; it imports torch's compiler, which takes seconds
            check_shapes(GPT(shape), tensors, str(saved.weights))
    return shape
