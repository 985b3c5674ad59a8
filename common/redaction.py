"""Keep the values of the environment's secrets (WANDB_API_KEY, HF_TOKEN, ...) out of records and messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

NAME = re.compile(
    r"(.*[_-])?(api[_-]?key|access[_-]?key|secret|secret[_-]?key|password|passwd|credentials?|token|pat)", re.IGNORECASE
)
SHORTEST = 12  # characters; shorter values are not keys, and would be found in ordinary text


def is_secret(name: str) -> bool:
    """Return whether the name of a variable, or the last part of an option's name, marks a secret."""
    return NAME.fullmatch(name) is not None


def secrets() -> dict[str, str]:
    """Return the environment's secrets by name."""
    return {name: value for name, value in os.environ.items() if len(value) >= SHORTEST and is_secret(name)}


def redacted(text: str) -> str:
    """Return the text with the value of each secret replaced by the name of its variable."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    return text


def find_leaked_secrets(texts: Iterable[tuple[str, object]]) -> list[str]:
    """Return one error line for each (name, value) that contains a secret, which a run's records would show."""
    return [
        f"{redacted(name)} holds the value of {secret}, which the run's records would show; remove it: the libraries read"
        f" {secret} from the environment"
        for name, value in texts
        for secret, hidden in secrets().items()
        if hidden in str(value)
    ]
