"""JSON lines, JSON arrays and JSON objects, with a text under a key or strings that are texts themselves."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from common.errors import UserError
from common.safe_read import parse_json
from data.documents import Reading, Record, record_of
from data.files.decompress import LONGEST_LINE, PIECE_BYTES, read_whole, split_lines

BOM = b"\xef\xbb\xbf"
BLANKS = re.compile(r"[ \t\r\n]+")  # what may stand between two values of JSON
PRETTY = "JSON over several lines per record; name the file .json, or write one record per line, e.g. jq -c . FILE > NEW.jsonl"


def read_json_lines(name: str, chunks: Iterator[bytes], reading: Reading) -> Iterator[Record | None]:
    """Yield the record of each line. Lines are strings if the first one is; otherwise a string is a bad record."""
    strings: bool | None = None
    for number, line in enumerate(split_lines(chunks), start=1):
        place = f"{name}:{number}"
        if line is None:
            reading.reject(place, f"a line of more than {LONGEST_LINE >> 20} MiB")
            yield None
            continue
        content = line.removeprefix(BOM) if number == 1 else line
        if not content.strip():
            continue
        try:
            value = parse_json(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            reading.reject(place, f"invalid UTF-8 at byte {error.start} of the line")
            yield None
        except ValueError as error:
            pretty = reading.records == 0 and content.strip() in (b"{", b"[", b"[{")
            reading.reject(place, PRETTY if pretty else f"not a line of JSON ({error})")
            yield None
        else:
            strings = isinstance(value, str) if strings is None else strings
            yield _record(value, strings, place, reading)


def _record(value: Any, strings: bool, place: str, reading: Reading) -> Record | None:
    return Record(value, None) if strings and isinstance(value, str) else record_of(value, place, reading)


def read_json(name: str, chunks: Iterator[bytes], reading: Reading) -> Iterator[Record | None]:
    """Yield the records of a .json file: an array of objects or of strings, JSON lines, or objects over several lines.

    Everything but JSON lines is parsed as a whole (at most LONGEST_ARRAY bytes).
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) > PIECE_BYTES or b"\n" in head.removeprefix(BOM).strip():
            break
    chunks = itertools.chain([head], chunks)
    if _holds_lines(head.removeprefix(BOM).lstrip()):
        yield from read_json_lines(name, chunks, reading)
        return
    try:
        values = _values(read_whole(name, chunks).removeprefix(BOM).decode("utf-8"))
    except ValueError as error:
        raise UserError(
            f"{name}: not a JSON array or object ({error}); files with one object per line may be .jsonl"
        ) from error
    items = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    strings = all(isinstance(item, str) for item in items)
    for number, item in enumerate(items, start=1):
        yield _record(item, strings, f"{name}: item {number}", reading)


def _holds_lines(head: bytes) -> bool:
    """Return whether a file that begins with `head` holds JSON lines, rather than an array or objects over several lines."""
    if not head.startswith((b"[", b"{")):
        return True
    if head.startswith(b"["):
        return False
    line, _, rest = head.partition(b"\n")
    if not rest:
        return True
    try:
        parse_json(line)
    except ValueError:
        # A broken line of JSON lines is followed by another object, the beginning of one object by a key.
        return rest.lstrip().startswith(b"{")
    return True


def _values(text: str) -> list[Any]:
    """Return the values of JSON that follow one another. Raises ValueError for anything else."""
    decoder, values = json.JSONDecoder(), []
    position = _after_blanks(text, 0)
    while position < len(text):
        try:
            value, end = decoder.raw_decode(text, position)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        values.append(value)
        position = _after_blanks(text, end)
    return values


def _after_blanks(text: str, position: int) -> int:
    match = BLANKS.match(text, position)
    return match.end() if match else position
