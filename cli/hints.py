"""Messages for an option or a choice that does not exist, with the one that was probably meant."""

from __future__ import annotations

import difflib
import re
from typing import Any

from cli.groups import group_choices, groups
from common.typed import closest
from config import SCRIPTS, leaves

# Words for a duration that are not options, and the letter that stands for them in budget.hours=5m.
DURATIONS = {
    name: word[0]
    for word in ("days", "minutes", "seconds")
    for name in (word, word[:-1], word[:3], f"{word[:3]}s", f"max_{word}")
}
# Names of other trainers' options (nanoGPT, litgpt, transformers) that are not spelled like ours.
ELSEWHERE = {
    "lr": "optim.learning_rate",
    "max_lr": "optim.learning_rate",
    "batch_size": "optim.batch_tokens",
    "max_iters": "budget.steps",
    "max_steps": "budget.steps",
    "max_tokens": "budget.tokens",
    "max_time": "budget.hours",
}
# What people give a group of options although it is the value of an option, and the words to type instead.
VALUE_OF_GROUP = {
    "budget": (re.compile(r"[0-9.]+[dhms]?"), "budget.hours={}"),
    "data": (re.compile(r".*[./~].*"), "data=text data.path={}"),
    "device": (re.compile(r"cuda:\d+|mps"), "device.name={}"),
}
ALIKE = 0.8  # difflib's ratio from which a name counts as misspelled, before other explanations are tried


def unknown_choice(group: str, value: Any) -> str:
    """The message for a choice that a config group does not have."""
    choices = group_choices(group)
    pattern, words = VALUE_OF_GROUP.get(group, (None, ""))
    meant = f"; did you mean {words.format(value)}?" if pattern and pattern.fullmatch(str(value)) else ""
    return f"{group}={value} is not known; allowed: {', '.join(choices)}{meant or closest(value, choices)}"


def unknown_option(schema: type, key: str, value: str = "") -> tuple[str, set[str]]:
    """The message for a key that is not an option, and the option that it was probably meant to be."""
    name = key.lstrip("+~")
    if name == "task":  # the presets of tasks are no group of Hydra's, because several are named at once
        where = "eval.tasks" if schema is SCRIPTS["config"] else "tasks"
        return f"task={value}: write {where}=[{value or 'NAME'}]; task.OPTION=VALUE sets an option of all tasks", {
            where
        }
    near = _meant(schema, name)
    hint = near
    if (last := name.rpartition(".")[2].lower()) in DURATIONS and near == "budget.hours":
        hint += f"={value}{DURATIONS[last]}" if re.fullmatch(r"[0-9.]+", value) else ""
    message = f"{name} is not an option{f'; did you mean {hint}?' if hint else ''}; `--help all` lists them"
    return message, {near or name}


def _meant(schema: type, name: str) -> str:
    """The option or group that `name` probably stands for, or an empty string. The first that applies:

    the same name in other letters, a word for a duration, an option of another trainer, a misspelling, the same name in
    another group (a common option first), a name that is somewhat alike.
    """
    listed = [leaf for leaf, _, _ in leaves(schema)]
    named = [*groups(), *listed] if schema is SCRIPTS["config"] else listed
    folded, last = name.casefold(), name.rpartition(".")[2].casefold()
    common = {leaf for leaf, option, _ in leaves(schema) if option.common}
    same = sorted((leaf for leaf in listed if leaf.rpartition(".")[2] == last), key=lambda leaf: leaf not in common)
    explanations = (
        [leaf for leaf in listed if leaf.casefold() == folded],
        [leaf for leaf in listed if leaf == "budget.hours" and last in DURATIONS],
        [leaf for leaf in listed if leaf == ELSEWHERE.get(last)],
        same if "." not in name else [],
        difflib.get_close_matches(name, named, n=1, cutoff=ALIKE),
        same,
        difflib.get_close_matches(name, named, n=1),
    )
    return next((found[0] for found in explanations if found), "")
