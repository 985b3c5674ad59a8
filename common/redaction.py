"""What must not be written down: the values of the environment's secrets (WANDB_API_KEY, HF_TOKEN and their like)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

NAME = re.compile(
    r"(.*[_-])?(api[_-]?key|access[_-]?key|secret|secret[_-]?key|password|passwd|credentials?|token|pat)", re.IGNORECASE
)
SHORTEST = 12  # characters; a shorter value would be found in innocent text, and is no key


def is_secret(name: str) -> bool:
    """Whether what has this name (a variable, the last part of a knob) is a secret."""
    return NAME.fullmatch(name) is not None


def secrets() -> dict[str, str]:
    """The environment's secrets, name and value."""
    return {name: value for name, value in os.environ.items() if len(value) >= SHORTEST and is_secret(name)}


def redacted(text: str) -> str:
    """Text without the value of any secret: its variable's name stands in its place."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    return text


def find_leaked_secrets(texts: Iterable[tuple[str, object]]) -> list[str]:
    """One line for each (name, value) that holds a secret, which every record of a run would then show."""
    return [
        f"{redacted(name)} holds the value of {secret}, and a run's records would show it; leave it out: the libraries read"
        f" {secret} themselves"
        for name, value in texts
        for secret, hidden in secrets().items()
        if hidden in str(value)
    ]
