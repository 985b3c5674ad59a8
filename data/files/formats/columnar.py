"""The column of a parquet or Arrow file that holds the text.

Of the other columns only SlimPajama's source label, `meta.redpajama_set_name`, is read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet

from common.errors import UserError
from data.documents import LONGEST_LABEL, SHOWN_KEYS, Reading, Record

# Limits of the rows and bytes decoded at once: a dictionary may repeat one large value in every row.
BATCH_ROWS, BATCH_BYTES = 256, 64 << 20
ARROW_BYTES = 1 << 30  # limit of the decompressed bytes of a record batch in an Arrow file
LABEL = ["meta", "redpajama_set_name"]
ARROW_MAGIC = b"ARROW1"
# Of the tables in the metadata of an Arrow message (format/Message.fbs): positions of fields, and the types of messages.
HEADER_TYPE, HEADER, DICTIONARY_DATA, BUFFERS, COMPRESSION = 1, 2, 1, 2, 3
DICTIONARY_BATCH, RECORD_BATCH = 2, 3


def read_parquet(path: Path, reading: Reading) -> Iterator[Record | None]:
    """Yield the text of each row. Raises UserError for a corrupt file and for a column that holds no strings."""
    row = 0
    with readable(path, "parquet"), path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
        keys = _columns(path, file.schema_arrow, reading.text_key)
        size = path.stat().st_size
        for group in range(file.metadata.num_row_groups):
            rows = rows_per_batch(file.metadata.row_group(group), [key[0] for key in keys])
            for batch in file.iter_batches(rows, [group], [".".join(key) for key in keys]):
                yield from _records(path, batch, keys, row, reading)
                row += batch.num_rows
                reading.consumed = size * row // max(1, file.metadata.num_rows)


def read_arrow(path: Path, reading: Reading) -> Iterator[Record | None]:
    """Yield the text of each row of an Arrow file (Feather) or stream, as `datasets.save_to_disk` writes it.

    An Arrow file is a stream between a magic number and a footer, and both are read as streams. Raises UserError for a corrupt
    or truncated file, for record batches that decompress to more than ARROW_BYTES, and for a column that holds no strings.
    """
    row = 0
    with readable(path, "Arrow"), path.open("rb") as opened:
        # Not pyarrow.memory_map, which takes no names that are not UTF-8.
        file = pyarrow.BufferReader(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        start = _stream_start(file)
        _refuse_large_batches(path, file, start)
        file.seek(start)
        with pyarrow.ipc.open_stream(file) as stream:
            schema = stream.schema
        keys = _columns(path, schema, reading.text_key)
        file.seek(start)
        wanted = sorted({schema.get_field_index(key[0]) for key in keys})
        options = pyarrow.ipc.IpcReadOptions(included_fields=wanted)
        with pyarrow.ipc.open_stream(file, options=options) as stream:
            for batch in stream:
                batch.validate(full=True)  # offsets may lead out of the buffers
                rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, batch.get_total_buffer_size())))
                for first in range(0, batch.num_rows, rows):
                    yield from _records(path, batch.slice(first, rows), keys, row + first, reading)
                row += batch.num_rows
                reading.consumed = file.tell()


@contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Turn the errors of pyarrow into a UserError."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the {kind} file holds invalid UTF-8 ({error.reason}); recreate the file") from error
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError, struct.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable {kind} file ({reason}); download it again") from error


def _columns(path: Path, schema: Any, text_key: str) -> list[list[str]]:
    """Return the keys of the text and, if the file has it, of the source label. Raises UserError without a text."""
    keys = text_key.split(".")
    if schema.get_field_index(keys[0]) < 0:
        found = "two columns" if keys[0] in schema.names else "no column"
        raise UserError(
            f"{path}: {found} {keys[0]!r}; set data.text_key to one of {', '.join(schema.names)[:SHOWN_KEYS]}"
        )
    kind = _type_of(schema, keys)
    if kind is None or not _is_text(kind):
        names = ", ".join(f"{field.name} ({field.type})" for field in schema)
        reason = f"{text_key!r} holds {kind}, not strings" if kind is not None else f"no field {text_key!r}"
        raise UserError(f"{path}: {reason}; set data.text_key to a column of strings; it has: {names[:SHOWN_KEYS]}")
    label = _type_of(schema, LABEL)
    return [keys, LABEL] if label is not None and _is_text(label) and keys != LABEL else [keys]


def _type_of(schema: Any, keys: list[str]) -> Any:
    """Return the type under nested keys, None without such a field."""
    fields, kind = schema, None
    for key in keys:
        index = fields.get_field_index(key) if isinstance(fields, pyarrow.Schema | pyarrow.StructType) else -1
        if index < 0:
            return None
        fields = kind = fields.field(index).type
    return kind


def _is_text(kind: Any) -> bool:
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    types = pyarrow.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _records(path: Path, batch: Any, keys: list[list[str]], row: int, reading: Reading) -> Iterator[Record | None]:
    """Yield the records of a batch, whose first row has number `row` + 1."""
    texts, *labels = (_values(batch, key) for key in keys)
    for number, text in enumerate(texts):
        if text is None:
            reading.reject(f"{path}: row {row + number + 1}", f"no text under {reading.text_key!r}: it holds null")
            yield None
        else:
            label = labels[0][number] if labels else None
            yield Record(text, label and label[:LONGEST_LABEL])


def _values(batch: Any, keys: list[str]) -> list[str | None]:
    column = batch.column(keys[0])
    for key in keys[1:]:
        column = pyarrow.compute.struct_field(column, key)
    texts: list[str | None] = column.to_pylist()
    return texts


def rows_per_batch(group: Any, columns: list[str]) -> int:
    """Return how many rows fit into BATCH_BYTES even if each held all values of the row group's columns."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))


def _stream_start(file: Any) -> int:
    """Return where the stream in an Arrow file begins. Raises ValueError for a file that is truncated."""
    if file.read(len(ARROW_MAGIC)) != ARROW_MAGIC:
        return 0
    file.seek(file.size() - len(ARROW_MAGIC))
    if file.read(len(ARROW_MAGIC)) != ARROW_MAGIC:
        raise ValueError("it is truncated")
    return 8


def _refuse_large_batches(path: Path, file: Any, start: int) -> None:
    """Raise UserError for a message whose buffers decompress to more than ARROW_BYTES; pyarrow would allocate them."""
    file.seek(start)
    for message in pyarrow.ipc.MessageReader.open_stream(file):
        size = _decompressed_size(message.metadata, message.body) if message.body else 0
        if size > ARROW_BYTES:
            raise UserError(
                f"{path}: a record batch that decompresses to {size >> 20} MiB; write it without compression, or in batches of"
                f" at most {ARROW_BYTES >> 20} MiB"
            )


def _decompressed_size(metadata: Any, body: Any) -> int:
    """Return how many bytes the compressed buffers of a message decompress to, 0 for a message without compression.

    Every compressed buffer begins with this number as int64. pyarrow does not give it, so it is read from the FlatBuffer.
    Raises struct.error for positions outside the metadata.
    """
    table = struct.unpack_from("<I", metadata)[0]
    header_type, header = _field(metadata, table, HEADER_TYPE), _field(metadata, table, HEADER)
    kind = struct.unpack_from("<B", metadata, header_type)[0] if header_type else 0
    if not header or kind not in (DICTIONARY_BATCH, RECORD_BATCH):
        return 0
    batch = _follow(metadata, header)
    if kind == DICTIONARY_BATCH:
        data = _field(metadata, batch, DICTIONARY_DATA)
        batch = _follow(metadata, data) if data else batch
    buffers = _field(metadata, batch, BUFFERS)
    if not buffers or not _field(metadata, batch, COMPRESSION):
        return 0
    vector = _follow(metadata, buffers)
    count = struct.unpack_from("<I", metadata, vector)[0]
    places = struct.iter_unpack("<qq", memoryview(metadata)[vector + 4 : vector + 4 + 16 * count])
    return sum(max(0, struct.unpack_from("<q", body, offset)[0]) for offset, length in places if length >= 8)


def _field(metadata: Any, table: int, slot: int) -> int:
    """Return the position of a field in a FlatBuffer table, 0 for a field that is not set."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if 4 + 2 * slot >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * slot)[0]
    return table + offset if offset else 0


def _follow(metadata: Any, position: int) -> int:
    return int(position + struct.unpack_from("<I", metadata, position)[0])
