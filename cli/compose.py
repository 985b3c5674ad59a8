"""Turns a configuration that Hydra composed into checked dataclasses, and Hydra's errors into one line."""

from __future__ import annotations

import re
from typing import Any

from cli.hints import unknown_option
from cli.mix import resolve_mix
from cli.tasks import resolve_tasks
from cli.validate import find_problems
from common.errors import UserError
from common.redaction import find_leaked_secrets
from config import SCRIPTS, Config, EvaluateConfig, leaves, removal_message
from device.specs import BY_NAME

FILE = re.compile(r"In '([^']+)': ")


def checked_config(composed: Any) -> Any:
    """Convert a composed configuration to its dataclass. Raises UserError with every invalid value."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    plain = composed.copy()
    with open_dict(plain):
        plain.pop("hydra", None)
    try:
        config = OmegaConf.to_object(plain)
        OmegaConf.structured(config)  # checks interpolated lists, which to_object does not
    except OmegaConfBaseException as error:  # from an interpolation
        raise as_user_error(error) from None
    problems = []
    if isinstance(config, Config):
        problems += [*resolve_mix(config), *resolve_tasks(config.eval, config.task, "eval.tasks")]
    elif isinstance(config, EvaluateConfig):
        problems += resolve_tasks(config, config.task, "tasks")
    problems += find_problems(config) + find_leaked_secrets((name, value) for name, _, value in leaves(config))
    if problems:
        raise UserError(*problems)
    return config


def as_user_error(error: BaseException) -> UserError:
    """An error of Hydra or OmegaConf as one line.

    If its cause is a UserError of one of our resolvers, an unknown or removed option, or a quantity in a wrong unit, the
    message says that instead.
    """
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    from cli.nodes import BadQuantity, first_line

    place = FILE.match(str(error))  # Hydra's message begins with the file that it was merging
    head = f"{place[1]}.yaml: " if place else ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        key = str(getattr(cause, "full_key", ""))
        if isinstance(cause, BadQuantity):
            return UserError(f"{head}{key}={cause.value}: {first_line(cause)}")
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
            if message := removal_message(key):
                return UserError(message)
            if place:
                return UserError(f"{head}{unknown_option(SCRIPTS['config'], key)[0]}")
        cause = cause.__cause__ or cause.__context__  # OmegaConf clears __cause__
    return UserError(" ".join(str(error).split()))


def register_schemas() -> None:
    """Register the options of every script and the device table with Hydra."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from cli.nodes import structured

    store = ConfigStore.instance()
    for script, schema in SCRIPTS.items():
        node = structured(schema)
        for name, _, value in leaves(schema()):
            if value == {}:
                OmegaConf.set_struct(OmegaConf.select(node, name), False)  # its keys are the user's
        store.store(name=f"{script}_schema", node=node)
    for device in BY_NAME:
        store.store(group="device", name=device, node={"name": device})


def as_yaml(config: Any) -> str:
    """A configuration as YAML, with the option names of the command line."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))
