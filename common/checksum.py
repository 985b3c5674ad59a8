"""Checksums inside JSON files, to detect damage.

A flipped bit in a number gives another number in valid JSON, which nothing else would notice. The checksum detects
damage; it does not authenticate the author.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

KEY = "checksum"


def add_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content as it will be in JSON, with its checksum. Raises ValueError for NaN and infinities."""
    plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, KEY: checksum(plain)}


def checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 in hex of everything except the checksum itself; the order of the keys does not matter."""
    covered = {key: value for key, value in content.items() if key != KEY}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def verify_checksum(content: Any) -> dict[str, Any]:
    """Return the content without its checksum. A file without a checksum is accepted, as earlier versions wrote none.

    Raises ValueError where the checksum does not match, and for anything but a JSON object.
    """
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    if KEY in content and content[KEY] != checksum(content):
        raise ValueError("it does not match its checksum")
    return {key: value for key, value in content.items() if key != KEY}
