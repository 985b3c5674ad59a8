"""Reads the rows of benchmark files: JSON lines, a JSON list, CSV or TSV, also compressed (.gz .zst .xz .bz2)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.safe_read import parse_json
from data.documents import Reading
from data.files.decompress import read_chunks, read_whole
from data.files.find_files import suffix_of

# Fields of a CSV may be longer than the module's default of 128 KiB: some passages are.
csv.field_size_limit(1 << 24)


@dataclass(frozen=True)
class Row:
    """A row with its place, e.g. "quiz.jsonl:12", for messages."""

    place: str
    values: dict[str, Any]

    def text(self, key: str) -> str:
        """Return the text in a field. Raises UserError if it is missing or not a text."""
        value = self.values.get(key)
        if not isinstance(value, str):
            what = f"{key} is {value!r}, not a text" if key in self.values else f"no field {key!r}"
            raise UserError(f"{self.place}: {what}; its fields are {', '.join(map(str, self.values))}")
        return value


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file in order.

    Raises UserError with file and line for a file that cannot be read, is not UTF-8 or has a row that is not an object.
    """
    try:
        text = read_whole(str(path), read_chunks(path, Reading())).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 at byte {error.start:,}; convert it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give task.path=FILE or FOLDER") from None
    suffix = suffix_of(path)
    if suffix not in READERS:
        raise UserError(f"{path}: {suffix or 'no suffix'} is not a format of task.path; allowed: {', '.join(READERS)}")
    yield from READERS[suffix](path, text)


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _row(f"{path}:{number}", line)


def _json(path: Path, text: str) -> Iterator[Row]:
    """A list of objects, or JSON lines in a file that is named .json."""
    if not text.lstrip().startswith("["):
        yield from _json_lines(path, text)
        return
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: entry {number} is not an object")
        yield Row(f"{path}: entry {number}", row)


def _row(place: str, line: str) -> Row:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{place}: not an object")
    return Row(place, values)


def _delimited(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    lines = io.StringIO(text, newline="")
    if delimiter == "\t":  # tabs separate plain text, in which quotes are ordinary characters
        reader = csv.DictReader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines, delimiter=delimiter)
    for values in reader:
        place = f"{path}:{reader.line_num}"
        if None in values or None in values.values():
            raise UserError(f"{place}: not as many fields as the header's {len(reader.fieldnames or [])}")
        yield Row(place, values)


def _csv(path: Path, text: str) -> Iterator[Row]:
    return _delimited(path, text, ",")


def _tsv(path: Path, text: str) -> Iterator[Row]:
    return _delimited(path, text, "\t")


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
