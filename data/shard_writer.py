"""Writes the shards of one corpus so that a kill at any moment costs seconds: what is on disk, and what is known of it.

A sqlite database in the working folder holds the position in the source, all counts, the lengths of the open .part
files and the digests of the documents so far. One transaction brings all of it forward, after the .part files have
reached the disk; going on means cutting the .part files back to the lengths recorded.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.checksum import add_checksum, verify_checksum
from common.errors import UserError
from common.json_io import sync_folder, write_bytes
from data import shards
from data.readers import source_id
from data.shards import HEADER, SPLITS
from data.tokenizer import Tokenizer

STATE = "state.sqlite"
TABLE_ROW_BYTES = 16


@dataclass
class Encoded:
    """Documents of one split, encoded: `tokens` is their concatenation, each of `lengths` ids and ended by eot."""

    tokens: np.ndarray
    lengths: list[int]
    bytes: list[int]
    sources: list[str]


@dataclass
class State:
    """All that a preparation knows at a commit; plain JSON."""

    part: int = 0
    record: int = 0
    done: bool = False
    origin: dict[str, Any] | None = None
    dropped: dict[str, int] = field(default_factory=lambda: {"duplicate": 0, "bad": 0, "empty": 0})
    sources: list[str] = field(default_factory=list)
    # Per split and source: documents, tokens, bytes.
    counts: dict[str, dict[str, list[int]]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    shards: list[dict[str, Any]] = field(default_factory=list)
    # Per split, of the shard being written.
    open: dict[str, dict[str, int]] = field(default_factory=lambda: {split: _empty(0) for split in SPLITS})

    def total(self, split: str, column: int) -> int:
        """Documents (0), tokens (1) or bytes (2) of a split."""
        return sum(row[column] for row in self.counts[split].values())


def _empty(index: int) -> dict[str, int]:
    return {"index": index, "tokens": 0, "documents": 0, "bytes": 0}


class _PartFiles:
    """The two files of an unfinished shard, cut back to what is known of them."""

    def __init__(self, folder: Path, split: str, known: dict[str, int], itemsize: int) -> None:
        self.final = folder / f"{split}-{known['index']:05d}.bin"
        self.tokens_path = self.final.with_suffix(".bin.part")
        self.table_path = self.final.with_suffix(".docs.part")
        if self.final.exists():  # killed after the rename of a finished shard, before its commit
            self.final.rename(self.tokens_path)
        self.tokens = self._opened(self.tokens_path, HEADER.size + known["tokens"] * itemsize, HEADER.size)
        self.table = self._opened(self.table_path, known["documents"] * TABLE_ROW_BYTES, 0)

    def _opened(self, path: Path, length: int, smallest: int) -> Any:
        path.touch()
        if length > smallest and path.stat().st_size < length:
            raise UserError(f"{path}: shorter than what was recorded; {shards.prepare_again_hint(path.parent)}")
        file = path.open("r+b")
        file.truncate(length)
        file.seek(length)
        return file

    def sync(self) -> None:
        for file in (self.tokens, self.table):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self.tokens.close()
        self.table.close()

    def seal(self, tokenizer: Tokenizer, known: dict[str, int]) -> None:
        """Turns the .part files into a finished shard. Done again from the same .part file, it gives the same."""
        self.tokens.seek(0)
        self.tokens.write(shards.pack_header(tokenizer, known["tokens"], known["documents"]))
        self.sync()
        self.close()
        rows = np.fromfile(self.table_path, dtype=np.int64).reshape(-1, 2)
        content = io.BytesIO()
        np.save(content, rows, allow_pickle=False)
        write_bytes(shards.documents_path(self.final), content.getvalue())
        self.tokens_path.rename(self.final)
        sync_folder(self.final.parent)


class Writer:
    """Takes encoded documents in order; `state` is what is known, `commit` makes it last. For one thread."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self._folder, self._tokenizer, self._shard_tokens = folder, tokenizer, shard_tokens
        self._db = sqlite3.connect(folder / STATE)
        self._db.execute("CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY, content TEXT)")
        # 8 MiB, so that memory does not grow with the corpus. Digests are random: beyond 400,000 documents nearly every page
        # is read back, which the system has in its cache; 20 % more time for what is a hundredth of the work.
        self._db.execute("PRAGMA cache_size = -8192")
        self._db.commit()
        self.state = load_state(self._db)
        self._ahead: set[bytes] = set()
        self._source_ids = {label: number for number, label in enumerate(self.state.sources)}
        self._dtype = shards.token_dtype(tokenizer.dtype.itemsize)
        self._files: dict[str, _PartFiles] = {}
        if not self.state.done:
            for split in SPLITS:
                self._open(split)

    def _open(self, split: str) -> None:
        known = self.state.open[split]
        self._files[split] = _PartFiles(self._folder, split, known, self._dtype.itemsize)

    def is_new(self, digest: bytes) -> bool:
        """Whether no document with this digest came before; from now on it has."""
        if digest in self._ahead:
            return False
        if self._db.execute("SELECT 1 FROM seen WHERE digest = ?", (digest,)).fetchone():
            return False
        self._ahead.add(digest)
        return True

    def add(self, split: str, encoded: Encoded) -> None:
        """Appends documents to a split, and finishes its shard whenever that has enough tokens."""
        ends = np.cumsum(encoded.lengths)
        document = token = 0
        while document < len(encoded.lengths):
            room = self._shard_tokens - self.state.open[split]["tokens"]
            stop = min(int(np.searchsorted(ends, token + room)) + 1, len(ends))
            self._append(split, encoded, document, stop, token, int(ends[stop - 1]))
            document, token = stop, int(ends[stop - 1])
            if self.state.open[split]["tokens"] >= self._shard_tokens:
                self.seal(split)

    def _append(self, split: str, encoded: Encoded, first: int, stop: int, start: int, end: int) -> None:
        known, counts = self.state.open[split], self.state.counts[split]
        lengths = np.asarray(encoded.lengths[first:stop], dtype=np.int64)
        rows = np.empty((stop - first, 2), dtype=np.int64)
        rows[:, 0] = known["tokens"] + np.cumsum(lengths) - lengths
        ids = [self._source_id(label) for label in encoded.sources[first:stop]]
        rows[:, 1] = ids
        self._files[split].tokens.write(encoded.tokens[start:end].astype(self._dtype, copy=False).data)
        self._files[split].table.write(rows.tobytes())
        known["tokens"] += end - start
        known["documents"] += stop - first
        known["bytes"] += sum(encoded.bytes[first:stop])
        for number, source in zip(range(first, stop), ids, strict=True):
            row = counts.setdefault(self.state.sources[source], [0, 0, 0])
            row[0] += 1
            row[1] += encoded.lengths[number]
            row[2] += encoded.bytes[number]

    def _source_id(self, label: str) -> int:
        number = source_id(self._source_ids, label)
        if number == len(self.state.sources):
            self.state.sources.append(next(reversed(self._source_ids)))
        return number

    def remember(self, digests: Sequence[bytes]) -> None:
        """The documents with these digests have been added: they count as seen from the next commit on."""
        self._db.executemany("INSERT INTO seen VALUES (?)", [(digest,) for digest in digests])
        self._ahead.difference_update(digests)

    def seal(self, split: str) -> None:
        """Finishes the open shard of a split and begins the next; an empty one is left alone."""
        known, files = self.state.open[split], self._files[split]
        if not known["documents"]:
            return
        files.seal(self._tokenizer, known)
        check = shards.read_shard(files.final, self._dtype.itemsize)
        facts = {name: known[name] for name in ("tokens", "documents", "bytes")}
        found = {"largest_id": check.largest_id, "hash": check.hash}
        self.state.shards.append({"file": files.final.name, "split": split, **facts, **found})
        self.state.open[split] = _empty(known["index"] + 1)
        self._open(split)

    def commit(self) -> None:
        """All that was added lasts from here on."""
        for files in self._files.values():
            files.sync()
        content = json.dumps(add_checksum(vars(self.state)))
        self._db.execute("INSERT OR REPLACE INTO state VALUES (0, ?)", (content,))
        self._db.commit()

    def close(self) -> None:
        """Lets go of the files; what was not committed is lost."""
        for files in self._files.values():
            files.close()
        self._db.close()


def load_state(db: sqlite3.Connection) -> State:
    """What was committed last, or the beginning. Raises sqlite3.DatabaseError where it is damaged."""
    try:
        row = db.execute("SELECT content FROM state").fetchone()  # text that is no UTF-8 is a ValueError as well
        return State(**verify_checksum(json.loads(row[0]))) if row else State()
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"its state: {error}") from error
