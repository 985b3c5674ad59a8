"""The pages that `--help` prints, generated from the dataclasses in config.py."""

from __future__ import annotations

import textwrap
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from cli.groups import group_choices, groups, package_of
from common.errors import UserError
from common.typed import closest
from config import CONF, SCRIPTS, Config, Option, leaves

GENERAL, ALL = "general", "all"  # topics of `--help` besides the groups
WIDTH = 110  # columns of a help page
PLAN_SENTENCE = "Plan the best model for a budget, without training it."
PLAN_EXAMPLES = (
    "budget.hours=3 device=a100",
    "budget.hours=30m,1h,3h device=a100",
    "budget.flops=3.4e18 explain=true",
)
NO_BREAK = ",\N{NO-BREAK SPACE}"  # in an interval, so that textwrap keeps it on one line


def asked_for_help(arguments: list[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def help_page(script: str, program: str, arguments: list[str]) -> str:
    """The output of `--help` (an overview), `--help GROUP` or `--help all` (options in full).

    Raises UserError for an unknown group.
    """
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
    """Each group of options with its description; GENERAL holds the options without a group."""
    hints = get_type_hints(schema)
    groups = {leaf.name: _sentence(hints[leaf.name]) for leaf in fields(schema) if is_dataclass(hints[leaf.name])}
    return {GENERAL: "Options that belong to no group.", **groups}


def _sentence(schema: Any) -> str:
    """The first paragraph of a dataclass's docstring."""
    return " ".join(str(schema.__doc__).partition("\n\n")[0].split())


def _usage(schema: type, program: str) -> list[str]:
    """The description of the script, the usage line and the examples from the schema's docstring."""
    examples = [line.strip() for line in str(schema.__doc__).splitlines() if line.strip().startswith("PROGRAM ")]
    sentence = _sentence(schema)
    if program == "plan.py":  # it has the options of train.py
        sentence, examples = PLAN_SENTENCE, [f"PROGRAM {words}" for words in PLAN_EXAMPLES]
    lines = [sentence, "", f"usage: {program} OPTION=VALUE ..."]
    if schema is Config:
        lines += [f"       {program} -m OPTION=VALUE,VALUE ...  (every combination of the values)"]
    return [*lines, "", *(f"  {line.replace('PROGRAM', program, 1)}" for line in examples)]


def _overview(schema: type, common: list[tuple[str, Option, Any]], program: str) -> list[str]:
    """The most common options, and every group with its named choices."""
    lines = ["Most common options:"]
    for name, option, value in common:
        lines += _columns(f"{name}={_as_typed(value)}", option.help, 26)
    lines += ["", f"Groups of options{', with presets such as budget=three_hours' if schema is Config else ''}:"]
    for topic, sentence in _topics(schema).items():
        lines += _columns(topic, sentence, 12)
        for text in _presets(schema, topic):
            lines += _columns("", text, 12)
    others = [group for group in sorted(groups()) if package_of(group) not in _topics(schema) and schema is Config]
    if own := [group for group in others if not (CONF / group).is_dir()]:
        lines += ["", "Groups of your own folder:"]
        lines += [line for group in own for line in _columns("", f"+{group}= {' | '.join(group_choices(group))}", 12)]
    lines += ["", f"`{program} --help GROUP` shows the options of one group, `{program} --help all` every option."]
    return [*lines, "`--cfg job` prints the configuration without running; `--hydra-help` lists Hydra's own flags."]


def _in_full(schema: type, topic: str) -> list[str]:
    """Every option of a group with its default, help text and range."""
    prefix = "" if topic == GENERAL else f"{topic}."
    lines = ["", f"{topic}: {_topics(schema)[topic]}"]
    for named in _presets(schema, topic):
        lines += _columns("presets:", named, 10)
    for name, option, value in leaves(schema()):
        if name.startswith(prefix) and "." not in name.removeprefix(prefix):
            allowed = f"; allowed: {option.range}".replace(", ", NO_BREAK) if option.range else ""
            text = textwrap.wrap(option.help + allowed, WIDTH - 6, break_on_hyphens=False, break_long_words=False)
            lines += [f"  {name}={_as_typed(value)}", *(f"      {line.replace(NO_BREAK, ', ')}" for line in text)]
    return lines


def _presets(schema: type, topic: str) -> list[str]:
    """The named choices for a group of options, as they are typed."""
    if topic == "task":
        return [f"{'eval.tasks' if schema is Config else 'tasks'}= {' | '.join(group_choices('task'))} | lm_eval:NAME"]
    named = [group for group in sorted(groups()) if schema is Config and package_of(group) == topic]
    return [f"{group}= {' | '.join(group_choices(group))}" for group in named]


def _columns(left: str, right: str, width: int) -> list[str]:
    """Two columns with the right one wrapped. A left one that is wider than `width` gets a line of its own."""
    wrapped = textwrap.wrap(right, WIDTH - width - 2, break_on_hyphens=False)
    if len(left) >= width:
        return [f"  {left}", *(f"  {'':<{width}}{line}" for line in wrapped)]
    return [f"  {left if number == 0 else '':<{width}}{line}" for number, line in enumerate(wrapped)]


def _as_typed(value: Any) -> str:
    """A default as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
