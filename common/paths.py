"""Paths as people type them, with `~` for the home folder."""

from __future__ import annotations

from pathlib import Path


def user_path(text: str) -> Path:
    """The path with a `~` or `~user` at its start replaced by that home folder; an unknown user is left as it is.

    A shell expands `~` only at the start of a word, not in `--output="~/x"` or `KEY=~/x`.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
