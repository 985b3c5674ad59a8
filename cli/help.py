"""The pages that `--help` prints, from the option dataclasses."""

from __future__ import annotations

import textwrap
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from cli.compose import group_choices, groups, package_of
from common.errors import UserError
from config import SCRIPTS, Config, Option, closest, leaves

# -- help pages --------------------------------------------------------------------------------------------------------

GENERAL, ALL = "general", "all"  # topics of `--help` besides the groups


WIDTH = 110  # columns of a help page


def asked_for_help(arguments: list[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def help_page(script: str, program: str, arguments: list[str]) -> str:
    """What `--help` prints: an overview, or with `--help GROUP` (or all) options in full. Raises UserError for an unknown
    group."""
    words = arguments[1 + min(arguments.index(flag) for flag in ("--help", "-h") if flag in arguments) :]
    topic = words[0] if words and "=" not in words[0] and not words[0].startswith("-") else None
    schema = SCRIPTS[script]
    common = [leaf for leaf in leaves(schema()) if leaf[1].common]
    if topic is None and common:
        return "\n".join([*_usage(schema, program), "", *_overview(schema, common, program)])
    if topic is None or topic == ALL:
        return "\n".join(
            [*_usage(schema, program), *(line for each in _topics(schema) for line in _in_full(schema, each))]
        )
    if topic not in _topics(schema):
        allowed = (*_topics(schema), ALL)
        raise UserError(f"--help {topic} is not known; allowed: {', '.join(allowed)}{closest(topic, allowed)}")
    return "\n".join(_in_full(schema, topic)[1:])


def _topics(schema: type) -> dict[str, str]:
    """Each group of options with the sentence of its dataclass; GENERAL holds those without a group."""
    hints = get_type_hints(schema)
    found = {leaf.name: _sentence(hints[leaf.name]) for leaf in fields(schema) if is_dataclass(hints[leaf.name])}
    return {GENERAL: "Options without a group.", **found}


def _sentence(schema: Any) -> str:
    return " ".join(str(schema.__doc__).partition("\n\n")[0].split())


def _usage(schema: type, program: str) -> list[str]:
    """The first sentence of the schema's docstring, the usage line and the docstring's examples."""
    examples = [line.strip() for line in str(schema.__doc__).splitlines() if line.strip().startswith("PROGRAM ")]
    flags = " [-m]" if schema is Config else ""
    lines = [_sentence(schema), "", f"usage: {program} OPTION=VALUE ...{flags}", ""]
    return [*lines, *(f"  {line.replace('PROGRAM', program, 1)}" for line in examples)]


def _overview(schema: type, common: list[tuple[str, Option, Any]], program: str) -> list[str]:
    """The options that most people set first, and a line for each group with its named choices."""
    lines = ["Options that most people set first:"]
    for name, option, value in common:
        lines += _columns(f"{name}={_shown(value)}", option.help, 26)
    lines += ["", f"Groups of options; `{program} --help GROUP` lists one, `{program} --help all` everything:"]
    for topic, sentence in _topics(schema).items():
        lines += _columns(topic, sentence, 12)
        for group in sorted(groups()):
            if package_of(group) == topic:
                lines += _columns("", f"{group}= {' | '.join(group_choices(group))}", 12)
    return [*lines, "", "Only show the configuration: --cfg job. More of Hydra: --hydra-help."]


def _in_full(schema: type, topic: str) -> list[str]:
    """Every option of a group with its default, meaning and range."""
    prefix = "" if topic == GENERAL else f"{topic}."
    lines = ["", f"{topic}: {_topics(schema)[topic]}"]
    if schema is Config:
        named = [group for group in sorted(groups()) if package_of(group) == topic]
        lines += [f"  {group}= {' | '.join(group_choices(group))}" for group in named]
    for name, option, value in leaves(schema()):
        if name.startswith(prefix) and "." not in name.removeprefix(prefix):
            allowed = f"; allowed: {option.range}" if option.range else ""
            lines += [f"  {name}={_shown(value)}", f"      {option.help}{allowed}"]
    return lines


def _columns(left: str, right: str, width: int) -> list[str]:
    """Two columns, the right one wrapped; a left one that is too wide has a line of its own."""
    wrapped = textwrap.wrap(right, WIDTH - width - 2, break_on_hyphens=False)
    if len(left) >= width:
        return [f"  {left}", *(f"  {'':<{width}}{line}" for line in wrapped)]
    return [f"  {left if number == 0 else '':<{width}}{line}" for number, line in enumerate(wrapped)]


def _shown(value: Any) -> str:
    """A default as it would be typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
