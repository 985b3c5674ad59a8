"""The model that a run starts from, if its weights are not random: it decides the architecture and the tokenizer.

To add a source, write a function and add it to MODEL_SOURCES; the entry of the same name in WEIGHT_SOURCES
(training/initialize.py) loads its weights. Imports no torch, so that plan.py answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from common.errors import UserError
from common.json_io import mapping
from config import CONF, Config, DataConfig, InitConfig, ModelConfig
from data.tokenizers.tokenizer import Tokenizer, short_name
from model.config import Shape
from run.directory import RunDirectory
from run.saved_model import find_model, saved_model, shape_of
from training.start import read_start


@dataclass(frozen=True)
class InitialModel:
    """The shape and the tokenizer of a model that exists already."""

    shape: Shape
    tokenizer: Tokenizer


def no_model(init: InitConfig) -> None:
    """Return None for init=scratch: the options and the plan decide the architecture."""


def model_of_run(init: InitConfig) -> InitialModel:
    """The model of another run. Raises UserError in one line if it is missing."""
    saved = saved_model(find_model(str(init.checkpoint), "init.checkpoint"))
    try:
        return InitialModel(shape_of(saved.about), Tokenizer.load(saved.tokenizer))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"init.checkpoint={init.checkpoint} cannot be read as a model ({error})") from None


MODEL_SOURCES: dict[str, Callable[[InitConfig], InitialModel | None]] = {"scratch": no_model, "run": model_of_run}


def initial_model(config: Config, run: RunDirectory | None = None) -> InitialModel | None:
    """The model that a run starts from; None if its weights are random.

    A resumed run has what is needed in its folder `run`: the model that it started from may be gone.
    """
    start = read_start(run) if run else {}
    if run and mapping(start.get("init")):
        try:
            return InitialModel(shape_of(start), Tokenizer.load(run.tokenizer))
        except (UserError, KeyError, TypeError, AttributeError, ValueError):
            pass  # damaged: look at the source again
    return MODEL_SOURCES[config.init.source](config.init)


def with_model(config: Config, initial: InitialModel | None) -> Config:
    """The options with the architecture and the tokenizer of the initial model.

    The dropout may differ, and with rotary positions the context length. Raises UserError, one line for each other option
    that asks for something else.
    """
    if initial is None:
        return config
    shape, tokenizer = initial.shape, initial.tokenizer.name
    theirs = {leaf.name: getattr(shape, leaf.name) for leaf in fields(Shape) if leaf.name != "eot"}
    theirs["document_mask"] = shape.eot is not None
    free = {"dropout"}
    if shape.position == "rotary" and config.model.block_size is not None:
        free.add("block_size")
    whose = f"the model of init.checkpoint={config.init.checkpoint}"
    problems = [
        f"model.{name}={getattr(config.model, name)}, but {whose} has {value}; leave the option out"
        for name, value in theirs.items()
        if name not in free
        and _differs(name, getattr(config.model, name), shape.hidden if name == "ffn_hidden" else value)
    ]
    given = config.data.tokenizer
    if given not in default_tokenizers(config.data.source) and short_name(given) != tokenizer:
        change = "leave the option out: the text is prepared with the tokenizer of the model"
        if config.data.source == "tokens":
            change = "give text instead of token files, or leave the option out if that tokenizer wrote them"
        problems.append(f"data.tokenizer={given}, but {whose} has {tokenizer}; {change}")
    if problems:
        raise UserError(*problems)
    taken = {name: value for name, value in theirs.items() if name not in free}
    model, data = replace(config.model, **taken), replace(config.data, tokenizer=tokenizer)
    return replace(config, model=model, data=data)


def _differs(name: str, given: Any, value: Any) -> bool:
    """Whether an option was given, as far as its value shows, and is not the model's."""
    return given != getattr(ModelConfig(), name) and given != value


def default_tokenizers(source: str) -> set[str]:
    """The tokenizers that data.tokenizer has for a source of text if it is not given."""
    presets = [mapping(yaml.safe_load(path.read_text())) for path in (CONF / "data").glob("*.yaml")]
    named = [str(preset["tokenizer"]) for preset in presets if preset.get("source") == source and "tokenizer" in preset]
    return {DataConfig().tokenizer, *named}
