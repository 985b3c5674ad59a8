"""The column of a .csv or .tsv file that holds the text."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from common.errors import UserError
from data.documents import SHOWN_KEYS, Reading, Record
from data.files.decompress import LONGEST_LINE, split_lines

LONGEST_FIELD = 32 << 20  # characters; the csv module takes 4 bytes of memory for each
MOST_FIELDS = 4_000_000  # in a row, which may have many lines; each takes up to 60 bytes of memory


def read_csv(name: str, chunks: Iterator[bytes], reading: Reading) -> Iterator[Record | None]:
    """Yield the values of the column `reading.text_key` of comma-separated rows, see `_column`."""
    return _column(name, chunks, reading, ",")


def read_tsv(name: str, chunks: Iterator[bytes], reading: Reading) -> Iterator[Record | None]:
    """Yield the values of the column `reading.text_key` of tab-separated rows, see `_column`."""
    return _column(name, chunks, reading, "\t")


def _column(name: str, chunks: Iterator[bytes], reading: Reading, delimiter: str) -> Iterator[Record | None]:
    """Yield the value of one column for each row after the first, which names the columns.

    A field in double quotes may hold delimiters and line ends. A row with another number of fields than the first is a bad
    record, except that further fields may be empty. Raises UserError if no column has the name.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = _Lines(name, chunks, delimiter)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        columns = next((row for row in rows if row), [])
    except csv.Error as error:
        raise UserError(f"{name}: the first row, which names the columns, cannot be read ({error})") from error
    if not columns:
        return
    if columns.count(reading.text_key) != 1:
        found = "two columns" if reading.text_key in columns else "no column"
        separator = "a tab" if delimiter == "\t" else "a comma"
        raise UserError(
            f"{name}: {found} {reading.text_key!r} in the first row; set data.text_key to one of"
            f" {', '.join(columns)[:SHOWN_KEYS]} (separated by {separator}), or leave the file out with a glob in data.path"
        )
    position = columns.index(reading.text_key)
    while True:
        place = f"{name}:{rows.line_num + 1}"
        lines.delimiters = 0
        try:
            row = next(rows, None)
        except csv.Error as error:
            reading.reject(place, f"not a row of {len(columns)} fields ({error})")
            yield None
            continue
        if row is None:
            return
        if row:
            yield _record(row, len(columns), position, place, reading)


def _record(row: list[str], n_columns: int, position: int, place: str, reading: Reading) -> Record | None:
    if len(row) < n_columns or any(row[n_columns:]):
        numbers = f"{len(row)} field{'s' * (len(row) > 1)}, but the first row names {n_columns} columns"
        reading.reject(place, f"a row of {numbers}; a field with a delimiter or a line end must be in quotes")
        return None
    text = row[position]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        reading.reject(place, "invalid UTF-8")
        return None
    return Record(text, None)


class _Lines:
    """Lines with their line ends, for one row after the other; the csv module holds a row in memory, however long it is.

    Bytes that are not UTF-8 become lone surrogates, so that their row can be skipped. Raises UserError for a line of more than
    LONGEST_LINE bytes, and for a row of more than MOST_FIELDS fields.

    Attributes:
        delimiters: Number of delimiters since it was last set to 0, at the start of a row.
    """

    def __init__(self, name: str, chunks: Iterator[bytes], delimiter: str) -> None:
        self._name, self._delimiter = name, delimiter.encode()
        self._lines = enumerate(split_lines(chunks), start=1)
        self.delimiters = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.delimiters += 0 if line is None else line.count(self._delimiter)
        if line is None or self.delimiters > MOST_FIELDS:
            limit = (
                f"line of more than {LONGEST_LINE >> 20} MiB"
                if line is None
                else f"row of more than {MOST_FIELDS:,} fields"
            )
            raise UserError(f"{self._name}:{number}: a {limit}; recreate the file")
        text = line.decode("utf-8", "surrogateescape") + "\n"
        return text.removeprefix("\ufeff") if number == 1 else text
