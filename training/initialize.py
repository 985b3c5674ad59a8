"""Initialisations of a run: where its first weights come from. A new one is a function and a line in INITIALIZERS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from budget.planner.plan import Plan
from config import template, with_eot
from model.config import Shape
from model.gpt import GPT
from training.context import Session

if TYPE_CHECKING:
    from data.shards import Corpus
    from device.device import Device


def initial_model(session: Session, corpus: Corpus, device: Device, plan: Plan) -> GPT:
    """The model of a plan with its first weights."""

    config = session.config
    shape = replace(plan.sized(template(config)), dropout=plan.dropout)
    shape = with_eot(config, shape, corpus.tokenizer.eot)
    # Weights and two moments in float32; of these two checkpoints, one being written, and the finished weights.
    session.run.require_space(4 * 3 * shape.parameters() * 4)
    return INITIALIZERS["scratch"](shape, config.seed, device.torch_device)


Initializer = Callable[[Shape, int, torch.device], GPT]


def scratch(shape: Shape, seed: int, device: torch.device) -> GPT:
    """Random weights by `shape.initialisation`, drawn on `device`. Raises UserError for a shape that makes no model."""
    torch.manual_seed(seed)
    with device:
        return GPT(shape)


INITIALIZERS: dict[str, Initializer] = {"scratch": scratch}
