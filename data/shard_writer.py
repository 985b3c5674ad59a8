"""Writes the shards of one corpus, with commits, so that a kill at any moment loses only seconds of work.

A sqlite database in the working folder holds the position in the source, all counts, the lengths of the open .part files and
the digests of the documents so far. A commit first syncs the .part files to disk and then updates all of this in one
transaction. To continue, the .part files are truncated to their recorded lengths.
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
from data.files.readers import source_id
from data.shards import HEADER, SPLITS
from data.tokenizers.tokenizer import Tokenizer

STATE = "state.sqlite"
TABLE_ROW_BYTES = 16  # two int64: first token and source id of a document


@dataclass
class Encoded:
    """Tokenized documents of one split.

    Attributes:
        tokens: All documents one after the other, each ended by end-of-text, (sum of lengths,).
        lengths: Tokens of each document, end-of-text included.
        bytes: UTF-8 bytes of each document's text.
        sources: Source label of each document.
    """

    tokens: np.ndarray
    lengths: list[int]
    bytes: list[int]
    sources: list[str]


@dataclass
class State:
    """The state of a preparation at a commit, as plain JSON values."""

    part: int = 0  # position in the source: index of the part, and records read in it
    record: int = 0
    done: bool = False
    origin: dict[str, Any] | None = None
    dropped: dict[str, int] = field(default_factory=lambda: {"duplicate": 0, "bad": 0, "empty": 0})
    sources: list[str] = field(default_factory=list)
    # Per split and source: documents, tokens, bytes.
    counts: dict[str, dict[str, list[int]]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    shards: list[dict[str, Any]] = field(default_factory=list)
    # Per split, the fingerprint of its documents; empty if an earlier version began the preparation and did not count it.
    texts: dict[str, str] = field(default_factory=lambda: dict.fromkeys(SPLITS, ""))
    # Per split, the unfinished shard.
    open: dict[str, dict[str, int]] = field(default_factory=lambda: {split: _empty(0) for split in SPLITS})

    def total(self, split: str, column: int) -> int:
        """Return the documents (column 0), tokens (1) or bytes (2) of a split."""
        return sum(row[column] for row in self.counts[split].values())


def _empty(index: int) -> dict[str, int]:
    return {"index": index, "tokens": 0, "documents": 0, "bytes": 0}


class _PartFiles:
    """The two files of an unfinished shard, truncated to their committed lengths."""

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
            raise UserError(f"{path}: shorter than recorded; {shards.prepare_again_hint(path.parent)}")
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

    def finish(self, tokenizer: Tokenizer, known: dict[str, int]) -> None:
        """Turn the .part files into a finished shard. Repeating this after a kill gives the same shard."""
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
    """Appends tokenized documents to shards. `commit` makes `state` and all files durable. Not thread-safe."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self._folder, self._tokenizer, self._shard_tokens = folder, tokenizer, shard_tokens
        self._db = sqlite3.connect(folder / STATE)
        self._db.execute("CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY, content TEXT)")
        # 8 MiB (a negative value counts KiB), so that memory does not grow with the corpus. Beyond 400,000 documents most
        # look-ups, which are random, read a page from the system's cache; that is a small part of the work.
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
        """Return whether no earlier document has this digest, and remember it until `remember` stores it."""
        if digest in self._ahead:
            return False
        if self._db.execute("SELECT 1 FROM seen WHERE digest = ?", (digest,)).fetchone():
            return False
        self._ahead.add(digest)
        return True

    def add(self, split: str, encoded: Encoded) -> None:
        """Append documents to a split, and finish each shard that has reached its size."""
        ends = np.cumsum(encoded.lengths)
        document = token = 0
        while document < len(encoded.lengths):
            room = self._shard_tokens - self.state.open[split]["tokens"]
            stop = min(int(np.searchsorted(ends, token + room)) + 1, len(ends))
            self._append(split, encoded, document, stop, token, int(ends[stop - 1]))
            document, token = stop, int(ends[stop - 1])
            if self.state.open[split]["tokens"] >= self._shard_tokens:
                self.finish_shard(split)

    def _append(self, split: str, encoded: Encoded, first: int, stop: int, start: int, end: int) -> None:
        known, counts = self.state.open[split], self.state.counts[split]
        lengths = np.asarray(encoded.lengths[first:stop], dtype=np.int64)
        rows = np.empty((stop - first, 2), dtype=np.int64)
        rows[:, 0] = known["tokens"] + np.cumsum(lengths) - lengths
        ids = [source_id(self._source_ids, label) for label in encoded.sources[first:stop]]
        self.state.sources = list(self._source_ids)
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

    def remember(self, digests: Sequence[bytes]) -> None:
        """Store the digests of added documents; they are durable after the next commit."""
        self._db.executemany("INSERT INTO seen VALUES (?)", [(digest,) for digest in digests])
        self._ahead.difference_update(digests)

    def finish_shard(self, split: str) -> None:
        """Finish the open shard of a split and start the next one. An empty shard is left as it is."""
        known, files = self.state.open[split], self._files[split]
        if not known["documents"]:
            return
        files.finish(self._tokenizer, known)
        check = shards.read_shard(files.final, self._dtype.itemsize)
        counts = {name: known[name] for name in ("tokens", "documents", "bytes")}
        content = {"largest_id": check.largest_id, "hash": check.hash}
        self.state.shards.append({"file": files.final.name, "split": split, **counts, **content})
        self.state.open[split] = _empty(known["index"] + 1)
        self._open(split)

    def commit(self) -> None:
        """Make everything added so far durable."""
        for files in self._files.values():
            files.sync()
        content = json.dumps(add_checksum(vars(self.state)))
        self._db.execute("INSERT OR REPLACE INTO state VALUES (0, ?)", (content,))
        self._db.commit()

    def close(self) -> None:
        """Close the files. Uncommitted documents are lost."""
        for files in self._files.values():
            files.close()
        self._db.close()


def load_state(db: sqlite3.Connection) -> State:
    """Return the last committed state, or an initial one. Raises sqlite3.DatabaseError if it is damaged."""
    try:
        row = db.execute("SELECT content FROM state").fetchone()  # invalid UTF-8 raises ValueError as well
        return State(**{"texts": {}} | verify_checksum(json.loads(row[0]))) if row else State()
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"invalid state: {error}") from error
