"""Checks the command line before Hydra parses it, so that all problems are reported together.

`readable` first rewrites what Hydra's grammar would refuse, or would not take as it is meant.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

from cli.groups import config_folders, group_choices, groups
from cli.hints import unknown_choice, unknown_option
from cli.plugins import PLUGINS, plugin_problem
from cli.validate import find_problems, without_combinations_of
from common.errors import UserError
from common.json_io import mapping
from common.redaction import find_leaked_secrets
from common.units import parse_unit
from config import CONF, SCRIPTS, Option, leaves, removal_message

KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@:]*")
SHELLS = ("bash", "zsh", "fish")  # that Hydra completes for
# Characters with a meaning of their own in Hydra's grammar. A value with one of them is never quoted for the user.
GRAMMAR = set("[](){}'\"")


def refuse_secrets() -> None:
    """Raise UserError for a command line that holds a password or token."""
    if secrets := find_leaked_secrets((argument.split("=")[0], argument) for argument in sys.argv[1:]):
        raise UserError(*secrets)


def readable(script: str, arguments: Sequence[str]) -> list[str]:
    """The command line as Hydra can read it.

    Units become numbers (budget.hours=90m is the same sweep as 1.5). Paths and names that Hydra's grammar would refuse, such
    as ~/a.txt and non-ASCII ones, are quoted; a value with commas is a list of such values. An option that takes a list gets
    its brackets where a single value is given.
    """
    flags = flags_of(list(arguments))
    if flags.shell_completion:
        return list(arguments)
    schema = SCRIPTS[script]
    lists = {name for name, _, value in leaves(schema()) if isinstance(value, list)}
    options = {name: option for name, option, _ in leaves(schema)}

    def rewritten(text: str) -> str:
        key, equals, value = text.partition("=")
        option = options.get(key)
        if not equals or option is None or "${" in value:
            return text
        if key in lists and (value or option.literal):
            return text if flags.multirun else f"{key}={_bracketed(value, option)}"
        if GRAMMAR & set(value):
            return text
        if option.unit:
            return f"{key}={','.join(_as_number(part, option.unit) for part in value.split(','))}"
        if _is_text(schema, key):
            return f"{key}={','.join(part if _parsed(part) else _quoted(part) for part in value.split(','))}"
        return text

    return [rewritten(argument) if argument in flags.overrides else argument for argument in arguments]


def _bracketed(value: str, option: Option) -> str:
    """A value for an option that takes a list, in brackets. A `literal` option takes the value as one text."""
    from hydra.core.override_parser.types import QuotedString

    if value.startswith("["):
        return value
    override = _parsed(value)
    if override is not None and isinstance(override._value, QuotedString):
        return f"[{value}]"
    if option.literal:
        return f"[{_quoted(value)}]"
    single = override is not None and not override.is_sweep_override() and not isinstance(override._value, dict)
    return f"[{value}]" if single else value


def _as_number(text: str, unit: str) -> str:
    """A quantity as a plain number; anything else as it is."""
    try:
        float(text)
    except ValueError:
        try:
            number = parse_unit(text, unit)
        except ValueError:
            return text
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return text


def _parsed(value: str) -> Any | None:
    """The override that Hydra's grammar makes of a value; None if it refuses the value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, ValueError, RecursionError):  # ValueError: a number with thousands of digits
        return None


def _quoted(value: str) -> str:
    """A value that Hydra reads as this very text."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.double).with_quotes()


def _is_text(schema: type, key: str) -> bool:
    from omegaconf import OmegaConf
    from omegaconf.nodes import StringNode

    group, _, leaf = key.rpartition(".")
    whole = _structured(schema)
    return isinstance((OmegaConf.select(whole, group) if group else whole)._get_node(leaf), StringNode)


def check_command_line(script: str) -> None:
    """Raise UserError with every problem of the command line; Hydra itself would stop at the first.

    Problems are unknown options, values of the wrong type and invalid values of the other options.
    """
    arguments = flags_of(sys.argv[1:])
    _check_flags(arguments)
    if arguments.shell_completion:  # its arguments, install=SHELL and query=SHELL, are not options
        _check_completion(arguments.overrides)
        return
    single = not _is_sweep(arguments)
    valid: list[str] = []
    problems: list[str] = []
    tried: set[str] = set()  # options that the user meant to set
    for text in arguments.overrides:
        problem, meant = _problem_with(script, text, single)
        if problem:
            problems.append(problem)
            tried |= meant
        elif not text.startswith(("hydra.", "hydra/", "+", "~")):
            valid.append(text)
    if problems and arguments.config_name is None and arguments.config_dir is None:
        problems += without_combinations_of(tried, _problems_in_values(script, valid))
    if problems:
        raise UserError(*problems)


def _check_completion(words: list[str]) -> None:
    """Raise UserError for words after --shell-completion that make Hydra fail with a traceback."""
    action, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in SHELLS:
        wanted = f"one of install=SHELL and uninstall=SHELL, where SHELL is {', '.join(SHELLS)}"
        raise UserError(f"--shell-completion {' '.join(words)}: give {wanted}")
    if action == "query" and "COMP_LINE" not in os.environ:
        raise UserError("--shell-completion query= is for the shell to call; write install= or uninstall=")


def _problem_with(script: str, text: str, single: bool) -> tuple[str | None, set[str]]:
    """The problem with one override, or None, and the options or groups that it was meant to set."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    if key.startswith(("hydra.", "hydra/")):
        return _hydra_problem(script, key, value, single), set()
    if not key:
        return f"{text!r} is not KEY=VALUE; `--help` lists the options", set()
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError):  # ValueError: a number with thousands of digits
        return _unreadable(SCRIPTS[script], text, key, value if equals else None), {key}
    chosen = override.value()
    several = single and isinstance(chosen, ChoiceSweep) and chosen.simple_form
    if several and (problem := _several_values(SCRIPTS[script], text, key, value)):
        return problem, {key}
    return _override_problem(SCRIPTS[script], text, override, str(override.key_or_group))


def _several_values(schema: type, text: str, key: str, value: str) -> str | None:
    """The message for an option with several values outside a sweep, or None if `key` is not an option."""
    defaults = {name: default for name, _, default in leaves(schema())}
    if key not in defaults:
        return None
    if isinstance(defaults[key], list):
        return f"{text!r} gives several values; for a list, type {shlex.quote(f'{key}=[{value}]')}"
    one = f"; for one text with commas, type {shlex.quote(f'{key}={_quoted(value)}')}" if _is_text(schema, key) else ""
    return f"{text!r} gives several values; to sweep over them, add -m{one}"


def _hydra_problem(script: str, key: str, value: str, single: bool) -> str | None:
    """The problem with an option of Hydra itself that would have no effect, or that needs a plugin."""
    if key == "hydra.run.dir" or (key == "hydra.sweep.dir" and single):
        return f"{key}={value} has no effect on a run; choose the folder for runs with output_dir={value or 'FOLDER'}"
    if key == "hydra/launcher" and script != "config":
        return f"{key}={value} is for train.py; the jobs of this command run one after the other; leave it out"
    if key in PLUGINS and (problem := plugin_problem(key, value)):
        return problem
    if key in PLUGINS and single:
        return f"{key}={value} has no effect on a single run; add -m to start a sweep"
    return None


def _unreadable(schema: type, text: str, key: str, value: str | None) -> str:
    """The message for an override that Hydra's grammar refuses; for an option, with the words to type instead."""
    options = {name for name, _, _ in leaves(schema)}
    lists = {name for name, _, default in leaves(schema()) if isinstance(default, list)}
    if value is None or not KEY.fullmatch(key):
        return f"{text!r} is not KEY=VALUE; `--help` lists the options"
    if key not in options:
        return unknown_option(schema, key, value)[0] if key not in groups() else unknown_choice(key, value)
    if key in lists:
        return f"{text!r} cannot be read as a list; type {shlex.quote(f'{key}=[{_quoted(value)}]')}"
    if _is_text(schema, key):
        return f"{text!r} has characters that Hydra reads in its own way; type {shlex.quote(f'{key}={_quoted(value)}')}"
    return _value_problem(schema, key, value) or f"{key}={value} cannot be read"


def flags_of(arguments: list[str]) -> Any:
    """Parse a command line into Hydra's flags and overrides. Raises UserError for an unknown flag."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _raise_for_flags  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def names_several(flags: Any) -> bool:
    """Whether a command line asks for more than one plan: by -m, a list of budgets, or the file of a sweep."""
    return _is_sweep(flags) or any(text.startswith("budget.") and "," in text for text in flags.overrides)


def _is_sweep(flags: Any) -> bool:
    """Whether a command line starts a sweep: by -m, or by the file of one."""
    if flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides:
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

    name = f"{flags.config_name.removesuffix('.yaml')}.yaml"
    path = next((folder / name for folder in config_folders() if (folder / name).exists()), CONF / name)
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


def _override_problem(schema: type, text: str, override: Any, key: str) -> tuple[str | None, set[str]]:
    """The problem with one override, or None, and the options or groups that it was meant to set."""
    named = groups() if schema is SCRIPTS["config"] else set()  # the other scripts have no config groups
    options = {name for name, _, _ in leaves(schema)}
    values = [_unquoted(value) for value in _values_of(override)]
    shown = text.partition("=")[2]
    if key in named and key not in options and not override.is_delete():
        choices, own = group_choices(key), not (CONF / key).is_dir()
        if own != (override.is_add() or override.is_force_add()):
            return f"{text!r}: write {'+' if own else ''}{key}={shown}", {key}
        unknown = [value for value in values if str(value) not in choices]
        return (unknown_choice(key, unknown[0]), {key}) if unknown and not _has_searchpath() else (None, set())
    if key not in options and (message := removal_message(key)):
        return message, {key}
    if key not in options:
        return unknown_option(schema, key, shown)
    if override.is_delete():
        return f"{text!r} removes an option; options can only be set: write {key}=VALUE", {key}
    if override.is_add() or override.is_force_add():
        return f"{text!r} adds an option that exists; leave out the +: {key}={shown}", {key}
    problems = (_value_problem(schema, key, value) for value in values)
    return next((problem for problem in problems if problem), None), {key}


def _has_searchpath() -> bool:
    """Whether the command line gives Hydra more folders to find the choices of groups in."""
    return any(argument.startswith("hydra.searchpath") for argument in sys.argv)


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


def _value_problem(schema: type, key: str, value: Any) -> str | None:
    """The problem with a value that does not have the type of the option `key`, or None."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from cli.nodes import BadQuantity, first_line

    if isinstance(value, str) and "${" in value:
        return None  # an interpolation, which Hydra resolves and checks
    try:
        OmegaConf.update(_structured(schema), key, value, merge=False)  # instead of an earlier value, which stays
    except BadQuantity as error:
        return f"{key}={value}: {first_line(error)}"
    except (OmegaConfBaseException, ValueError, OverflowError):  # OverflowError: too large for a float
        option = {name: option for name, option, _ in leaves(schema)}[key]
        return f"{key}={value} has the wrong type ({option.help})"
    return None


@cache
def _structured(schema: type) -> Any:
    """The schema as an OmegaConf object, which takes tens of milliseconds; `_value_problem` tries values on it."""
    from cli.nodes import structured

    return structured(schema)


def _unquoted(value: Any) -> Any:
    """A parsed value without its quotes."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, list):
        return [_unquoted(entry) for entry in value]
    return value.text if isinstance(value, QuotedString) else value
