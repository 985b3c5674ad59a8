"""What a corpus source is: the protocol that every source implements, and the specification it is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data.documents import Document


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What to prepare, and how. Everything here but `cache_dir` and `workers` decides the tokens that come out.

    Attributes:
        source: A key of `SOURCES`.
        path: File, folder or glob (`text`); folder in SlimPajama's layout (`slimpajama`, instead of the Hub).
        text_key: Where a record keeps its text; dots go down ("meta.text").
        tokenizer: See `data.tokenizer.get_tokenizer`.
        validation_fraction: Share of documents held out where the corpus has no validation split of its own.
        repo: Dataset on the Hugging Face Hub, or a local folder of one (`slimpajama` only).
        revision: Commit of `repo`.
        fallbacks: "repo" or "repo@revision", tried in order when `repo` is gone.
        max_bytes: Stop after so many bytes of text (UTF-8).
        bad_documents: "refuse" or "skip" records without text or that cannot be decoded.
        cache_dir: Prepared corpora are kept in folders below.
        workers: Threads that encode; None means all usable cores.
    """

    source: str
    path: str | None = None
    text_key: str = "text"
    tokenizer: str
    validation_fraction: float = 0.01
    repo: str | None = None
    revision: str | None = None
    fallbacks: tuple[str, ...] = ()
    max_bytes: int | None = None
    bad_documents: str = "refuse"
    cache_dir: str = "prepared"
    workers: int | None = None


@dataclass(frozen=True)
class Part:
    """A stretch of a corpus that is read in one go; `size` (bytes on disk, or any one unit) is for the ETA."""

    name: str
    size: int
    split: str | None = None
    path: Path | None = None
    label: str = ""
    start: int = 0
    stop: int | None = None


class Source(Protocol):
    """What `data.prepare` needs of a source.

    `identity` must not need the network. `open` does what needs it, and returns what belongs in the manifest; it is
    given that same value again when an interrupted preparation goes on. None among documents stands for a bad record
    that was skipped. `consumed` says how much of the part being read has been read, in the unit of `Part.size`.
    """

    identity: dict[str, Any]

    @property
    def consumed(self) -> int: ...

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]: ...

    def parts(self) -> list[Part]: ...

    def documents(self, part: Part) -> Iterator[Document | None]: ...


def split_of(digest: bytes, validation_fraction: float) -> str:
    """Train or val by a hash of the text: a document keeps its side whatever else the corpus holds."""
    return "val" if int.from_bytes(digest[:8], "big") < validation_fraction * 2**64 else "train"
