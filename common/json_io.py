"""Atomic writes of files, mostly JSON, and reading of values from JSON that may be invalid."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from common.checksum import add_checksum
from common.redaction import redacted
from common.safe_read import load_json


def write_bytes(path: Path, content: bytes, durable: bool = True, several_writers: bool = False) -> None:
    """Write a file atomically: a reader sees the old content or the new one, if `durable` also after a power cut.

    After a power cut the new content is certain only if `sync_folder` was called. several_writers: processes may
    write the file at the same time, so each uses a temporary file of its own; otherwise, the next write replaces the
    temporary file of a killed one. Raises OSError, in which case the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}" if several_writers else f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, durable: bool = True, several_writers: bool = False) -> None:
    """Write text as `write_bytes` does, in UTF-8; lone surrogates become question marks."""
    write_bytes(path, text.encode("utf-8", errors="replace"), durable, several_writers)


def write_json(path: Path, content: Any, checksummed: bool = False) -> None:
    """Write JSON as `write_bytes` does, without the environment's secrets; NaN and infinities become null.

    checksummed: add a checksum of the content, which must be a dict (common/checksum.py).
    """
    text = redacted(json.dumps(finite(content), indent=1, allow_nan=False))
    if checksummed:
        text = json.dumps(add_checksum(json.loads(text)), indent=1)
    write_text(path, text + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, before the files that they replace are deleted."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None where it is missing or cannot be read."""
    try:
        return load_json(path)
    except (OSError, ValueError):
        return None


def finite(content: Any) -> Any:
    """Return the content with NaN and infinities replaced by None, which JSON can express."""
    return significant(content, digits=17)  # enough for every float to stay the same


def significant(value: Any, digits: int = 6) -> Any:
    """Return the value with floats rounded to `digits` significant digits, also in lists and dicts; non-finite: None."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: significant(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [significant(entry, digits) for entry in value]
    return value


def mapping(value: Any) -> dict[str, Any]:
    """Return `value` if it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """Return `value` if it is a list, otherwise an empty one."""
    return value if isinstance(value, list) else []


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite float, or an int that fits into one; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number(value: Any, default: float) -> float:
    """Return `value` as a float, or `default` where it is not a finite number."""
    return float(value) if is_number(value) else default
