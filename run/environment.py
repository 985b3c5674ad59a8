"""The environment of a run, as its result records it."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any


def environment(device: str, torch_version: str, threads: int) -> dict[str, Any]:
    """Where a result comes from: versions, device and the commit of this checkout."""
    return {
        "python": platform.python_version(),
        "torch": torch_version,
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
        "git": git_commit(),
    }


@cache
def git_commit() -> str | None:
    """The commit of the checkout this file is in, with + for uncommitted changes; None outside one."""
    root = Path(__file__).resolve().parents[1]
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+"]
        # Our own words, and no shell.
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
