"""Readers of text files: the records of a file in bounded memory, and one-line errors for files that cannot be used.

A record is a text and the source label in its metadata, or None. Each format is one generator in formats/. Those of `TEXT` read
bytes, which decompress.py decompresses and archive.py takes from .zip archives; those of `COLUMNAR` read files that have their
own compression. Any other file is plain text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from data.documents import BadRecord, Document, Reading, Record
from data.files.archive import display_name
from data.files.decompress import first_bytes, read_chunks
from data.files.file_kind import HEAD_BYTES, kind_of
from data.files.find_files import find_files, suffix_of
from data.files.formats.delimited import read_csv, read_tsv
from data.files.formats.json_records import read_json, read_json_lines
from data.files.formats.plain import keep_separators_whole, read_plain, read_separated

MOST_SOURCES, OTHER_SOURCES = 1000, "other"
LOOK_AHEAD = 20  # records after a bad first one that are tried before the advice to skip bad records is given

Records = Iterator[Record | None]


def _parquet(path: Path, reading: Reading) -> Records:
    from data.files.formats.columnar import read_parquet  # pyarrow takes long to import

    return read_parquet(path, reading)


def _arrow(path: Path, reading: Reading) -> Records:
    from data.files.formats.columnar import read_arrow

    return read_arrow(path, reading)


TEXT: dict[str, Callable[[str, Iterator[bytes], Reading], Records]] = {
    ".txt": read_separated,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
COLUMNAR: dict[str, Callable[[Path, Reading], Records]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}


def read_file(path: Path, reading: Reading) -> Records:
    """Yield the records of a file, or of `reading.member` in an archive, in order; None stands for a skipped bad record.

    Raises UserError for a truncated, corrupt or unreadable file and, with `reading.bad_documents` "refuse", for a bad record.
    """
    try:
        for record in _records(path, reading):
            reading.records += 1
            yield record
    except BadRecord as error:
        if reading.records == 0 and not _has_good_records(path, reading):
            raise UserError(f"{error.problem}; no record at the start of the file has a text") from None
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check data.path") from error


def _records(path: Path, reading: Reading) -> Records:
    name = display_name(path, reading.member)
    suffix = suffix_of(Path(name))
    if suffix in COLUMNAR:
        return COLUMNAR[suffix](path, reading)
    reader = TEXT.get(suffix, read_plain)
    if reader is read_separated and (reading.start or reading.stop):
        keep_separators_whole(path, reading)
    chunks = read_chunks(path, reading)
    if reading.start:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    else:
        head, chunks = first_bytes(chunks, HEAD_BYTES)
    if kind := kind_of(head):
        raise UserError(f"{name}: the content is {kind[0]}, not text in UTF-8; {kind[1]}")
    return reader(name, chunks, reading)


def _has_good_records(path: Path, reading: Reading) -> bool:
    """Return whether one of the first records of a file is good, that is, whether skipping bad ones would leave any."""
    again = replace(reading, bad_documents="skip", consumed=0)
    try:
        return any(itertools.islice(_records(path, again), 1, 1 + LOOK_AHEAD))
    except UserError:
        return False


def source_id(known: dict[str, int], label: str) -> int:
    """Return the id of a source label, and add the label to `known` if it is new.

    A corpus may have a different label in every line. After MOST_SOURCES labels, new ones are counted as OTHER_SOURCES.
    """
    if label not in known and len(known) >= MOST_SOURCES:
        label = OTHER_SOURCES
    return known.setdefault(label, len(known))


def read_documents(
    path: str | Path, text_key: str = "text", bad_documents: str = "refuse", left_out: dict[str, int] | None = None
) -> Iterator[Document]:
    """Yield the documents of a file, folder or glob in order, for evaluation; their split is None.

    `left_out` counts the records without a document by reason, "bad" or "empty". Raises UserError like
    `data.sources.files.TextSource`, and if there is no document at all.
    """
    files = find_files(str(path)).files
    found = False
    for file in files:
        for record in read_file(file.path, Reading(text_key, bad_documents, member=file.member)):
            if record is not None and record.text:
                found = True
                yield Document(record.text, record.source or file.label, None)
            elif left_out is not None:
                reason = "bad" if record is None else "empty"
                left_out[reason] = left_out.get(reason, 0) + 1
    if not found:
        raise UserError(f"data.path={path}: no text in {len(files)} file(s); give files with text")
