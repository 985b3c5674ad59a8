"""Read untrusted files: sizes and depths are bounded, names stay in their folder, and output has no terminal escapes.

Whatever is refused raises ValueError; the caller adds the advice.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

JSON_BYTES = 64 << 20  # the largest JSON file is a tokenizer: 30 MB with a million ids
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises ValueError for a larger file and for anything else, such as a pipe or a device, which may never end;
    OSError as usual.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is not a regular file")
        if about.st_size > limit:
            raise ValueError(f"it is larger than {limit >> 20} MiB")
        return file.read(about.st_size)


def parse_json(raw: bytes | str) -> Any:
    """Return the value of a JSON text. Raises ValueError for invalid text, also where it is nested too deep."""
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def load_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Return the value in a JSON file. Raises OSError and ValueError, see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, limit))


def member(folder: Path, name: object) -> Path:
    """Return the path of the regular file `name` in `folder`, where the name comes from an untrusted file.

    Raises ValueError for a name with a path, for a link that leads out of the folder, and for a pipe or a device;
    OSError for a missing file.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"{name!r} is not the name of a file in {folder}")
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} is a link that leads out of its folder")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    return path


def is_count(value: object, limit: float = 2**63) -> bool:
    """Return whether a value from JSON is a whole number in [0, limit)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def is_amount(value: object, limit: float = 1e30) -> bool:
    """Return whether a value from JSON is a finite number in [0, limit)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < limit


def strip_escapes(text: str) -> str:
    """Return the text without control sequences, which could move the cursor, rename the window or fill the clipboard."""
    return ESCAPES.sub("", text)
