"""Checks the command line before Hydra parses it, so that all problems are reported together."""

from __future__ import annotations

import difflib
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from cli.compose import group_choices, groups
from cli.validate import find_problems
from common.errors import UserError
from common.json_io import mapping
from common.redaction import find_leaked_secrets
from config import CONF, SCRIPTS, closest, leaves, removal_message


def check_command_line(script: str) -> None:
    """Raise UserError with every problem of the command line; Hydra itself would stop at the first.

    Problems are unknown options, values of the wrong type and invalid values of the other options.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if secrets := find_leaked_secrets((argument.split("=")[0], argument) for argument in sys.argv[1:]):
        raise UserError(*secrets)
    arguments = flags_of(sys.argv[1:])
    _check_flags(arguments)
    if arguments.shell_completion:  # its arguments, install=SHELL and query=SHELL, are not options
        if "COMP_LINE" not in os.environ and any(each.startswith("query=") for each in arguments.overrides):
            raise UserError(
                "--shell-completion query= is for the shell to call; write install=bash (zsh, fish) or uninstall="
            )
        return
    parser = OverridesParser.create()
    valid: list[str] = []
    problems: list[str] = []
    for text in arguments.overrides:
        try:
            override = parser.parse_override(text)
        except (HydraException, ValueError, RecursionError):  # ValueError: a number with thousands of digits
            example = "'data.path=\"a=b.txt\"'"
            problems.append(f"{text!r} is not KEY=VALUE; quote values with special characters, e.g. {example}")
            continue
        key = str(override.key_or_group)
        if key.startswith("hydra"):
            continue
        if problem := _override_problem(SCRIPTS[script], text, override, key):
            problems.append(problem)
        else:
            valid.append(text)
    if problems and arguments.config_name is None and arguments.config_dir is None:
        problems += _problems_in_values(script, valid)
    if problems:
        raise UserError(*problems)


def flags_of(arguments: list[str]) -> Any:
    """Parse a command line into Hydra's flags and overrides. Raises UserError for an unknown flag."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _raise_for_flags  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def names_several(flags: Any) -> bool:
    """Whether a command line asks for more than one plan: by -m, a list of budgets, or the file of a sweep."""
    if flags.multirun or any(text.startswith("budget.") and "," in text for text in flags.overrides):
        return True
    if flags.config_name is None or "hydra.mode=RUN" in flags.overrides:
        return False
    return str(mapping(_primary_config(flags).get("hydra")).get("mode")) == "MULTIRUN"


def chooses_corpus(flags: Any) -> bool:
    """Whether the file that -cn names sets an option of the corpus or chooses a corpus. It is not read with its defaults."""
    if flags.config_name is None:
        return False
    content = _primary_config(flags)
    params = mapping(mapping(mapping(content.get("hydra")).get("sweeper")).get("params"))
    chosen = [key for each in content.get("defaults") or [] if isinstance(each, dict) for key in each]
    options = [*content, *params, *(str(key).removeprefix("override ").removeprefix("/") for key in chosen)]
    return any(str(key) == "data" or str(key).startswith("data.") for key in options)


def _primary_config(flags: Any) -> dict[Any, Any]:
    """The content of the file that -cn names; empty if it cannot be read, because Hydra reports the error."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(flags.config_dir or CONF) / f"{flags.config_name.removesuffix('.yaml')}.yaml"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, YAMLError, OmegaConfBaseException):
        return {}
    return content if isinstance(content, dict) else {}


def _raise_for_flags(message: str) -> NoReturn:
    """Replaces argparse's `error`, which would print the usage of Hydra's command."""
    split_overrides = message.startswith("unrecognized arguments: ") and "=" in message and " -" not in message
    hint = "options are KEY=VALUE (see `--help`); for Hydra's flags see --hydra-help"
    if split_overrides:
        hint = "flags (-m, -cd, -cn) go before or after all KEY=VALUE, not between them"
    raise UserError(f"{message}; {hint}")


def _check_flags(arguments: Any) -> None:
    """Raise UserError for flags that make Hydra fail with a traceback, and for the one that makes it unpickle a file."""
    modes = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{mode.replace('_', '-')}" for mode in modes if getattr(arguments, mode)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} cannot be combined; give one of them")
    if arguments.resolve and not arguments.cfg:
        raise UserError("--resolve only affects the output of --cfg; add --cfg job")
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun reads a pickle, which can run any code; repeat the run's command instead")


def _problems_in_values(script: str, overrides: list[str]) -> list[str]:
    """The invalid values among overrides that parse and name an option."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return find_problems(OmegaConf.to_object(compose(script, overrides)))
    except (HydraException, OmegaConfBaseException):
        return []


def _override_problem(schema: type, text: str, override: Any, key: str) -> str | None:
    """The problem with one override, or None."""
    named = groups() if schema is SCRIPTS["config"] else set()  # the other scripts have no config groups
    options = {name: option for name, option, _ in leaves(schema)}
    values = [_unquoted(value) for value in _values_of(override)]
    if override.is_add() or override.is_delete() or override.is_force_add():
        return f"{text!r} adds or removes an option; options can only be set: write {key}=VALUE"
    if key in named and key not in options:
        choices = group_choices(key)
        unknown = [value for value in values if str(value) not in choices]
        if unknown:
            return f"{key}={unknown[0]} is not known; allowed: {', '.join(choices)}{closest(unknown[0], choices)}"
        return None
    if key not in options and (message := removal_message(key)):
        return message
    if key not in options:
        near = difflib.get_close_matches(key, [*named, *options], n=1) or [n for n in options if n.endswith(f".{key}")]
        return f"{key} is not an option{f'; did you mean {near[0]}?' if near else ''}; `--help all` lists them"
    for value in values:
        if not _fits(schema, key, value):
            return f"{key}={value} has the wrong type ({options[key].help})"
    return None


def _values_of(override: Any) -> list[Any]:
    """The values that an override sets: one, or several in a sweep. A range gives its ends, a glob nothing."""
    value = override.value()
    if override.is_interval_sweep():
        return [value.start, value.end]
    if override.is_choice_sweep():
        return list(getattr(value, "list", []))
    if override.is_range_sweep():
        return [bound for bound in (value.start, value.stop) if bound is not None]
    return [value]


def _fits(schema: type, key: str, value: Any) -> bool:
    """Whether `value` has the type of the option `key`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(value, str) and "${" in value:
        return True  # an interpolation, which Hydra resolves and checks
    try:
        OmegaConf.update(_structured(schema), key, value)
    except (OmegaConfBaseException, ValueError, OverflowError):  # OverflowError: too large for a float
        return False
    return True


@cache
def _structured(schema: type) -> Any:
    """The schema as an OmegaConf object, which takes tens of milliseconds; `_fits` tries values on it."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def _unquoted(value: Any) -> Any:
    """A parsed value without its quotes."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, list):
        return [_unquoted(entry) for entry in value]
    return value.text if isinstance(value, QuotedString) else value
