"""Where text comes from: one class per source in `SOURCES`, and the document all of them yield.

A source is deterministic: its parts and the records of a part come in the same order every time, so that a position
(part, record) is enough to go on from. Its identity, plain JSON, is what a prepared corpus is cached under.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data import readers, stdlib
from data.readers import Document, NamedFile, Reading, find_files
from data.readers import read_documents as read_documents
from errors import UserError


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


def make_source(spec: DataSpec) -> Source:
    """The source that `spec` names. Raises UserError with every mistake in `spec`, one line each."""
    problems = []
    if spec.source not in SOURCES:
        problems.append(f"unknown data.source={spec.source!r}; allowed: {', '.join(sorted(SOURCES))}")
    if not 0 < spec.validation_fraction < 1:
        problems.append(f"data.validation_fraction={spec.validation_fraction} is outside (0, 1), e.g. 0.01")
    if spec.bad_documents not in ("refuse", "skip"):
        problems.append(f"unknown data.bad_documents={spec.bad_documents!r}; allowed: refuse, skip")
    if spec.max_bytes is not None and spec.max_bytes < 1:
        problems.append(f"data.max_bytes={spec.max_bytes} is not a positive number of bytes; null means all")
    if spec.workers is not None and spec.workers < 1:
        problems.append(f"data.workers={spec.workers} is not a positive number of threads; null means all cores")
    if spec.source == "text" and not spec.path:
        problems.append("data.source=text needs data.path=FILE, FOLDER or GLOB")
    if problems:
        raise UserError(*problems)
    return SOURCES[spec.source](spec)


# ----------------------------------------------------------------------------------------------------------- files


def _file_identity(base: Path, files: list[NamedFile]) -> dict[str, Any]:
    """Names, sizes and times of the files, hashed: a corpus may have 60,000 of them."""
    listing = hashlib.sha256()
    for file in files:
        stat = file.path.stat()
        line = f"{file.path.relative_to(base).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
        listing.update(line.encode("utf-8", "surrogateescape"))  # a name need not be UTF-8
    return {"files": len(files), "listing": listing.hexdigest()}


class _Files:
    """Reading that the sources of files share."""

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec
        self._reading = Reading()
        self._parts: list[Part] = []
        self.identity: dict[str, Any] = {}

    @property
    def consumed(self) -> int:
        return self._reading.consumed

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        return {}

    def parts(self) -> list[Part]:
        return self._parts

    def documents(self, part: Part) -> Iterator[Document | None]:
        assert part.path is not None
        self._reading = Reading(self._spec.text_key, self._spec.bad_documents, part.start, part.stop)
        for record in readers.read_file(part.path, self._reading):
            yield Document(record.text, record.source or part.label, part.split) if record else None


class TextSource(_Files):
    """Any files: plain text, JSON lines, JSON arrays, parquet; compressed or not.

    The split is by document. One single plain-text file is one document, so its split is by place: its last
    `validation_fraction` is held out (nanoGPT's convention), cut at the start of a line.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        assert spec.path is not None
        base, files = find_files(spec.path)
        self.identity = _file_identity(base, files)
        only = files[0].path
        if len(files) == 1 and only.suffix.lower() not in readers.COMPRESSED + readers.STRUCTURED:
            size = only.stat().st_size
            if not size:
                raise UserError(f"data.path={spec.path}: the file is empty; give one with text")
            cut = _place_to_cut(only, size - max(1, round(size * spec.validation_fraction)))
            self._parts = [
                Part("val", size - cut, "val", only, files[0].label, cut, size),
                Part("train", cut, "train", only, files[0].label, 0, cut),
            ]
        else:
            self._parts = [
                Part(file.path.relative_to(base).as_posix(), file.path.stat().st_size, None, file.path, file.label)
                for file in files
            ]


def _place_to_cut(path: Path, near: int) -> int:
    """The first start of a line at or after byte `near`; without one in 1 MiB, the first start of a character."""
    with path.open("rb") as file:
        file.seek(max(0, near - 1))
        ahead = file.read(1 << 20)
    newline = ahead.find(b"\n") + 1
    if newline and max(0, near - 1) + newline < path.stat().st_size:
        return max(0, near - 1) + newline
    offset = next((i for i, byte in enumerate(ahead[1:5], start=1) if byte & 0xC0 != 0x80), 1)
    return max(0, near - 1) + offset


class SlimPajamaSource(_Files):
    """A folder in SlimPajama's own layout: train/chunk*/*.jsonl.zst and validation/chunk*/*.jsonl.zst, in that or any
    other depth; its test split is left alone. A folder without the two is read like any other text."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        assert spec.path is not None
        base = Path(spec.path).expanduser()
        splits = {"val": base / "validation", "train": base / "train"}
        missing = [str(folder) for folder in splits.values() if not folder.is_dir()]
        if len(missing) == 1:
            raise UserError(f"data.path={spec.path}: SlimPajama's layout, but {missing[0]} is missing; fetch it too")
        if missing:
            plain = TextSource(spec)
            self.identity, self._parts = plain.identity, plain.parts()
            return
        for folder in splits.values():
            if not readers.is_in(folder, readers.homes_of(base)):
                raise UserError(
                    f"data.path={spec.path}: {folder} is a link that leads out of the folder, to {folder.resolve()};"
                    " move the text there, or give the folder that it is in"
                )
        everything: list[NamedFile] = []
        for split, folder in splits.items():
            _, files = find_files(str(folder))
            everything += files
            self._parts += [
                Part(file.path.relative_to(base).as_posix(), file.path.stat().st_size, split, file.path, "slimpajama")
                for file in files
            ]
        self.identity = _file_identity(base, everything)


class StdlibSource:
    """The running Python's standard library: sources, help topics, docstrings of C modules."""

    def __init__(self, spec: DataSpec) -> None:
        self.identity = stdlib.identity()
        self.consumed = 0

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        return {}

    def parts(self) -> list[Part]:
        size = sum(path.stat().st_size for path in stdlib.source_files())
        # Topics and docstrings: 0.5 and 0.6 MB in CPython 3.11; for the ETA only.
        return [Part("source", size), Part("topic", 500_000), Part("docstring", 600_000)]

    def documents(self, part: Part) -> Iterator[Document]:
        texts = {"source": self._sources, "topic": stdlib.topics, "docstring": stdlib.docstrings}[part.name]
        self.consumed = 0
        for text in texts():
            yield Document(text, part.name, None)

    def _sources(self) -> Iterator[str]:
        for path in stdlib.source_files():
            text = stdlib.read_source(path)
            self.consumed += path.stat().st_size
            if text is not None:
                yield text


def _slimpajama(spec: DataSpec) -> Source:
    if spec.path:
        return SlimPajamaSource(spec)
    from data.hub import HubSource

    return HubSource(spec)


SOURCES: dict[str, Callable[[DataSpec], Source]] = {
    "stdlib": StdlibSource,
    "slimpajama": _slimpajama,
    "text": TextSource,
}
