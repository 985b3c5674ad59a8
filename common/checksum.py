"""JSON that shows damage: a checksum of the content travels in it.

A flipped bit in a file of numbers is another number, and JSON all the same: nobody would notice. A checksum shows damage, not
who wrote the file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

KEY = "checksum"


def add_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """The content as JSON will hold it, with its checksum. NaN and infinities are to be gone before."""
    plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, KEY: checksum(plain)}


def checksum(content: dict[str, Any]) -> str:
    """SHA-256, in hex, of everything but the checksum itself, whatever the order of the keys."""
    covered = {key: value for key, value in content.items() if key != KEY}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def verify_checksum(content: Any) -> dict[str, Any]:
    """The content without its checksum; one that was written without any passes, as earlier versions wrote none.

    Raises ValueError where content and checksum do not belong together, and for what is no JSON object.
    """
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    if KEY in content and content[KEY] != checksum(content):
        raise ValueError("it does not match its checksum")
    return {key: value for key, value in content.items() if key != KEY}
