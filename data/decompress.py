"""Bytes and lines of a file, decompressed piece by piece, with bounds that stop decompression bombs."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, cast

import zstandard

from common.errors import UserError
from data.documents import Reading

COMPRESSED = (".zst", ".gz")


READ_BYTES = 1 << 16


# Compressed bytes undone at once, and text handed on at once: four bytes of zstd can stand for 128 KiB.
SLICE_BYTES, PIECE_BYTES = 1 << 11, 1 << 20


# Text is a bomb where it is this large and this many times the bytes it was made from; gzip reaches 1032, text about 10.
BOMB_BYTES, BOMB_RATIO = 64 << 20, 2000


# A line of JSON is a document, and one of 50 MB has been met; an array of them is parsed whole, at some times its size.
LONGEST_LINE, LONGEST_ARRAY = 128 << 20, 512 << 20


class _Decompressor(Protocol):
    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, /) -> bytes: ...


# ----------------------------------------------------------------------------------------------------------- bytes


def _decompressor(path: Path) -> _Decompressor:
    if path.suffix.lower() == ".gz":
        return cast(_Decompressor, zlib.decompressobj(wbits=31))
    # SlimPajama's files were written with a long-distance window; 2 GiB is the format's own upper limit.
    return cast(_Decompressor, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())


def _decompressed(path: Path, chunks: Iterator[bytes], reading: Reading) -> Iterator[bytes]:
    """Undoes compression, frame after frame, in little memory whatever the frames say. A file that ends within a frame
    is an error: readers that stop there quietly would train on whatever part of a download had arrived."""
    engine: _Decompressor | None = None
    given = frames = 0
    try:
        for data in _slices(chunks, SLICE_BYTES):
            if frames and engine is None:
                data = data.lstrip(b"\0")  # some writers pad with zeros between frames
            while data:
                engine = engine or _decompressor(path)
                text = engine.decompress(data)
                given += len(text)
                if given > max(BOMB_BYTES, BOMB_RATIO * reading.consumed):
                    raise UserError(
                        f"{path}: {given >> 20} MiB come out of {reading.consumed} bytes: a bomb, not text; leave it out"
                    )
                yield from _slices([text], PIECE_BYTES)
                if not engine.eof:
                    break
                data, engine, frames = engine.unused_data.lstrip(b"\0"), None, frames + 1
    except (zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: corrupt {path.suffix} ({error}) after {reading.records} documents; fetch the file again"
        ) from error
    if engine is not None:
        raise UserError(
            f"{path}: the {path.suffix} file is truncated, it ends after {reading.records} documents; "
            "fetch the file again"
        )


def _slices(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


def _raw(path: Path, reading: Reading) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(reading.start)
        left = reading.stop - reading.start if reading.stop is not None else None
        while left != 0:
            chunk = file.read(READ_BYTES if left is None else min(READ_BYTES, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            reading.consumed += len(chunk)
            yield chunk


def read_chunks(path: Path, reading: Reading) -> Iterator[bytes]:
    raw = _raw(path, reading)
    return _decompressed(path, raw, reading) if path.suffix.lower() in COMPRESSED else raw


def split_lines(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Lines without their ends, None for one longer than LONGEST_LINE. Linear also in a line of many chunks."""
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
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > LONGEST_ARRAY:
            raise UserError(
                f"{path}: a JSON array of more than {LONGEST_ARRAY >> 20} MiB; write one object a line, a .jsonl file"
            )
    return bytes(content)
