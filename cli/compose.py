"""From what Hydra composed to a checked configuration."""

from __future__ import annotations

from typing import Any

from cli.validate import mistakes
from common.errors import UserError
from common.redaction import find_leaked_secrets
from config import CONF, SCRIPTS, leaves, removed_line
from device.specs import BY_NAME

# -- composed configurations -------------------------------------------------------------------------------------------


def options_of(composed: Any) -> Any:
    """The checked configuration of what Hydra composed; raises UserError with every mistake."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    plain = composed.copy()
    with open_dict(plain):
        plain.pop("hydra", None)
    try:
        config = OmegaConf.to_object(plain)
        OmegaConf.structured(config)  # a list that stands for another value is looked at nowhere else
    except OmegaConfBaseException as error:  # of a value that stands for another one
        raise as_user_error(error) from None
    if wrong := mistakes(config) + find_leaked_secrets((name, value) for name, _, value in leaves(config)):
        raise UserError(*wrong)
    return config


def as_user_error(error: BaseException) -> UserError:
    """What Hydra or OmegaConf refused, in one line; our own line where it was a resolver of ours, or an option that was
    removed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        if gone := removed_line(str(getattr(cause, "full_key", ""))):
            return UserError(gone)
        cause = cause.__cause__ or cause.__context__  # OmegaConf takes the first one away
    return UserError(" ".join(str(error).split()))


def register_schemas() -> None:
    """Tell Hydra the options of every script, and the device table."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for name, schema in SCRIPTS.items():
        store.store(name=f"{name}_schema", node=schema)
    for device in BY_NAME:
        store.store(group="device", name=device, node={"name": device})


def groups() -> set[str]:
    """Groups of options under conf/; conf/hydra/ holds choices of Hydra's own."""
    return {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"}


def package_of(group: str) -> str:
    """The options that the named choices of a group set: its own, unless its files name another package."""
    first = min((CONF / group).glob("*.yaml")).read_text().partition("\n")[0]
    return first.removeprefix("# @package ") if first.startswith("# @package ") else group


def group_choices(group: str) -> list[str]:
    """Named choices of a group: the files of conf/GROUP, and for devices the table."""
    files = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return files + ([name for name in BY_NAME if name not in files] if group == "device" else [])


def as_yaml(config: Any) -> str:
    """The resolved configuration as YAML, with the names of the command line."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))
