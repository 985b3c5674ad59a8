"""What a run writes down about itself: JSON files that appear whole or not at all, and one line per event."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from private import redacted
from untrusted import load_json

SCHEMA = 1


def write_json(path: Path, content: Any) -> None:
    """Write atomically: a reader sees the old file or the new one, also after a power cut. NaN becomes null."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(redacted(json.dumps(finite(content), indent=1, allow_nan=False)) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where it does not exist or cannot be read."""
    try:
        return load_json(path)
    except (OSError, ValueError):
        return None


def finite(content: Any) -> Any:
    """The same content with NaN and infinities as None: JSON has no such numbers."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


def significant(value: Any, digits: int = 6) -> Any:
    """Floats rounded to `digits` significant digits, through lists and dicts: records are read by people too."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: significant(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [significant(entry, digits) for entry in value]
    return value


class Metrics:
    """metrics.jsonl, one JSON object a line, appended. A disk that refuses costs points, never the run; when it takes
    them again, the curve goes on."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self.warn = path, warn
        self._warned = False
        self._handle: IO[bytes] | None = None

    def _opened(self) -> IO[bytes]:
        """At the start of a line also where a kill or a full disk has cut the last one short."""
        handle = self.path.open("ab+", buffering=0)
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                handle.write(b"\n")
        return handle

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(significant(record), allow_nan=False).encode() + b"\n"
        try:
            self._handle = self._handle or self._opened()
            if self._handle.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.close()
            if not self._warned:
                self.warn(f"{self.path} cannot be written ({error}); the run goes on without these points of its curve")
            self._warned = True

    def close(self) -> None:
        with suppress(OSError):
            if self._handle is not None:
                self._handle.close()
        self._handle = None


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
