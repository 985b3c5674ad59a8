"""Checks the command line before Hydra sees it, so that every mistake is reported at once."""

from __future__ import annotations

import difflib
import sys
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from cli.compose import group_choices, groups
from cli.validate import mistakes
from common.errors import UserError
from common.redaction import find_leaked_secrets
from config import CONF, SCRIPTS, closest, leaves, removed_line

# -- checks of the command line ----------------------------------------------------------------------------------------


def check_command_line(script: str) -> None:
    """Refuse every override that names no option or has the wrong type, all of them together with the impossible values
    of the others, before Hydra stops at the first."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if secrets := find_leaked_secrets((argument.split("=")[0], argument) for argument in sys.argv[1:]):
        raise UserError(*secrets)
    arguments = flags_of(sys.argv[1:])
    _check_flags(arguments)
    if arguments.shell_completion:  # its words are install=SHELL, query=SHELL: not options
        return
    parser, good, wrong = OverridesParser.create(), [], []
    for text in arguments.overrides:
        try:
            override = parser.parse_override(text)
        except (HydraException, ValueError, RecursionError):  # ValueError: a number of thousands of digits
            wrong.append(f"{text!r} is not KEY=VALUE; quote values with special signs, e.g. 'data.path=\"a=b.txt\"'")
            continue
        key = str(override.key_or_group)
        if key.startswith("hydra"):
            continue
        problem = _override_mistake(SCRIPTS[script], text, override, key)
        if problem:
            wrong.append(problem)
        else:
            good.append(text)
    if wrong and arguments.config_name is None and arguments.config_dir is None:
        raise UserError(*wrong, *_mistakes_of(script, good))
    if wrong:
        raise UserError(*wrong)


def flags_of(arguments: list[str]) -> Any:
    """Hydra's flags and the overrides of a command line. Raises UserError."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse_flags  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def names_several(flags: Any) -> bool:
    """Whether a command line asks for more than one plan: with -m, a list of budgets, or the file of a sweep."""
    if flags.multirun or any(each.startswith("budget.") and "," in each for each in flags.overrides):
        return True
    if flags.config_name is None or "hydra.mode=RUN" in flags.overrides:
        return False
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(flags.config_dir or CONF) / f"{flags.config_name.removesuffix('.yaml')}.yaml"
    try:
        return str(OmegaConf.select(OmegaConf.load(path), "hydra.mode")) == "MULTIRUN"
    except (OSError, YAMLError, OmegaConfBaseException):
        return False  # Hydra will say what is wrong with it


def _refuse_flags(message: str) -> NoReturn:
    """What argparse calls instead of printing how a command that is not ours is used."""
    apart = message.startswith("unrecognized arguments: ") and "=" in message and " -" not in message
    hint = (
        "flags (-m, -cd, -cn) go before or after all KEY=VALUE, not between them"
        if apart
        else ("options are KEY=VALUE and `--help` lists them; Hydra's flags: --hydra-help")
    )
    raise UserError(f"{message}; {hint}")


def _check_flags(arguments: Any) -> None:
    """Refuse what Hydra would answer with a traceback, and its way to run what a file says that Python is to unpickle."""
    modes = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{mode.replace('_', '-')}" for mode in modes if getattr(arguments, mode)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} do not go together; give one of them")
    if arguments.resolve and not arguments.cfg:
        raise UserError("--resolve shows values in what --cfg prints; add --cfg job")
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun reads a pickle, which can run any code; type the run's command instead")


def _mistakes_of(script: str, overrides: list[str]) -> list[str]:
    """The impossible values among overrides that are well-formed, so that one run of the command shows them all."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return mistakes(OmegaConf.to_object(compose(script, overrides)))
    except (HydraException, OmegaConfBaseException):
        return []


def _override_mistake(schema: type, text: str, override: Any, key: str) -> str | None:
    """What is wrong with one override, or None."""
    named = groups() if schema is SCRIPTS["config"] else set()  # the other scripts have options alone
    options = {name: option for name, option, _ in leaves(schema)}
    values = [_unquoted(value) for value in _values_of(override)]
    if override.is_add() or override.is_delete() or override.is_force_add():
        return f"{text!r} adds or removes an option; every option is there already: write {key}=VALUE"
    if key in named and key not in options:
        choices = group_choices(key)
        unknown = [value for value in values if str(value) not in choices]
        if unknown:
            return f"{key}={unknown[0]} is not known; allowed: {', '.join(choices)}{closest(unknown[0], choices)}"
        return None
    if key not in options and (gone := removed_line(key)):
        return gone
    if key not in options:
        near = difflib.get_close_matches(key, options, n=1) or [n for n in options if n.endswith(f".{key}")]
        return f"{key} is no option{f'; did you mean {near[0]}?' if near else ''}; `--help all` lists them"
    for value in values:
        if not _fits(schema, key, value):
            return f"{key}={value} has the wrong type; it is: {options[key].help}"
    return None


def _values_of(override: Any) -> list[Any]:
    """What an override sets, all of it in a sweep; of a range its ends, of a pattern for names nothing."""
    value = override.value()
    if override.is_interval_sweep():
        return [value.start, value.end]
    if override.is_choice_sweep():
        return list(getattr(value, "list", []))
    if override.is_range_sweep():
        return [end for end in (value.start, value.stop) if end is not None]
    return [value]


def _fits(schema: type, key: str, value: Any) -> bool:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(value, str) and "${" in value:
        return True  # an interpolation; Hydra resolves and checks it
    try:
        OmegaConf.update(_structured(schema), key, value)
    except (OmegaConfBaseException, ValueError, OverflowError):  # of a number that no float holds
        return False
    return True


@cache
def _structured(schema: type) -> Any:
    """The options to try values on, whatever was tried before."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def _unquoted(value: Any) -> Any:
    """A value as its option gets it."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, list):
        return [_unquoted(entry) for entry in value]
    return value.text if isinstance(value, QuotedString) else value
