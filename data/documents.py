"""The documents that readers produce, and how a reading went."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class Document:
    """A text, the label of where it is from, and its split ("train", "val"; None: decided by a hash of the text)."""

    text: str
    source: str
    split: str | None


@dataclass(frozen=True)
class Record:
    """One text and the label its own metadata gives it (SlimPajama's `meta.redpajama_set_name`), or None."""

    text: str
    source: str | None


@dataclass
class Reading:
    """How to read, and what was met on the way. `consumed` counts bytes of the file as it lies on disk."""

    text_key: str = "text"
    bad_documents: str = "refuse"
    start: int = 0
    stop: int | None = None
    consumed: int = 0
    records: int = 0

    def bad(self, where: str, what: str) -> None:
        """Raises UserError naming the place, unless such records are to be skipped."""
        if self.bad_documents == "refuse":
            raise UserError(f"{where}: {what}; mend it, or leave such records out with data.bad_documents=skip")
