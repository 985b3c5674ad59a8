"""The software and hardware that a result came from, recorded in result.json."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any


def environment(device: str, torch_version: str, threads: int) -> dict[str, Any]:
    """The versions of Python and torch, the platform, the device and the commit of this checkout."""
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
    """The commit of the checkout that holds this file, with a + for uncommitted changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
