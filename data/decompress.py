"""Bytes and lines of a file, decompressed in small pieces, with limits against decompression bombs."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from common.errors import UserError
from data.documents import Reading

COMPRESSED = (".zst", ".gz")

READ_BYTES = 1 << 16
# Compressed bytes given to the decompressor at once, and decompressed bytes yielded at once: four bytes of zstd can expand to
# 128 KiB.
SLICE_BYTES, PIECE_BYTES = 1 << 11, 1 << 20
# Output beyond both limits is a decompression bomb. gzip compresses at most 1032:1, text usually about 10:1.
BOMB_BYTES, BOMB_RATIO = 64 << 20, 2000
# A line of JSON is one document; real corpora hold lines of 50 MB. A JSON array is parsed as a whole, which takes several times
# its size in memory.
LONGEST_LINE, LONGEST_ARRAY = 128 << 20, 512 << 20


def _decompressor(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return zlib.decompressobj(wbits=31)
    # SlimPajama's files were written with a long-distance window; 2 GiB is the largest that the format allows.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def _decompressed(path: Path, chunks: Iterator[bytes], reading: Reading) -> Iterator[bytes]:
    """Yield decompressed bytes, frame by frame, in bounded memory.

    Raises UserError for a corrupt file, a decompression bomb and a file that ends within a frame, which is an incomplete
    download.
    """
    decompressor: Any = None
    n_out = frames = 0
    try:
        for data in _slices(chunks, SLICE_BYTES):
            if frames and decompressor is None:
                data = data.lstrip(b"\0")  # some writers pad with zeros between frames
            while data:
                decompressor = decompressor or _decompressor(path)
                text = decompressor.decompress(data)
                n_out += len(text)
                if n_out > max(BOMB_BYTES, BOMB_RATIO * reading.consumed):
                    raise UserError(
                        f"{path}: {reading.consumed} bytes expand to more than {n_out >> 20} MiB: a decompression bomb, not"
                        " text; remove the file"
                    )
                yield from _slices([text], PIECE_BYTES)
                if not decompressor.eof:
                    break
                data, decompressor, frames = decompressor.unused_data.lstrip(b"\0"), None, frames + 1
    except (zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: corrupt {path.suffix} file ({error}) after {reading.records} documents; download it again"
        ) from error
    if decompressor is not None:
        raise UserError(
            f"{path}: the {path.suffix} file is truncated after {reading.records} documents; download it again"
        )


def _slices(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


def _raw(path: Path, reading: Reading) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(reading.start)
        left = sys.maxsize if reading.stop is None else reading.stop - reading.start
        while chunk := file.read(min(READ_BYTES, left)):
            left -= len(chunk)
            reading.consumed += len(chunk)
            yield chunk


def read_chunks(path: Path, reading: Reading) -> Iterator[bytes]:
    """Yield the bytes of a file from `reading.start` to `reading.stop`, decompressed if its name ends with .zst or .gz."""
    raw = _raw(path, reading)
    return _decompressed(path, raw, reading) if path.suffix.lower() in COMPRESSED else raw


def split_lines(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Yield lines without their newlines, None for a line longer than LONGEST_LINE.

    The time is linear in the number of bytes, also for a line that spans many chunks.
    """
    tail: list[bytes] = []
    length = 0
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        tail.append(first)
        length += len(first)
        if length > LONGEST_LINE:
            tail = []
        if rest:
            yield b"".join(tail) if length <= LONGEST_LINE else None
            yield from rest[:-1]
            tail, length = rest[-1:], len(rest[-1])
    if length:
        yield b"".join(tail) if length <= LONGEST_LINE else None


def read_whole(path: Path, chunks: Iterator[bytes]) -> bytes:
    """Return all chunks of a JSON array. Raises UserError beyond LONGEST_ARRAY bytes."""
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > LONGEST_ARRAY:
            raise UserError(
                f"{path}: a JSON array of more than {LONGEST_ARRAY >> 20} MiB; convert it to .jsonl, one object per line"
            )
    return bytes(content)
