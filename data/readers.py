"""Files of text, in constant memory: what a file holds, record by record, and what is wrong with it in one line.

A record is a piece of text with the source it names (or None). A file format is one generator in `READERS`; plain
text is what is left. Compression (.zst, .gz) is undone underneath, except for .parquet, which has its own.
"""

from __future__ import annotations

import glob
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import zstandard

from errors import UserError
from untrusted import parse_json

COMPRESSED = (".zst", ".gz")
STRUCTURED = (".jsonl", ".json", ".parquet")
PROSE = (".txt", ".md")
# Picked up only where a file or a glob names them: a folder of a corpus often has a script or a licence beside it.
# fmt: off
CODE = (
    ".rst", ".tex", ".log", ".csv", ".tsv", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".ini",
    ".cfg", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh",
    ".sql", ".rb", ".php", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".scala", ".kt", ".swift", ".cs",
    ".css", ".org", ".adoc", ".srt",
)
# fmt: on

BOM = b"\xef\xbb\xbf"
READ_BYTES = 1 << 16
# Compressed bytes undone at once, and text handed on at once: four bytes of zstd can stand for 128 KiB.
SLICE_BYTES, PIECE_BYTES = 1 << 11, 1 << 20
# Text is a bomb where it is this large and this many times the bytes it was made from; gzip reaches 1032, text about 10.
BOMB_BYTES, BOMB_RATIO = 64 << 20, 2000
# A line of JSON is a document, and one of 50 MB has been met; an array of them is parsed whole, at some times its size.
LONGEST_LINE, LONGEST_ARRAY = 128 << 20, 512 << 20
# Values of a parquet file decoded at once: a dictionary may repeat one of them in every row.
PARQUET_ROWS, PARQUET_BYTES = 256, 64 << 20
MOST_SOURCES, OTHER_SOURCES, LONGEST_LABEL = 1000, "other", 100
# One plain-text file is one document up to this size; a longer one is cut at ends of lines, so that a 10 GB file
# needs no 10 GB of memory.
PLAIN_DOCUMENT_BYTES = 16 << 20
LONGEST_PLAIN = 4 * PLAIN_DOCUMENT_BYTES  # without an end of a line


@dataclass(frozen=True)
class Document:
    """A text, the label of where it is from, and its split ("train", "val"; None: decided by a hash of the text)."""

    text: str
    source: str
    split: str | None


@dataclass(frozen=True)
class Record:
    """One text and the label its own metadata gives it (SlimPajama's `meta.redpajama_set_name`), or None."""

    text: str
    source: str | None


@dataclass
class Reading:
    """How to read, and what was met on the way. `consumed` counts bytes of the file as it lies on disk."""

    text_key: str = "text"
    bad_documents: str = "refuse"
    start: int = 0
    stop: int | None = None
    consumed: int = 0
    records: int = 0

    def bad(self, where: str, what: str) -> None:
        """Raises UserError naming the place, unless such records are to be skipped."""
        if self.bad_documents == "refuse":
            raise UserError(f"{where}: {what}; mend it, or leave such records out with data.bad_documents=skip")


class _Decompressor(Protocol):
    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, /) -> bytes: ...


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, below any compression: ".jsonl" for "a.jsonl.zst"."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def stem_of(path: Path) -> str:
    """The file's name without its suffixes and the number at its end: "train" for "train-00012.jsonl.zst"; perhaps ""."""
    name = path.with_suffix("").name if path.suffix.lower() in COMPRESSED else path.name
    return name.removesuffix(Path(name).suffix).rstrip("0123456789").rstrip("-_.")


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


# ----------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class NamedFile:
    """A file and what its texts are counted under, unless they say so themselves."""

    path: Path
    label: str


def _is_hidden(path: Path, base: Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(base).parts)


def find_files(pattern: str) -> tuple[Path, list[NamedFile]]:
    """The readable files that a file name, folder or glob means, sorted, and the folder their names are relative to.

    Raises UserError where there is nothing, or nothing of a known format.
    """
    path = Path(pattern).expanduser()
    allowed: tuple[str, ...]
    named: tuple[str, ...] = PROSE + STRUCTURED + CODE
    if path.is_dir():
        base, allowed = path, PROSE + STRUCTURED
        found = [each for each in path.rglob("*") if each.is_file() and not _is_hidden(each, path)]
        _refuse_links_out(pattern, path, found)
    elif path.is_file():
        base, allowed, found = path.parent, named, [path]
    else:
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = [Path(each) for each in matches if Path(each).is_file()]
        base, allowed = (_common_folder(found) if found else path), named
    if not found:
        what = "an empty folder" if path.is_dir() else "no such file or folder, and no file matches it as a glob"
        raise UserError(f"data.path={pattern}: {what}; give a file, a folder or a quoted glob")
    kept = sorted((each for each in found if suffix_of(each) in allowed), key=lambda each: each.as_posix())
    if not kept:
        seen = ", ".join(sorted({each.suffix or each.name for each in found})[:8])
        raise UserError(
            f"data.path={pattern}: no file of a known format (found: {seen}); allowed: "
            f"{', '.join(PROSE + STRUCTURED)}, each also with {' or '.join(COMPRESSED)}"
        )
    return base, [NamedFile(each, _label(each, base)) for each in kept]


def _refuse_links_out(pattern: str, folder: Path, found: list[Path]) -> None:
    """Raises UserError where a folder, which somebody else may have packed, holds a link to a file outside it: the
    text of ~/.ssh would be trained on. What a user names, by a file or a glob, may be a link."""
    homes = homes_of(folder)
    out = [link for link in found if link.is_symlink() and not is_in(link, homes)]
    if out:
        raise UserError(
            f"data.path={pattern}: {min(out)} is a link that leads out of the folder, to {min(out).resolve()}"
            f" ({len(out)} in all); where that is meant, name the files themselves, e.g. data.path='{pattern}/*'"
        )


def homes_of(folder: Path) -> list[Path]:
    """Where the files of a folder may really lie: in it, and for a snapshot in the Hub's cache, which is made of links,
    among the blobs beside it."""
    home = folder.resolve()
    snapshots = (each for each in (home, *home.parents) if each.parent.name == "snapshots")
    return [home, *(each.parents[1] / "blobs" for each in snapshots)]


def is_in(path: Path, homes: list[Path]) -> bool:
    """Whether what a path leads to lies in one of the folders `homes`."""
    real = path.resolve()
    return any(real.is_relative_to(home) for home in homes)


def source_id(known: dict[str, int], label: str) -> int:
    """The number of a source, a new one where it is not known. A corpus may name another in every line: after
    MOST_SOURCES of them the rest count as one."""
    if label not in known and len(known) >= MOST_SOURCES:
        label = OTHER_SOURCES
    return known.setdefault(label, len(known))


def _common_folder(paths: list[Path]) -> Path:
    first, last = min(paths).parent, max(paths).parent
    shared = [a for a, b in zip(first.parts, last.parts, strict=False) if a == b]
    while shared and not all(Path(*shared) in path.parents for path in paths):
        shared.pop()
    return Path(*shared) if shared else Path()


def _label(path: Path, base: Path) -> str:
    """What a text is counted under unless it says so itself: the top folder, else the name of its file; loose plain
    files share the name of their folder, for there may be a million of them."""
    inner = path.relative_to(base).parts
    if len(inner) > 1:
        return inner[0]
    named = stem_of(path) if suffix_of(path) in STRUCTURED else ""
    return named or base.resolve().name or "text"


def read_documents(
    path: str | Path, text_key: str = "text", bad_documents: str = "refuse", left_out: dict[str, int] | None = None
) -> Iterator[Document]:
    """Documents of a file, folder or glob, in order, for evaluation; split None. `left_out` counts, by reason, what is none.
    Raises UserError like `data.sources.TextSource`, also where there is no document at all."""
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


def _chunks(path: Path, reading: Reading) -> Iterator[bytes]:
    raw = _raw(path, reading)
    return _decompressed(path, raw, reading) if path.suffix.lower() in COMPRESSED else raw


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
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


# --------------------------------------------------------------------------------------------------------- formats


def _plain(path: Path, reading: Reading) -> Iterator[Record | None]:
    """One document a file, or one per PLAIN_DOCUMENT_BYTES of a very long one, cut after the end of a line, or where there
    is none for LONGEST_PLAIN, between two characters."""
    held: list[bytes] = []
    size, offset = 0, reading.start
    for chunk in _chunks(path, reading):
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
    yield from _parsed_lines(path, _lines(_chunks(path, reading)), reading)


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
    chunks = _chunks(path, reading)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) > PIECE_BYTES or (len(head) > len(BOM) and head.removeprefix(BOM).strip()):
            break
    chunks = itertools.chain([head], chunks)
    if not head.removeprefix(BOM).lstrip().startswith(b"["):
        yield from _parsed_lines(path, _lines(chunks), reading)
        return
    try:
        items = parse_json(_whole(path, chunks).removeprefix(BOM).decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON array ({error}); one object a line is a .jsonl file") from error
    for number, item in enumerate(items, start=1):
        yield record_of(item, f"{path}: item {number}", reading)


def _whole(path: Path, chunks: Iterator[bytes]) -> bytes:
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > LONGEST_ARRAY:
            raise UserError(
                f"{path}: a JSON array of more than {LONGEST_ARRAY >> 20} MiB; write one object a line, a .jsonl file"
            )
    return bytes(content)


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
