"""Files of text, in constant memory: what a file holds, record by record, and what is wrong with it in one line.

A record is a piece of text with the source it names (or None). A file format is one generator in `READERS`; plain
text is what is left. Compression (.zst, .gz) is undone underneath, except for .parquet, which has its own.
"""

from __future__ import annotations

import glob
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import zstandard

from errors import UserError

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

READ_BYTES = 1 << 16
# One plain-text file is one document up to this size; a longer one is cut at ends of lines, so that a 10 GB file
# needs no 10 GB of memory.
PLAIN_DOCUMENT_BYTES = 16 << 20


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


def read_documents(path: str | Path, text_key: str = "text", bad_documents: str = "refuse") -> Iterator[Document]:
    """Documents of a file, folder or glob, in order, for evaluation; split None. Raises UserError like `data.sources.TextSource`,
    also where there is no document at all."""
    _, files = find_files(str(path))
    empty = True
    for file in files:
        for record in read_file(file.path, Reading(text_key, bad_documents)):
            if record is not None and record.text:
                empty = False
                yield Document(record.text, record.source or file.label, None)
    if empty:
        raise UserError(f"data.path={path}: no text in {len(files)} file(s)")


# ----------------------------------------------------------------------------------------------------------- bytes


def _decompressor(path: Path) -> _Decompressor:
    if path.suffix.lower() == ".gz":
        return cast(_Decompressor, zlib.decompressobj(wbits=31))
    # SlimPajama's files were written with a long-distance window; 2 GiB is the format's own upper limit.
    return cast(_Decompressor, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())


def _decompressed(path: Path, chunks: Iterator[bytes], reading: Reading) -> Iterator[bytes]:
    """Undoes compression, frame after frame. A file that ends within a frame is an error: readers that stop there
    quietly would train on whatever part of a download had arrived."""
    engine: _Decompressor | None = None
    try:
        for chunk in chunks:
            data = chunk
            while data:
                engine = engine or _decompressor(path)
                yield engine.decompress(data)
                data = b""
                if engine.eof:
                    data, engine = engine.unused_data.lstrip(b"\0"), None
    except (zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: corrupt {path.suffix} ({error}) after {reading.records} documents; fetch the file again"
        ) from error
    if engine is not None:
        raise UserError(
            f"{path}: the {path.suffix} file is truncated, it ends after {reading.records} documents; "
            "fetch the file again"
        )


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


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their ends. Linear also in a line of many chunks: a 50 MB line is one document in practice."""
    tail: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        tail.append(first)
        if rest:
            yield b"".join(tail)
            yield from rest[:-1]
            tail = rest[-1:]
    if any(tail):
        yield b"".join(tail)


# --------------------------------------------------------------------------------------------------------- formats


def _plain(path: Path, reading: Reading) -> Iterator[Record | None]:
    """One document a file, or one per PLAIN_DOCUMENT_BYTES of a very long one, cut after the end of a line."""
    held: list[bytes] = []
    size, offset = 0, reading.start
    for chunk in _chunks(path, reading):
        held.append(chunk)
        size += len(chunk)
        if size >= PLAIN_DOCUMENT_BYTES and (cut := chunk.rfind(b"\n") + 1):
            whole = b"".join(held)
            end = size - len(chunk) + cut
            yield _decoded(path, whole[:end], offset, reading)
            held, offset, size = [whole[end:]], offset + end, size - end
    if size or offset == reading.start:
        yield _decoded(path, b"".join(held), offset, reading)


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


def _parsed_lines(path: Path, lines: Iterator[bytes], reading: Reading) -> Iterator[Record | None]:
    for number, line in enumerate(lines, start=1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not content.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield record_of(json.loads(content.decode("utf-8")), where, reading)
        except UnicodeDecodeError as error:
            reading.bad(where, f"invalid UTF-8 at byte {error.start} of the line")
            yield None
        except (ValueError, RecursionError) as error:
            reading.bad(where, f"not a line of JSON ({error})")
            yield None


def _json(path: Path, reading: Reading) -> Iterator[Record | None]:
    """A .json file: one array of objects (parsed whole, so its size is bounded by memory), or lines of JSON."""
    lines = _lines(_chunks(path, reading))
    first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
    if not first.lstrip().startswith(b"["):
        yield from _parsed_lines(path, _chain(first, lines), reading)
        return
    try:
        items = json.loads(b"\n".join(_chain(first, lines)).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON array ({error}); one object a line is a .jsonl file") from error
    for number, item in enumerate(items, start=1):
        yield record_of(item, f"{path}: item {number}", reading)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


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
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for item in batch.to_pylist():
                    row += 1
                    yield record_of(item, f"{path}: row {row}", reading)
                reading.consumed = size * row // max(1, file.metadata.num_rows)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 after row {row} ({error.reason}); write the file again") from error
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable parquet file ({reason}); fetch the file again") from error


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
    return Record(value, label if isinstance(label, str) else None)
