"""Corpora in local files, and the split of each file. docs/input.md states the rule ("Validation split")."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from common.errors import UserError
from data.documents import Document, Reading
from data.files import readers
from data.files.decompress import COMPRESSED
from data.files.find_files import (
    STRUCTURED,
    FoundFiles,
    NamedFile,
    allowed_folders,
    find_files,
    lies_within,
    stem_of,
    suffix_of,
)
from data.sources.base import DataSpec, Overview, Part
from data.splits import SPLIT_NAMES, cut_position, roles_of, split_names, without_split
from data.tokenizers.tokenizer import END_OF_TEXT

# Part of the identity of a corpus whose files are read by other rules than in the first version, which read .csv as plain
# text and knew neither the names of splits nor separators of documents.
RULES = 1
# A single plain-text file is searched so far for the separator of documents, on each start.
SEARCHED_BYTES = 64 << 20


@dataclass
class _Layout:
    """The files of a corpus: its parts in the order of reading, what identifies them, and what is read."""

    parts: list[Part]
    identity: dict[str, Any]
    overview: Overview


@dataclass
class _Found:
    """The files that a path names and, for each, the parts of its name below the folder that file names are relative to."""

    base: Path
    files: list[NamedFile]
    not_read: tuple[str, ...]
    names: list[tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [_name_parts(file, self.base) for file in self.files]


class TextSource:
    """Any text files: plain text, JSON, columns of CSV, parquet or Arrow files, compressed or not.

    The validation split is the first of these that exists: the text of `validation_path`; the corpus' own split by the names
    of folders and files; for a single plain-text file, which is one document, its last `validation_fraction`, as in nanoGPT;
    documents by their hash. A folder in SlimPajama's layout (train/chunk*/*.jsonl.zst and validation/chunk*/*.jsonl.zst) is
    one with a split of its own.
    """

    in_bytes = True

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec
        self._reading = Reading()
        assert spec.path is not None
        found = _found(spec.path)
        layout = (
            _by_option(spec, found)
            or _by_name(spec, found)
            or _end_of_file(spec, found)
            or _Layout(
                _parts_of(found, None, [file.label for file in found.files]),
                {**_file_identity(found.base, found.files), "rules": RULES},
                _overview("", len(found.files), found.not_read),
            )
        )
        self._layout = layout
        self.identity = layout.identity

    @property
    def consumed(self) -> int:
        return self._reading.consumed

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        return {}

    def parts(self) -> list[Part]:
        return self._layout.parts

    def overview(self) -> Overview:
        return self._layout.overview

    def documents(self, part: Part) -> Iterator[Document | None]:
        assert part.path is not None
        self._reading = Reading(self._spec.text_key, self._spec.bad_documents, part.start, part.stop, part.member)
        for record in readers.read_file(part.path, self._reading):
            yield Document(record.text, record.source or part.label, part.split) if record else None


def _found(path: str) -> _Found:
    """Return the files that data.path names, with those of linked folders whose names are splits.

    Raises UserError if such a link leads out of the folder.
    """
    found: FoundFiles = find_files(path)
    files, not_read, base = list(found.files), [*found.not_read], Path(path).expanduser()
    for link in sorted(base.iterdir()) if base.is_dir() else ():
        if not link.is_symlink() or not link.is_dir():
            continue
        if link.name.lower() not in SPLIT_NAMES:
            not_read.append(link)
            continue
        if not lies_within(link, allowed_folders(base)):
            raise UserError(
                f"data.path={path}: {link} is a link that leads out of the folder, to {link.resolve()};"
                " move the text into the folder, or set data.path= to the folder that holds it"
            )
        files += find_files(str(link)).files
    return _Found(found.base, files, tuple(file.relative_to(found.base).as_posix() for file in not_read))


def _by_option(spec: DataSpec, found: _Found) -> _Layout | None:
    """All text of data.path is training text, that of data.validation_path validation text."""
    if spec.validation_path is None:
        return None
    try:
        held_out = find_files(spec.validation_path)
    except UserError as error:  # its messages name the option data.path
        raise UserError(*(line.replace("data.path", "data.validation_path") for line in error.messages)) from error
    validation = _Found(held_out.base, held_out.files, tuple(map(str, held_out.not_read)))
    own = {(file.path.resolve(), file.member) for file in validation.files}
    files = [file for file in found.files if (file.path.resolve(), file.member) not in own]
    if not files:
        raise UserError(
            f"data.validation_path={spec.validation_path} holds all files of data.path={spec.path};"
            " give other files as training text"
        )
    training = _Found(found.base, files, found.not_read)
    identity = {
        **_file_identity(training.base, training.files),
        "validation": _file_identity(validation.base, validation.files),
        "rules": RULES,
    }
    parts = _parts_of(validation, "val", _labels(spec, validation)) + _parts_of(
        training, "train", _labels(spec, training)
    )
    not_read = training.not_read + validation.not_read
    return _Layout(parts, identity, _overview("data.validation_path", len(parts), not_read))


def _by_name(spec: DataSpec, found: _Found) -> _Layout | None:
    """The corpus' own split, by the names of its folders or files; None without one."""
    names = split_names(found.names)
    roles = roles_of(names)
    if not roles:
        return None
    groups = {
        name: _Found(found.base, [file for file, own in zip(found.files, names, strict=True) if own == name], ())
        for name in dict.fromkeys([*roles, *sorted(set(names))])
    }
    read = [file for name in roles for file in groups[name].files]
    parts = [
        part
        for name, split in roles.items()
        for part in _parts_of(groups[name], split, _labels(spec, groups[name], found))
    ]
    held_out = next(iter(roles))
    not_read = list(found.not_read)
    for name in sorted(set(names) - set(roles)):
        not_read += [_described(name, groups[name])] if name else map("/".join, groups[name].names)
    skipped = len(found.files) - len(read) + len(found.not_read)
    overview = Overview(_described(held_out, groups[held_out], count=False), len(read), _printable(not_read), skipped)
    rules = {} if _as_before(spec, {name: groups[name] for name in roles}) else {"rules": RULES}
    return _Layout(parts, {**_file_identity(found.base, read), **rules}, overview)


def _as_before(spec: DataSpec, groups: dict[str, _Found]) -> bool:
    """Return whether the corpus is in SlimPajama's own layout: it takes hours to prepare, and is read as in the first version."""
    files = [(name, parts) for name, group in groups.items() for parts in group.names]
    return spec.source == "slimpajama" and all(
        parts[0] == name and name in ("train", "validation") and suffix_of(Path(parts[-1])) == ".jsonl"
        for name, parts in files
    )


def _end_of_file(spec: DataSpec, found: _Found) -> _Layout | None:
    """The last part of a single plain-text file that is one document, cut at the start of a line; None for other files."""
    only = found.files[0]
    path = only.path
    structured = suffix_of(path) in STRUCTURED or path.suffix.lower() in COMPRESSED
    if len(found.files) > 1 or only.member or structured:
        return None
    size = path.stat().st_size
    if not size:
        raise UserError(f"data.path={spec.path}: the file is empty; give one with text")
    with path.open("rb") as file:
        if END_OF_TEXT.encode() in file.read(SEARCHED_BYTES):
            return None

        def read(start: int, n: int) -> bytes:
            file.seek(start)
            return file.read(n)

        cut = cut_position(read, size - max(1, round(size * spec.validation_fraction)), size)
    part = partial(Part, path.name, path=path, label=only.label)
    parts = [part(size - cut, "val", start=cut, stop=size), part(cut, "train", start=0, stop=cut)]
    # The rest of a longer file may hold separators.
    rules = {} if size <= SEARCHED_BYTES else {"rules": RULES}
    identity = {**_file_identity(found.base, found.files), **rules}
    return _Layout(parts, identity, _overview("end of the text", 1, found.not_read))


def _name_parts(file: NamedFile, base: Path) -> tuple[str, ...]:
    return (*file.path.relative_to(base).parts, *PurePath(file.member).parts)


def _overview(validation: str, files: int, not_read: tuple[str, ...]) -> Overview:
    return Overview(validation, files, _printable(not_read), len(not_read))


def _printable(names: Iterable[str]) -> tuple[str, ...]:
    """Return names that can be printed: a file's name need not be UTF-8."""
    return tuple(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names)


def _described(name: str, group: _Found, count: bool = True) -> str:
    """Return how the files of a split are called: its folder, e.g. "test/ (12 files)", or the file, e.g. "wiki.valid.txt"."""
    folders = set()
    for parts in group.names:
        above = [part.lower() for part in parts[:-1]]
        folders.add("/".join(parts[: above.index(name) + 1]) + "/" if name in above else "")
    number = f"{len(group.files):,} {'file' if len(group.files) == 1 else 'files'}"
    if len(folders) == 1 and (folder := folders.pop()):
        return f"{folder} ({number})" if count else folder
    return "/".join(group.names[0]) if len(group.names) == 1 else f"{number} named {name}"


def _labels(spec: DataSpec, group: _Found, corpus: _Found | None = None) -> list[str]:
    """Return the default source labels of the files of one split, the same for both splits of a corpus.

    That is the first folder that is not the split's, else the name of a structured file, else that of the corpus.
    """
    if spec.source == "slimpajama":
        return ["slimpajama"] * len(group.files)
    base = (corpus or group).base.resolve().name or "text"
    labels = []
    for parts in group.names:
        folders = [part for part in parts[:-1] if part.lower() not in SPLIT_NAMES]
        structured = suffix_of(Path(parts[-1])) in STRUCTURED
        stem = without_split(stem_of(Path(parts[-1]))) if structured else ""
        labels.append((folders[:1] or [stem or base])[0])
    return labels


def _parts_of(found: _Found, split: str | None, labels: list[str]) -> list[Part]:
    return [
        Part("/".join(name), file.size, split, file.path, label, member=file.member)
        for file, name, label in zip(found.files, found.names, labels, strict=True)
    ]


def _file_identity(base: Path, files: list[NamedFile]) -> dict[str, Any]:
    """Return the number of files and a hash of their names, sizes and modification times (a corpus may have 60,000 files)."""
    listing = hashlib.sha256()
    for file in files:
        stat = file.path.stat()
        line = f"{'/'.join(_name_parts(file, base))} {stat.st_size} {stat.st_mtime_ns}\n"
        listing.update(line.encode("utf-8", "surrogateescape"))  # a name need not be UTF-8
    return {"files": len(files), "listing": listing.hexdigest()}
