"""Bytes and lines of a file, decompressed in small pieces, with limits against decompression bombs."""

from __future__ import annotations

import bz2
import itertools
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from common.errors import UserError
from data.documents import Reading
from data.files.archive import display_name, read_member
from data.files.file_kind import kind_of

READ_BYTES = 1 << 16
# Compressed bytes given to the decompressor at once, and decompressed bytes yielded at once: four bytes of zstd can expand to
# 128 KiB, 50 bytes of bzip2 to 46 MB, so its output is bounded as well.
SLICE_BYTES, PIECE_BYTES = 1 << 11, 1 << 20
# Output beyond both limits is a decompression bomb. gzip compresses at most 1032:1, text usually about 10:1.
BOMB_BYTES, BOMB_RATIO = 64 << 20, 2000
XZ_MEMORY = 256 << 20  # bytes for the dictionary; xz -9 takes 65 MiB
# A line of JSON is one document; real corpora hold lines of 50 MB. A JSON array is parsed as a whole, which takes several times
# its size in memory.
LONGEST_LINE, LONGEST_ARRAY = 128 << 20, 512 << 20

DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    # SlimPajama's files were written with a long-distance window; 2 GiB is the largest that the format allows.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY),
    ".bz2": bz2.BZ2Decompressor,
}
COMPRESSED = tuple(DECOMPRESSORS)


def _decompressed(name: str, suffix: str, chunks: Iterator[bytes], reading: Reading) -> Iterator[bytes]:
    """Yield decompressed bytes, frame by frame, in bounded memory.

    Raises UserError for a corrupt file, a decompression bomb and a file that ends within a frame, which is an incomplete
    download.
    """
    decompressor: Any = None
    n_out = frames = 0
    head = b""
    for data in _slices(chunks, SLICE_BYTES):
        head = head or data
        if frames and decompressor is None:
            data = data.lstrip(b"\0")  # some writers pad with zeros between frames
        while data:
            decompressor = decompressor or DECOMPRESSORS[suffix]()
            try:
                for text in _outputs(decompressor, data):
                    n_out += len(text)
                    _refuse_bomb(name, n_out, reading)
                    yield from _slices([text], PIECE_BYTES)
            except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:  # OSError: bzip2
                content = "" if n_out else _content(head, suffix)
                raise UserError(
                    f"{name}: corrupt {suffix} file ({error}) after {reading.records} documents; download it again{content}"
                ) from error
            if not decompressor.eof:
                break
            data, decompressor, frames = decompressor.unused_data.lstrip(b"\0"), None, frames + 1
    if decompressor is not None:
        raise UserError(f"{name}: the {suffix} file is truncated after {reading.records} documents; download it again")


def _outputs(decompressor: Any, data: bytes) -> Iterator[bytes]:
    """Yield what `data` decompresses to, in pieces of at most PIECE_BYTES if the decompressor (lzma, bz2) can stop there."""
    if not hasattr(decompressor, "needs_input"):
        yield decompressor.decompress(data)
        return
    yield decompressor.decompress(data, PIECE_BYTES)
    while not decompressor.eof and not decompressor.needs_input:
        yield decompressor.decompress(b"", PIECE_BYTES)


def _content(head: bytes, suffix: str) -> str:
    """Return advice for a file that begins with `head`, which cannot be decompressed, by what it holds instead."""
    if kind := kind_of(head):
        return "" if suffix in kind[1] else f", or correct its name: the content is {kind[0]}"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return f", or remove {suffix} from its name if it is plain text"


def _refuse_bomb(name: str, n_out: int, reading: Reading) -> None:
    if n_out > max(BOMB_BYTES, BOMB_RATIO * reading.consumed):
        raise UserError(
            f"{name}: {reading.consumed} bytes expand to more than {n_out >> 20} MiB: a decompression bomb, not text; remove"
            " the file"
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


def _member(path: Path, reading: Reading) -> Iterator[bytes]:
    n_out = 0
    for chunk in read_member(path, reading):
        n_out += len(chunk)
        _refuse_bomb(display_name(path, reading.member), n_out, reading)
        yield chunk


def read_chunks(path: Path, reading: Reading) -> Iterator[bytes]:
    """Yield the bytes of a file from `reading.start` to `reading.stop`, or of the member `reading.member` of an archive.

    They are decompressed if the name ends with one of COMPRESSED.
    """
    name = display_name(path, reading.member)
    raw = _member(path, reading) if reading.member else _raw(path, reading)
    suffix = Path(name).suffix.lower()
    return _decompressed(name, suffix, raw, reading) if suffix in COMPRESSED else raw


def first_bytes(chunks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Return at least `size` bytes, or all if there are fewer, and the same chunks from the start."""
    taken: list[bytes] = []
    n_taken = 0
    for chunk in chunks:
        taken.append(chunk)
        n_taken += len(chunk)
        if n_taken >= size:
            break
    return b"".join(taken), itertools.chain(taken, chunks)


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


def read_whole(name: str, chunks: Iterator[bytes]) -> bytes:
    """Return all chunks of a JSON file. Raises UserError beyond LONGEST_ARRAY bytes."""
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > LONGEST_ARRAY:
            raise UserError(
                f"{name}: JSON of more than {LONGEST_ARRAY >> 20} MiB in one piece; convert it to .jsonl, one object per line"
            )
    return bytes(content)
