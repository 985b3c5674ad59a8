"""Readers of text files: the records of a file in bounded memory, and one-line errors for files that cannot be used.

A record is a text and the source label in its metadata, or None. Each structured format (JSON lines, JSON arrays, parquet) is
one generator in `READERS`; any other file is plain text. data/decompress.py decompresses .zst and .gz; parquet files have
their own compression.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.safe_read import parse_json
from data.decompress import LONGEST_LINE, PIECE_BYTES, read_chunks, read_whole, split_lines
from data.documents import Document, Reading, Record
from data.find_files import find_files, suffix_of

BOM = b"\xef\xbb\xbf"
# Limits of the rows and bytes of a parquet file decoded at once: a dictionary may repeat one large value in every row.
PARQUET_ROWS, PARQUET_BYTES = 256, 64 << 20
MOST_SOURCES, OTHER_SOURCES, LONGEST_LABEL = 1000, "other", 100
# A plain-text file up to this size is one document. A longer file is cut at line ends, so that its size does not determine the
# memory needed.
PLAIN_DOCUMENT_BYTES = 16 << 20
LONGEST_PLAIN = 4 * PLAIN_DOCUMENT_BYTES  # size at which text without line ends is cut


def read_file(path: Path, reading: Reading) -> Iterator[Record | None]:
    """Yield the records of one file in order; None stands for a bad record that is skipped.

    Raises UserError for a truncated, corrupt or unreadable file and, with `reading.bad_documents` "refuse", for a bad record.
    """
    reader = READERS.get(suffix_of(path), _plain)
    try:
        for record in reader(path, reading):
            reading.records += 1
            yield record
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check data.path") from error


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
        for record in read_file(file.path, Reading(text_key, bad_documents)):
            if record is not None and record.text:
                found = True
                yield Document(record.text, record.source or file.label, None)
            elif left_out is not None:
                reason = "bad" if record is None else "empty"
                left_out[reason] = left_out.get(reason, 0) + 1
    if not found:
        raise UserError(f"data.path={path}: no text in {len(files)} file(s); give files with text")


def _plain(path: Path, reading: Reading) -> Iterator[Record | None]:
    """Yield a plain-text file as one document, or a long one as documents of about PLAIN_DOCUMENT_BYTES.

    A long file is cut after a line end, or between two characters if there is no line end in LONGEST_PLAIN bytes.
    """
    pending: list[bytes] = []
    size, offset = 0, reading.start
    for chunk in read_chunks(path, reading):
        pending.append(chunk)
        size += len(chunk)
        if size >= PLAIN_DOCUMENT_BYTES and (cut := _cut_position(chunk, size)):
            joined = b"".join(pending)
            end = size - len(chunk) + cut
            yield _decoded(path, joined[:end], offset, reading)
            pending, offset, size = [joined[end:]], offset + end, size - end
    if size or offset == reading.start:
        yield _decoded(path, b"".join(pending), offset, reading)


def _cut_position(chunk: bytes, size: int) -> int:
    """Return how many bytes of the last chunk belong to the document of `size` bytes; 0 means that it goes on after it."""
    after_line = chunk.rfind(b"\n") + 1
    if after_line or size < LONGEST_PLAIN:
        return after_line
    starts = (i for i in range(len(chunk) - 1, 0, -1) if chunk[i] & 0xC0 != 0x80)  # first bytes of UTF-8 characters
    return next(starts, len(chunk))  # a chunk without any is not UTF-8, and decoding it will fail


def _decoded(path: Path, raw: bytes, offset: int, reading: Reading) -> Record | None:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        place = f"byte {offset + error.start}" + (f", line {line}" if offset == 0 else "")
        reading.reject(f"{path}: {place}", f"invalid UTF-8 ({error.reason})")
        return None
    return Record(text.removeprefix("\ufeff") if offset == 0 else text, None)


def _json_lines(path: Path, reading: Reading) -> Iterator[Record | None]:
    yield from _parsed_lines(path, split_lines(read_chunks(path, reading)), reading)


def _parsed_lines(path: Path, lines: Iterator[bytes | None], reading: Reading) -> Iterator[Record | None]:
    for number, line in enumerate(lines, start=1):
        if line is None:
            reading.reject(f"{path}:{number}", f"a line of more than {LONGEST_LINE >> 20} MiB")
            yield None
            continue
        content = line.removeprefix(BOM) if number == 1 else line
        if not content.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield record_of(parse_json(content.decode("utf-8")), place, reading)
        except UnicodeDecodeError as error:
            reading.reject(place, f"invalid UTF-8 at byte {error.start} of the line")
            yield None
        except ValueError as error:
            reading.reject(place, f"not a line of JSON ({error})")
            yield None


def _json(path: Path, reading: Reading) -> Iterator[Record | None]:
    """Yield the records of a .json file: one array of objects, parsed as a whole (at most LONGEST_ARRAY), or JSON lines."""
    chunks = read_chunks(path, reading)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) > PIECE_BYTES or (len(head) > len(BOM) and head.removeprefix(BOM).strip()):
            break
    chunks = itertools.chain([head], chunks)
    if not head.removeprefix(BOM).lstrip().startswith(b"["):
        yield from _parsed_lines(path, split_lines(chunks), reading)
        return
    try:
        items = parse_json(read_whole(path, chunks).removeprefix(BOM).decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON array ({error}); files with one object per line may be .jsonl") from error
    for number, item in enumerate(items, start=1):
        yield record_of(item, f"{path}: item {number}", reading)


def _parquet(path: Path, reading: Reading) -> Iterator[Record | None]:
    import pyarrow
    import pyarrow.parquet

    top = reading.text_key.split(".")[0]
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            if top not in names:
                raise UserError(f"{path}: no column {top!r}; set data.text_key to one of {', '.join(names)}")
            columns = [top] + [name for name in names if name == "meta" and name != top]
            size, row = path.stat().st_size, 0
            for group in range(file.metadata.num_row_groups):
                rows = _rows_per_batch(file.metadata.row_group(group), columns)
                for batch in file.iter_batches(rows, [group], columns):
                    for item in batch.to_pylist():
                        row += 1
                        yield record_of(item, f"{path}: row {row}", reading)
                    reading.consumed = size * row // max(1, file.metadata.num_rows)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 after row {row} ({error.reason}); recreate the file") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:  # also a date out of Python's range
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable parquet file ({reason}); download it again") from error


def _rows_per_batch(group: Any, columns: list[str]) -> int:
    """Return how many rows fit into PARQUET_BYTES even if each held all values of the row group's columns."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES // max(1, size)))


READERS: dict[str, Callable[[Path, Reading], Iterator[Record | None]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}


def record_of(item: Any, place: str, reading: Reading) -> Record | None:
    """Return the record of one JSON-like object, with its text from `reading.text_key` (dots descend: "meta.text").

    For an object without such a text: raises UserError that names `place`, or returns None if bad records are skipped.
    """
    value = item
    for key in reading.text_key.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str):
        keys = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
        reading.reject(place, f"no text under {reading.text_key!r} (data.text_key; found: {keys[:200]})")
        return None
    meta = item.get("meta")
    label = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
    return Record(value, label[:LONGEST_LABEL] if isinstance(label, str) else None)
