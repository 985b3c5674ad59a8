"""Files that appear whole or not at all, JSON above all, and values out of JSON that somebody else may have written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from common.checksum import add_checksum
from common.redaction import redacted
from common.safe_read import load_json


def write_bytes(path: Path, content: bytes, durable: bool = True, several_writers: bool = False) -> None:
    """Write atomically: a reader sees the old file or the new one, where `durable` also after a power cut; that it is then the
    new one is certain after `sync_folder`.

    several_writers: processes may write the file at the same time; each takes a temporary file of its own. Otherwise what a
    kill leaves of one is overwritten by the next. Raises OSError; the old file is untouched then.
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
    """As `write_bytes`, in UTF-8; what it cannot express (half of a surrogate pair) becomes a question mark."""
    write_bytes(path, text.encode("utf-8", errors="replace"), durable, several_writers)


def write_json(path: Path, content: Any, checksummed: bool = False) -> None:
    """As `write_bytes`, without secrets of the environment; NaN and infinities become null.

    checksummed: with a checksum of the content, a dict, as it stands in the file (common/checksum.py).
    """
    text = redacted(json.dumps(finite(content), indent=1, allow_nan=False))
    if checksummed:
        text = json.dumps(add_checksum(json.loads(text)), indent=1)
    write_text(path, text + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut: before something is deleted that they replace."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where it does not exist or cannot be read."""
    try:
        return load_json(path)
    except (OSError, ValueError):
        return None


def finite(content: Any) -> Any:
    """The same content with NaN and infinities as None: JSON cannot express them."""
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


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, default: float) -> float:
    """`value` as a float, or `default` where it is not a finite number."""
    return float(value) if is_number(value) else default
