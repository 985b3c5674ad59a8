"""Plain text: a file is one document, a long file several, and END_OF_TEXT separates the documents of a .txt file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.documents import Reading, Record

# A plain-text file up to this size is one document. A longer file is cut at line ends, so that its size does not determine the
# memory needed.
PLAIN_DOCUMENT_BYTES = 16 << 20
LONGEST_PLAIN = 4 * PLAIN_DOCUMENT_BYTES  # size at which text without line ends is cut
END_OF_TEXT = b"<|endoftext|>"  # what GPT-2's end-of-text token is written as, e.g. in TinyStories


def read_plain(name: str, chunks: Iterator[bytes], reading: Reading) -> Iterator[Record | None]:
    """Yield a plain-text file as one document, or a long one as documents of about PLAIN_DOCUMENT_BYTES.

    A long file is cut after a line end, or between two characters if there is no line end in LONGEST_PLAIN bytes.
    """
    return _documents(name, chunks, reading)


def read_separated(name: str, chunks: Iterator[bytes], reading: Reading) -> Iterator[Record | None]:
    """Yield the documents between END_OF_TEXT, without the line ends next to it; a long one like `read_plain`."""
    return _documents(name, _separated(chunks), reading)


def _separated(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Yield the same bytes with None in the place of each END_OF_TEXT, also of one that lies in two chunks."""
    held = b""
    for chunk in chunks:
        *complete, last = (held + chunk).split(END_OF_TEXT)
        for text in complete:
            yield text
            yield None
        lengths = range(min(len(last), len(END_OF_TEXT) - 1), 0, -1)
        keep = next((length for length in lengths if last.endswith(END_OF_TEXT[:length])), 0)
        held = last[len(last) - keep :]
        yield last[: len(last) - keep]
    yield held


def _documents(
    name: str, chunks: Iterator[bytes | None] | Iterator[bytes], reading: Reading
) -> Iterator[Record | None]:
    pending: list[bytes] = []
    size, offset = 0, reading.start
    after_separator = False
    for chunk in chunks:
        if chunk is None:
            yield from _separate_document(name, b"".join(pending), offset, reading, after_separator, True)
            pending, offset, size = [], offset + size + len(END_OF_TEXT), 0
            after_separator = True
            continue
        pending.append(chunk)
        size += len(chunk)
        if size >= PLAIN_DOCUMENT_BYTES and (cut := _cut_position(chunk, size)):
            joined = b"".join(pending)
            end = size - len(chunk) + cut
            yield from _separate_document(name, joined[:end], offset, reading, after_separator, False)
            pending, offset, size = [joined[end:]], offset + end, size - end
            after_separator = False
    if after_separator:
        yield from _separate_document(name, b"".join(pending), offset, reading, True, False)
    elif size or offset == reading.start:
        yield _decoded(name, b"".join(pending), offset, reading)


def _separate_document(
    name: str, raw: bytes, offset: int, reading: Reading, after: bool, before: bool
) -> Iterator[Record | None]:
    """Yield a document without the line end `after` and `before` a separator; nothing if there is no text between two."""
    record = _decoded(name, raw, offset, reading)
    if record is None:
        yield None
        return
    text = record.text
    if after:
        text = text.removeprefix("\r\n") if text.startswith("\r\n") else text.removeprefix("\n")
    if before:
        text = text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")
    if text:
        yield Record(text, None)


def _cut_position(chunk: bytes, size: int) -> int:
    """Return how many bytes of the last chunk belong to the document of `size` bytes; 0 means that it goes on after it."""
    after_line = chunk.rfind(b"\n") + 1
    if after_line or size < LONGEST_PLAIN:
        return after_line
    starts = (i for i in range(len(chunk) - 1, 0, -1) if chunk[i] & 0xC0 != 0x80)  # first bytes of UTF-8 characters
    return next(starts, len(chunk))  # a chunk without any is not UTF-8, and decoding it will fail


def _decoded(name: str, raw: bytes, offset: int, reading: Reading) -> Record | None:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        place = f"byte {offset + error.start}" + (f", line {line}" if offset == 0 else "")
        binary = "; the text holds NUL bytes, so it may be binary data" if b"\0" in raw else ""
        reading.reject(f"{name}: {place}", f"invalid UTF-8 ({error.reason}){binary}")
        return None
    return Record(text.removeprefix("\ufeff") if offset == 0 else text, None)


def keep_separators_whole(path: Path, reading: Reading) -> None:
    """Move `reading.start` and `reading.stop` out of an END_OF_TEXT that they would cut in two.

    The start moves to its end and the stop to its beginning, so that neither part of the file holds a piece of it.
    """
    _, reading.start = _bounds(path, reading.start)
    if reading.stop is not None:
        reading.stop, _ = _bounds(path, reading.stop)


def _bounds(path: Path, position: int) -> tuple[int, int]:
    """Return the beginning and end of the END_OF_TEXT around a position in the file, or the position twice."""
    reach = len(END_OF_TEXT) - 1
    with path.open("rb") as file:
        first = file.seek(max(0, position - reach))
        found = file.read(position - first + reach).find(END_OF_TEXT)
    return (position, position) if found < 0 else (first + found, first + found + len(END_OF_TEXT))
