"""Corpora in local files: any text files, and a folder in SlimPajama's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from data import readers
from data.decompress import COMPRESSED
from data.documents import Document, Reading
from data.find_files import STRUCTURED, NamedFile, allowed_folders, find_files, lies_within
from data.sources.base import DataSpec, Part


def _file_identity(base: Path, files: list[NamedFile]) -> dict[str, Any]:
    """Return the number of files and a hash of their names, sizes and modification times (a corpus may have 60,000 files)."""
    listing = hashlib.sha256()
    for file in files:
        stat = file.path.stat()
        line = f"{file.path.relative_to(base).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
        listing.update(line.encode("utf-8", "surrogateescape"))  # a name need not be UTF-8
    return {"files": len(files), "listing": listing.hexdigest()}


def _part_of(path: Path, base: Path, split: str | None, label: str) -> Part:
    return Part(path.relative_to(base).as_posix(), path.stat().st_size, split, path, label)


class _Files:
    """Base class of the sources of local files."""

    in_bytes = True

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
    """Any text files: plain text, JSON lines, JSON arrays or parquet, compressed or not.

    Documents are assigned to a split by their hash. A single plain-text file is one document, so its last
    `validation_fraction` is held out instead, as in nanoGPT, cut at the start of a line.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        assert spec.path is not None
        found = find_files(spec.path)
        base, files = found.base, found.files
        self.identity = _file_identity(base, files)
        only = files[0].path
        if len(files) == 1 and only.suffix.lower() not in COMPRESSED + STRUCTURED:
            size = only.stat().st_size
            if not size:
                raise UserError(f"data.path={spec.path}: the file is empty; give one with text")
            cut = _cut_position(only, size - max(1, round(size * spec.validation_fraction)))
            self._parts = [
                Part("val", size - cut, "val", only, files[0].label, cut, size),
                Part("train", cut, "train", only, files[0].label, 0, cut),
            ]
        else:
            self._parts = [_part_of(file.path, base, None, file.label) for file in files]


def _cut_position(path: Path, near: int) -> int:
    """Return the first start of a line at or after byte `near` or, without one in 1 MiB, the first start of a character."""
    with path.open("rb") as file:
        start = file.seek(max(0, near - 1))
        ahead = file.read(1 << 20)
    newline = ahead.find(b"\n") + 1
    if newline and start + newline < path.stat().st_size:
        return start + newline
    return start + next((i for i, byte in enumerate(ahead[1:5], start=1) if byte & 0xC0 != 0x80), 1)


class SlimPajamaSource(_Files):
    """A folder in SlimPajama's layout: train/chunk*/*.jsonl.zst and validation/chunk*/*.jsonl.zst, at any depth.

    The test split is not read. A folder without train and validation is read as `TextSource` reads it.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        assert spec.path is not None
        base = Path(spec.path).expanduser()
        splits = {"val": base / "validation", "train": base / "train"}
        missing = [str(folder) for folder in splits.values() if not folder.is_dir()]
        if len(missing) == 1:
            raise UserError(
                f"data.path={spec.path}: SlimPajama's layout, but {missing[0]} is missing; download it as well"
            )
        if missing:
            plain = TextSource(spec)
            self.identity, self._parts = plain.identity, plain.parts()
            return
        for folder in splits.values():
            if not lies_within(folder, allowed_folders(base)):
                raise UserError(
                    f"data.path={spec.path}: {folder} is a link that leads out of the folder, to {folder.resolve()};"
                    " move the text into the folder, or set data.path= to the folder that holds it"
                )
        everything: list[NamedFile] = []
        for split, folder in splits.items():
            files = find_files(str(folder)).files
            everything += files
            self._parts += [_part_of(file.path, base, split, "slimpajama") for file in files]
        self.identity = _file_identity(base, everything)
