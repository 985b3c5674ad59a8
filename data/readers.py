"""Files of text, in constant memory: what a file holds, record by record, and what is wrong with it in one line.

A record is a piece of text with the source it names (or None). A file format is one generator in `READERS`; plain
text is what is left. Compression (.zst, .gz) is undone underneath, except for .parquet, which has its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.safe_read import parse_json
from data.decompress import LONGEST_LINE, PIECE_BYTES, read_chunks, split_lines, read_whole
from data.documents import Document, Reading, Record
from data.find_files import find_files, suffix_of

# fmt: on

BOM = b"\xef\xbb\xbf"


# Values of a parquet file decoded at once: a dictionary may repeat one of them in every row.
PARQUET_ROWS, PARQUET_BYTES = 256, 64 << 20


MOST_SOURCES, OTHER_SOURCES, LONGEST_LABEL = 1000, "other", 100


# One plain-text file is one document up to this size; a longer one is cut at ends of lines, so that a 10 GB file
# needs no 10 GB of memory.
PLAIN_DOCUMENT_BYTES = 16 << 20


LONGEST_PLAIN = 4 * PLAIN_DOCUMENT_BYTES  # without an end of a line


def read_file(path: Path, reading: Reading) -> Iterator[Record | None]:
    """Records of one file in order; None stands for a bad one that `reading.bad_documents` says to skip.

    Raises UserError for a file that is truncated, corrupt, unreadable or (unless skipped) holds a bad record.
    """
    reader = READERS.get(suffix_of(path), _plain)
    try:
        for record in reader(path, reading):
            reading.records += 1
            yield record
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see data.path") from error


def source_id(known: dict[str, int], label: str) -> int:
    """The number of a source, a new one where it is not known. A corpus may name another in every line: after
    MOST_SOURCES of them the rest count as one."""
    if label not in known and len(known) >= MOST_SOURCES:
        label = OTHER_SOURCES
    return known.setdefault(label, len(known))


def read_documents(
    path: str | Path, text_key: str = "text", bad_documents: str = "refuse", left_out: dict[str, int] | None = None
) -> Iterator[Document]:
    """Documents of a file, folder or glob, in order, for evaluation; split None. `left_out` counts, by reason, what is none.
    Raises UserError like `data.sources.files.TextSource`, also where there is no document at all."""
    _, files = find_files(str(path))
    none = True
    for file in files:
        for record in read_file(file.path, Reading(text_key, bad_documents)):
            if record is not None and record.text:
                none = False
                yield Document(record.text, record.source or file.label, None)
            elif left_out is not None:
                reason = "bad" if record is None else "empty"
                left_out[reason] = left_out.get(reason, 0) + 1
    if none:
        raise UserError(f"data.path={path}: no text in {len(files)} file(s)")


# --------------------------------------------------------------------------------------------------------- formats


def _plain(path: Path, reading: Reading) -> Iterator[Record | None]:
    """One document a file, or one per PLAIN_DOCUMENT_BYTES of a very long one, cut after the end of a line, or where there
    is none for LONGEST_PLAIN, between two characters."""
    held: list[bytes] = []
    size, offset = 0, reading.start
    for chunk in read_chunks(path, reading):
        held.append(chunk)
        size += len(chunk)
        if size >= PLAIN_DOCUMENT_BYTES and (cut := _place_to_cut(chunk, size)):
            whole = b"".join(held)
            end = size - len(chunk) + cut
            yield _decoded(path, whole[:end], offset, reading)
            held, offset, size = [whole[end:]], offset + end, size - end
    if size or offset == reading.start:
        yield _decoded(path, b"".join(held), offset, reading)


def _place_to_cut(chunk: bytes, size: int) -> int:
    """How many bytes of the last chunk still belong to the document of `size` bytes; 0: all of them, and more to come."""
    after_line = chunk.rfind(b"\n") + 1
    if after_line or size < LONGEST_PLAIN:
        return after_line
    starts = (place for place in range(len(chunk) - 1, 0, -1) if chunk[place] & 0xC0 != 0x80)
    return next(starts, len(chunk))  # without any it is no text; it is refused when it is decoded


def _decoded(path: Path, raw: bytes, offset: int, reading: Reading) -> Record | None:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        where = f"byte {offset + error.start}" + (f", line {line}" if offset == 0 else "")
        reading.bad(f"{path}: {where}", f"invalid UTF-8 ({error.reason})")
        return None
    return Record(text.removeprefix("\ufeff") if offset == 0 else text, None)


def _json_lines(path: Path, reading: Reading) -> Iterator[Record | None]:
    yield from _parsed_lines(path, split_lines(read_chunks(path, reading)), reading)


def _parsed_lines(path: Path, lines: Iterator[bytes | None], reading: Reading) -> Iterator[Record | None]:
    for number, line in enumerate(lines, start=1):
        if line is None:
            reading.bad(f"{path}:{number}", f"a line of more than {LONGEST_LINE >> 20} MiB")
            yield None
            continue
        content = line.removeprefix(BOM) if number == 1 else line
        if not content.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield record_of(parse_json(content.decode("utf-8")), where, reading)
        except UnicodeDecodeError as error:
            reading.bad(where, f"invalid UTF-8 at byte {error.start} of the line")
            yield None
        except ValueError as error:
            reading.bad(where, f"not a line of JSON ({error})")
            yield None


def _json(path: Path, reading: Reading) -> Iterator[Record | None]:
    """A .json file: one array of objects (parsed whole, so of LONGEST_ARRAY at most), or lines of JSON."""
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
        raise UserError(f"{path}: not a JSON array ({error}); one object a line is a .jsonl file") from error
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
                raise UserError(f"{path}: no column {top!r}; choose data.text_key among {', '.join(names)}")
            columns = [top] + [name for name in names if name == "meta" and name != top]
            size, row = path.stat().st_size, 0
            for group in range(file.metadata.num_row_groups):
                rows = _rows_at_once(file.metadata.row_group(group), columns)
                for batch in file.iter_batches(rows, [group], columns):
                    for item in batch.to_pylist():
                        row += 1
                        yield record_of(item, f"{path}: row {row}", reading)
                    reading.consumed = size * row // max(1, file.metadata.num_rows)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 after row {row} ({error.reason}); write the file again") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:  # also a date beyond Python's own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable parquet file ({reason}); fetch the file again") from error


def _rows_at_once(group: Any, columns: list[str]) -> int:
    """So many rows that they stay within PARQUET_BYTES if each of them held all that the columns of the row group hold."""
    parts = [group.column(number) for number in range(group.num_columns)]
    held = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES // max(1, held)))


READERS: dict[str, Callable[[Path, Reading], Iterator[Record | None]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}


def record_of(item: Any, where: str, reading: Reading) -> Record | None:
    """The text of one JSON-like object under `reading.text_key`, dots going down ("meta.text").

    Raises UserError for an object without such a text, unless bad records are to be skipped: then None.
    """
    value = item
    for key in reading.text_key.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str):
        keys = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
        reading.bad(where, f"no text under {reading.text_key!r} (data.text_key; it has: {keys[:200]})")
        return None
    meta = item.get("meta")
    label = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
    return Record(value, label[:LONGEST_LABEL] if isinstance(label, str) else None)
