"""Config groups: the named choices in conf/ and in the folder that the user gives with -cd."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from config import CONF
from device.specs import BY_NAME


def config_folders(arguments: Sequence[str] | None = None) -> tuple[Path, ...]:
    """The folders with config groups, in Hydra's order: conf/, then the user's own of `-cd FOLDER`.

    `arguments` defaults to the command line. Hydra's parser is not used, because `--help` does not import Hydra.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag in ("-cd", "--config-dir") and (folder := value if equals else following):
            return CONF, Path(folder)
    return (CONF,)


def groups() -> set[str]:
    """Config groups: the folders under conf/ and the user's own folder.

    Without hydra/, which configures Hydra itself, and task/, whose files are named in tasks= (cli/tasks.py).
    """
    own = {path.parent.name for folder in config_folders()[1:] for path in folder.glob("*/*.yaml")}
    return ({path.name for path in CONF.iterdir() if path.is_dir()} | own) - {"hydra", "task"}


def package_of(group: str) -> str:
    """The group of options that a config group sets: the one of the same name unless its files name another package."""
    first = _group_files(group)[0].read_text(errors="replace").partition("\n")[0]
    return first.removeprefix("# @package ") if first.startswith("# @package ") else group


def group_choices(group: str) -> list[str]:
    """Named choices of a config group: its files in conf/ and in the user's own folder; for `device` also the device table."""
    files = sorted({path.stem for path in _group_files(group)})
    return files + ([name for name in BY_NAME if name not in files] if group == "device" else [])


def _group_files(group: str) -> list[Path]:
    return [path for folder in config_folders() for path in sorted((folder / group).glob("*.yaml"))]
