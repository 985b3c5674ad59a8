"""Where text comes from: one class per source in `SOURCES`, and the document all of them yield.

A source is deterministic: its parts and the records of a part come in the same order every time, so that a position
(part, record) is enough to go on from. Its identity, plain JSON, is what a prepared corpus is cached under.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from data import readers
from data.decompress import COMPRESSED
from data.documents import Document, Reading
from data.find_files import STRUCTURED, NamedFile, find_files, allowed_folders, lies_within
from data.sources.base import DataSpec, Part

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
        if len(files) == 1 and only.suffix.lower() not in COMPRESSED + STRUCTURED:
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
            if not lies_within(folder, allowed_folders(base)):
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
