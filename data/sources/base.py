"""The protocol of corpus sources, and the specification of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data.documents import Document


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The corpus to prepare. Everything but `cache_dir` and `workers` determines the resulting tokens.

    Attributes:
        source: A key of `SOURCES`, or "tokens" (data/token_files.py).
        path: File, folder or glob (`text`, `tokens`; `slimpajama`, instead of the Hub).
        validation_path: File, folder or glob of the validation text; all of `path` is training text then.
        text_key: Key of the text in a record; dots descend into nested objects ("meta.text").
        tokenizer: See `data.tokenizers.tokenizer.get_tokenizer`.
        validation_fraction: Fraction of documents held out if the corpus has no validation split.
        repo: Data set on the Hugging Face Hub, or a local folder of one (`hub` and `slimpajama`).
        config: Configuration of `repo`; None for its default.
        split: Split of `repo` to train on.
        revision: Commit, tag or branch of `repo`.
        fallbacks: "repo" or "repo@revision", tried in order if `repo` is not available.
        max_bytes: Stop after this many bytes of text (UTF-8).
        bad_documents: "refuse" or "skip" records that cannot be decoded or have no text.
        cache_dir: Folder in which each prepared corpus has a folder.
        workers: Threads that tokenize; None for all usable cores.
        mix: The corpora that `source="mix"` draws from; see `data.mix`. Empty for any other source.
    """

    source: str
    path: str | None = None
    validation_path: str | None = None
    text_key: str = "text"
    tokenizer: str
    validation_fraction: float = 0.01
    repo: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    fallbacks: tuple[str, ...] = ()
    max_bytes: int | None = None
    bad_documents: str = "refuse"
    cache_dir: str = "prepared"
    workers: int | None = None
    mix: tuple[MixedSource, ...] = ()


@dataclass(frozen=True)
class MixedSource:
    """A corpus of a mix: its name, its share of the training tokens (the shares add up to 1), and what to prepare."""

    name: str
    weight: float
    spec: DataSpec


@dataclass(frozen=True)
class Part:
    """A part of a corpus that is read in one go, usually a file or a section of it.

    `size` is for the ETA, in bytes on disk or any unit that all parts of a source share. `member` is the name of a file
    inside the archive `path`.
    """

    name: str
    size: int
    split: str | None = None
    path: Path | None = None
    label: str = ""
    start: int = 0
    stop: int | None = None
    member: str = ""


@dataclass(frozen=True)
class Overview:
    """What a source reads, and what it does not.

    Attributes:
        validation: Where the source's own validation split comes from; empty if its documents have no split.
        files: Number of files that are read; 0 for a source that is not made of files.
        not_read: Names of the files, and of the splits with several files, that are not read.
        files_not_read: Number of these files.
    """

    validation: str = ""
    files: int = 0
    not_read: tuple[str, ...] = ()
    files_not_read: int = 0


class Source(Protocol):
    """The interface of a corpus source.

    A source is deterministic: its parts, and the records of a part, come in the same order every time. A position (part,
    record) is therefore enough to continue an interrupted preparation.

    Attributes:
        identity: Plain JSON that identifies the text; a prepared corpus is cached under its hash. It must not need the network.
        consumed: How much of the current part has been read, in the unit of `Part.size`.
        in_bytes: Whether that unit is bytes on disk or of a download.
    """

    identity: dict[str, Any]
    in_bytes: bool

    @property
    def consumed(self) -> int: ...

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        """Connect to the source, over the network if needed, and return the origin that the manifest records.

        `previous` is the value returned earlier for an interrupted preparation, which must be the same again.
        """
        ...

    def parts(self) -> list[Part]: ...

    def overview(self) -> Overview:
        """Return what the source reads, after `open`."""
        ...

    def documents(self, part: Part) -> Iterator[Document | None]:
        """Yield the documents of a part; None stands for a bad record that was skipped."""
        ...
