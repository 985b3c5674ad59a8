"""Documents and records, and the options and counters of reading a file."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError


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
        """Raise UserError for a bad record at `place`, unless bad records are skipped."""
        if self.bad_documents == "refuse":
            raise UserError(f"{place}: {reason}; fix it, or skip such records with data.bad_documents=skip")
