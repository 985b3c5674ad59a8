"""The first weights of a run. To add a source of weights, write a function and add it to WEIGHT_SOURCES; a source that also
decides the architecture needs an entry in MODEL_SOURCES of training/initial_model.py as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from config import Config
from model.config import Shape
from model.gpt import GPT
from run.checkpoint import load_weights
from run.load_model import load_model


@dataclass(frozen=True)
class FirstWeights:
    """A model with its first weights. `about` says where they are from, as in result.json; None: they are random."""

    model: GPT
    about: dict[str, Any] | None = None


WeightSource = Callable[[Shape, Config, torch.device], FirstWeights]


def scratch(shape: Shape, config: Config, device: torch.device) -> FirstWeights:
    """Draw random weights on `device` by `shape.initialisation`. Raises UserError if the sizes do not fit together."""
    torch.manual_seed(config.seed)
    with device:
        return FirstWeights(GPT(shape))


def from_run(shape: Shape, config: Config, device: torch.device) -> FirstWeights:
    """Load the weights of another run, the final ones or those of its newest checkpoint.

    Raises UserError if they are damaged, or of another shape than `shape`.
    """
    init = config.init
    found, model = load_model(str(init.checkpoint), device, "init.checkpoint"), scratch(shape, config, device).model
    load_weights(model, found.model.state_dict(), f"init.checkpoint={init.checkpoint}")
    about = {name: found.about.get(name) for name in ("steps", "tokens")}
    return FirstWeights(
        model, {"source": init.source, "checkpoint": init.checkpoint, "fingerprint": found.about["sha256"], **about}
    )


WEIGHT_SOURCES: dict[str, WeightSource] = {"scratch": scratch, "run": from_run}
