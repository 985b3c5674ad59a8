"""Turns a configuration that Hydra composed into checked dataclasses, and Hydra's errors into one line."""

from __future__ import annotations

from typing import Any

from cli.mix import resolve_mix
from cli.validate import find_problems
from common.errors import UserError
from common.redaction import find_leaked_secrets
from config import CONF, SCRIPTS, Config, leaves, removal_message
from device.specs import BY_NAME


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
    problems = resolve_mix(config) if isinstance(config, Config) else []
    problems += find_problems(config) + find_leaked_secrets((name, value) for name, _, value in leaves(config))
    if problems:
        raise UserError(*problems)
    return config


def as_user_error(error: BaseException) -> UserError:
    """An error of Hydra or OmegaConf as one line.

    If its cause is a UserError of one of our resolvers, or an option that was removed, that message is used instead.
    """
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        unknown_key = isinstance(cause, ConfigKeyError | ConfigAttributeError)
        if unknown_key and (message := removal_message(str(getattr(cause, "full_key", "")))):
            return UserError(message)
        cause = cause.__cause__ or cause.__context__  # OmegaConf clears __cause__
    return UserError(" ".join(str(error).split()))


def register_schemas() -> None:
    """Register the options of every script and the device table with Hydra."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    for name, schema in SCRIPTS.items():
        node = OmegaConf.structured(schema)
        if schema is Config:
            OmegaConf.set_struct(node.data.mix, False)  # its keys are the user's
        store.store(name=f"{name}_schema", node=node)
    for device in BY_NAME:
        store.store(group="device", name=device, node={"name": device})


def groups() -> set[str]:
    """Config groups under conf/, without conf/hydra/, which configures Hydra itself."""
    return {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"}


def package_of(group: str) -> str:
    """The group of options that a config group sets: the one of the same name unless its files name another package."""
    first = min((CONF / group).glob("*.yaml")).read_text().partition("\n")[0]
    return first.removeprefix("# @package ") if first.startswith("# @package ") else group


def group_choices(group: str) -> list[str]:
    """Named choices of a config group: the files in conf/GROUP, and for `device` also the device table."""
    files = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return files + ([name for name in BY_NAME if name not in files] if group == "device" else [])


def as_yaml(config: Any) -> str:
    """A configuration as YAML, with the option names of the command line."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))
