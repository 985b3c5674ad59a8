"""Reads the rows of benchmark files: JSON lines, a JSON list, CSV, TSV and parquet; text also compressed (.gz .zst .xz .bz2)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError, refuse
from common.format import shortened
from common.safe_read import parse_json
from data.documents import SHOWN_KEYS, Reading
from data.files.decompress import read_chunks, split_lines
from data.files.find_files import suffix_of
from data.files.formats.delimited import LONGEST_FIELD

LARGEST_FILE = 512 << 20  # decompressed bytes; all items of a task are in memory, and the largest benchmarks have 50 MB

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Row:
    """A row with its place, e.g. "quiz.jsonl:12", for messages."""

    place: str
    values: dict[str, Any]

    def text(self, key: str) -> str:
        """Return the text in a field. Raises UserError if it is missing or not a text."""
        value = self.values.get(key)
        if not isinstance(value, str):
            if key in self.values:
                raise UserError(f"{self.place}: {key} is {shortened(value)}, not a text")
            raise UserError(f"{self.place}: no field {key!r}; its fields are {self.fields}")
        return value

    @property
    def fields(self) -> str:
        """The names of its fields, for messages."""
        return ", ".join(map(str, self.values))[:SHOWN_KEYS]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file in order.

    Raises UserError with file and line for a file that cannot be read, is not UTF-8 or is larger than LARGEST_FILE, and for a
    row that is not valid JSON, not an object or has another number of fields than the header.
    """
    for row in rows_and_errors(path):
        if isinstance(row, UserError):
            raise row
        yield row


def rows_and_errors(path: Path) -> Iterator[Row | UserError]:
    """Yield the rows of a file as `read_rows` does, but in place of an invalid row the error, so that it can be skipped."""
    suffix = suffix_of(path)
    if not path.is_file():  # not a pipe either, which may never end
        raise UserError(f"{path} is not a file; give task.path=FILE or FOLDER")
    if suffix not in READERS:
        raise UserError(f"{path}: {suffix or 'no suffix'} is not a format of task.path; allowed: {', '.join(READERS)}")
    try:
        yield from READERS[suffix](path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); correct task.path") from None
    except csv.Error as error:
        raise UserError(f"{path}: not valid {suffix} ({error}); correct the file of task.path") from None


def read_each(
    rows: Iterable[Given | UserError], read: Callable[[Given], Made], bad_items: str
) -> tuple[list[Made], int]:
    """Return what `read` makes of each row, and the number of invalid rows: errors, and those that it refuses by UserError.

    With bad_items=refuse, raises UserError with a line for each of the first of them; with bad_items=skip, only
    if there is no other row.
    """
    made, problems = [], []
    for row in rows:
        try:
            if isinstance(row, UserError):
                raise row
            made.append(read(row))
        except UserError as error:
            problems.append(str(error))
    if problems and (bad_items == "refuse" or not made):
        advice = (
            f"{len(problems):,} of {len(problems) + len(made):,} items are invalid: correct them, or leave them out and count"
            " them with task.bad_items=skip"
        )
        refuse(problems, "more invalid items", *([advice] if made else []))
    return made, len(problems)


def item_files(path: Path, preferred: Iterable[str] = ()) -> list[Path]:
    """Return the files that task.path names: itself, or of a folder the first file of `preferred`, or else all readable ones.

    Raises UserError if it does not exist or is a folder without such files.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist; correct task.path")
    for name in preferred:
        if (path / name).is_file():
            return [path / name]
    files = sorted(
        each for each in path.iterdir() if suffix_of(each) in READERS and each.name[0] != "." and each.is_file()
    )
    if not files:
        raise UserError(f"{path} holds no file with items ({', '.join(READERS)}); correct task.path")
    return files


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without line ends."""
    n_bytes = 0
    for number, line in enumerate(split_lines(read_chunks(path, Reading())), 1):
        n_bytes += len(line or b"") + 1
        if line is None or n_bytes > LARGEST_FILE:
            raise UserError(f"{path}:{number}: larger than {LARGEST_FILE >> 20} MiB; split the file of task.path")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}:{number}: not valid UTF-8 at byte {error.start:,} of the line; convert it"
            ) from None
        yield text.removesuffix("\r")


def _json_lines(path: Path) -> Iterator[Row | UserError]:
    return _parsed_lines(path, _lines(path))


def _parsed_lines(path: Path, lines: Iterable[str]) -> Iterator[Row | UserError]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _row_of_line(f"{path}:{number}", line)


def _row_of_line(place: str, line: str) -> Row | UserError:
    try:
        return _row(place, _parsed(place, line))
    except UserError as error:
        return error


def _json(path: Path) -> Iterator[Row | UserError]:
    """A list of objects, or JSON lines in a file that is named .json."""
    lines = list(_lines(path))
    filled = [line for line in lines if line.strip()]
    if len(filled) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in filled[:2]):
        yield from _parsed_lines(path, lines)
        return
    entries = _parsed(str(path), "\n".join(lines))
    if not isinstance(entries, list):
        raise UserError(
            f"{path}: not a list of objects; write [{{...}}, {{...}}], or one object per line in a .jsonl file"
        )
    for number, values in enumerate(entries, 1):
        yield _row(f"{path}: entry {number}", values)


def _parsed(place: str, text: str) -> Any:
    try:
        values = parse_json(text)
        if "\\ud" in text.lower():
            json.dumps(values, ensure_ascii=False).encode()  # fails for a lone surrogate, which is not text
        return values
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON ({error}); correct the file of task.path") from None


def _row(place: str, values: Any) -> Row | UserError:
    if not isinstance(values, dict):
        return UserError(f"{place}: {shortened(values)} is not an object; correct the file of task.path")
    return Row(place, values)


def _delimited(path: Path, delimiter: str, quoting: Any) -> Iterator[Row | UserError]:
    """The rows below a header. Blank lines are left out; fields in quotes may hold line ends."""
    csv.field_size_limit(LONGEST_FIELD)  # some passages are longer than the module's default of 128 KiB
    reader = csv.reader((f"{line}\n" for line in _lines(path)), delimiter=delimiter, quoting=quoting, strict=True)
    header = next((row for row in reader if row), [])
    if len(set(header)) < len(header):
        raise UserError(f"{path}: the header names a field twice: {', '.join(header)[:SHOWN_KEYS]}; rename one")
    for fields in reader:
        if fields and len(fields) != len(header):
            yield UserError(
                f"{path}:{reader.line_num}: {len(fields)} fields, but the header has {len(header)}; correct the file of"
                " task.path"
            )
        elif fields:
            yield Row(f"{path}:{reader.line_num}", dict(zip(header, fields, strict=True)))


def _csv(path: Path) -> Iterator[Row | UserError]:
    return _delimited(path, ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> Iterator[Row | UserError]:
    """Tabs separate plain text, in which quotes are ordinary characters."""
    return _delimited(path, "\t", csv.QUOTE_NONE)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet  # takes long to import

    from data.files.formats.columnar import readable, rows_per_batch

    number = n_bytes = 0
    with readable(path, "parquet"), path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
        for group in range(file.metadata.num_row_groups):
            rows = rows_per_batch(file.metadata.row_group(group), file.schema_arrow.names)
            for batch in file.iter_batches(rows, [group]):
                n_bytes += batch.nbytes
                if n_bytes > LARGEST_FILE:
                    raise UserError(f"{path}: larger than {LARGEST_FILE >> 20} MiB; split the file of task.path")
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values)


READERS: dict[str, Callable[[Path], Iterator[Row] | Iterator[Row | UserError]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
