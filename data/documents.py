"""Documents and records, and the options and counters of reading a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.errors import UserError

LONGEST_LABEL = 100  # characters
SHOWN_KEYS = 200  # characters of a record's keys in a message
JSON_TYPES = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
JSON_TYPES |= {list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Document:
    """A text, the label of its source, and its split ("train" or "val"; None: decided by a hash of the text)."""

    text: str
    source: str
    split: str | None


@dataclass(frozen=True)
class Record:
    """A text of a file, and the source label in its metadata (SlimPajama's `meta.redpajama_set_name`) or None."""

    text: str
    source: str | None


class BadRecord(UserError):
    """A record without usable text. `problem` is the message without the advice to skip such records."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; fix it, or skip such records with data.bad_documents=skip")
        self.problem = problem


@dataclass
class Reading:
    """Options for reading one file, and counters that readers advance.

    Attributes:
        text_key: Key of the text in a record; dots descend into nested objects ("meta.text").
        bad_documents: "refuse" or "skip" records that cannot be decoded or have no text.
        start: First byte to read.
        stop: End of the bytes to read; None for the end of the file.
        member: Name of the file inside an archive to read; empty for any other file.
        consumed: Bytes read so far, counted on disk (compressed).
        records: Records yielded so far.
    """

    text_key: str = "text"
    bad_documents: str = "refuse"
    start: int = 0
    stop: int | None = None
    member: str = ""
    consumed: int = 0
    records: int = 0

    def reject(self, place: str, reason: str) -> None:
        """Raise BadRecord for a bad record at `place`, unless bad records are skipped."""
        if self.bad_documents == "refuse":
            raise BadRecord(f"{place}: {reason}")


def record_of(item: Any, place: str, reading: Reading) -> Record | None:
    """Return the record of one JSON-like object, with its text from `reading.text_key` (dots descend: "meta.text").

    For an object without such a text: raises BadRecord that names `place`, or returns None if bad records are skipped.
    """
    value = item
    for depth, key in enumerate(keys := reading.text_key.split(".")):
        if not isinstance(value, dict) or key not in value:
            reading.reject(place, _why_no_text(reading.text_key, keys[:depth], value))
            return None
        value = value[key]
    if not isinstance(value, str):
        reading.reject(place, f"no text under {reading.text_key!r} (data.text_key): it holds {_type_name(value)}")
        return None
    meta = item.get("meta")
    label = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
    return Record(value, label[:LONGEST_LABEL] if isinstance(label, str) else None)


def _type_name(value: Any) -> str:
    return JSON_TYPES.get(type(value), type(value).__name__)


def _why_no_text(text_key: str, parents: list[str], value: Any) -> str:
    """Return why the next key of `text_key` is not in `value`, which was found under `parents`."""
    within = repr(".".join(parents)) if parents else "the record"
    if not isinstance(value, dict):
        return f"no text under {text_key!r}: {within} is {_type_name(value)}, not an object"
    keys = ", ".join(f"{key}" if isinstance(v, str) else f"{key} ({_type_name(v)})" for key, v in value.items())
    reason = f"no text under {text_key!r}; {within} has: {keys[:SHOWN_KEYS] or 'no keys'}; set data.text_key to a key of a text"
    lists = [key for key, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if lists:
        reason += f", or save the list of records under {lists[0]!r} as a .json file of its own"
    return reason
