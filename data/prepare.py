"""From a source of text to shards of tokens: once per corpus, before the clock of any run.

The main thread reads, drops duplicates and writes; threads encode (tiktoken releases the GIL), with a bounded number
of batches in flight, so that memory does not grow with the corpus. What comes out depends on nothing but the spec:
not on the number of threads, nor on how often it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.cpu import usable_cores
from common.errors import FULL_DISK, MachineError, UserError
from common.file_lock import waiting_lock
from common.json_io import sync_folder, write_json
from data import shards
from data.progress import PartsProgress
from data.shard_writer import STATE, Encoded, State, Writer, load_state
from data.shards import MANIFEST, SPLITS, TOKENIZER
from data.sources.base import DataSpec, Part, Source
from data.sources.registry import make_source
from data.tokenizer import Tokenizer, check_name, get_tokenizer, valid_text
from data.tokenizer_sample import sample_texts, split_and_digest

# Text per call of a worker: long enough (about 20 ms) to hide the hand-over, short enough to keep many cores busy.
BATCH_BYTES = 1 << 18
SHARD_TOKENS = 64 << 20
# Tokens per worker between two commits, each a sync of the disk: about two seconds of work.
COMMIT_TOKENS = 4 << 20


@dataclass(frozen=True)
class PreparedInfo:
    """A finished corpus: its folder, whether this call made it, and what it holds."""

    folder: Path
    fresh: bool
    manifest: dict[str, Any]
    tokenizer: Tokenizer

    @property
    def left_out(self) -> dict[str, int]:
        """Documents that the source holds and the corpus does not, by reason; those above 0."""
        names = {
            "bad": "bad_documents_skipped",
            "duplicate": "duplicates_dropped",
            "empty": "empty_documents_dropped",
        }
        return {reason: self.manifest[name] for reason, name in names.items() if self.manifest[name]}

    @property
    def cut(self) -> bool:
        """Whether `data.max_bytes` left out what came after it."""
        limit = self.manifest["options"]["max_bytes"]
        return limit is not None and sum(split["bytes"] for split in self.manifest["splits"].values()) >= limit


@dataclass
class _Documents:
    texts: list[str] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


@dataclass
class _Batch:
    """New documents per split, and the position in the source and the counts of what was dropped right after them."""

    part: int = 0
    record: int = 0
    size: int = 0
    digests: list[bytes] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=lambda: {"duplicate": 0, "bad": 0, "empty": 0})
    splits: dict[str, _Documents] = field(default_factory=lambda: {split: _Documents() for split in SPLITS})


def prepare(spec: DataSpec, progress: bool = True, log: Callable[[str], None] = print) -> PreparedInfo:
    """Makes, completes or finds the corpus that `spec` describes, below `spec.cache_dir`.

    Killed at any moment, the same call goes on where it was, and the result is the same to the byte. A finished
    corpus is verified, without a look at the network. Raises UserError for mistakes in `spec` and in the text,
    MachineError for a full disk or a failing network; both keep what was done.
    """
    check_name(spec.tokenizer)
    source = make_source(spec)
    folder = _folder(spec, source)
    if (folder / MANIFEST).exists():
        return _found(folder)
    with _disk_errors(folder), _locked(folder, log):
        if (folder / MANIFEST).exists():  # made by another process while this one waited
            return _found(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).exists():
            log(f"going on with {folder}")
        tokenizer = _make(spec, source, folder, progress, log)
    return PreparedInfo(folder, True, shards.read_manifest(folder), tokenizer)


def prepared_fingerprint(spec: DataSpec) -> str | None:
    """The fingerprint of the corpus that `spec` describes where it is prepared already; None where it is not."""
    try:
        fingerprint: str | None = shards.read_manifest(_folder(spec, make_source(spec))).get("fingerprint")
    except UserError:
        return None
    return fingerprint


def _folder(spec: DataSpec, source: Source) -> Path:
    return Path(spec.cache_dir).expanduser() / f"{spec.source}-{spec.tokenizer}-{_key(spec, source)}"


def _found(folder: Path) -> PreparedInfo:
    with suppress(OSError):  # a finished corpus may lie where this user can only read
        (folder / STATE).unlink(missing_ok=True)  # there after a kill between the manifest and this
    shards.verify(folder)
    return PreparedInfo(folder, False, shards.read_manifest(folder), Tokenizer.load(folder / TOKENIZER))


def _options(spec: DataSpec) -> dict[str, Any]:
    """What besides source and tokenizer decides the tokens."""
    return {
        "text_key": spec.text_key,
        "validation_fraction": spec.validation_fraction,
        "max_bytes": spec.max_bytes,
        "bad_documents": spec.bad_documents,
        "shard_tokens": SHARD_TOKENS,
    }


def _key(spec: DataSpec, source: Source) -> str:
    content = [shards.FORMAT, spec.source, source.identity, spec.tokenizer, _options(spec)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def _locked(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """One process at a time per corpus."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # a file is there, or on the way
        raise UserError(f"data.cache_dir={folder.parent} is no folder; set data.cache_dir= to one") from None
    lock = folder.with_name(folder.name + ".lock")
    with waiting_lock(lock, lambda holder: log(f"{holder} is preparing {folder}; waiting for it")):
        yield


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full disk is the machine's fault, a folder that may not be written the user's: one line, no traceback."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{error.filename}: permission denied; set data.cache_dir= to a folder of yours") from error
    except (OSError, sqlite3.DatabaseError) as error:
        if error.errno in FULL_DISK if isinstance(error, OSError) else "full" in str(error):
            raise MachineError(
                f"the disk of {folder.parent} is full ({error}); what was committed is kept in {folder}: "
                "make room, then the same command goes on (or set data.cache_dir= to another disk)"
            ) from error
        if isinstance(error, OSError):
            raise
        raise UserError(
            f"{folder / STATE}: damaged ({_one_line(error)}); {shards.prepare_again_hint(folder)}"
        ) from error


def _one_line(error: Exception) -> str:
    """sqlite quotes all of a text that it cannot decode."""
    return " ".join(str(error).split())[:200]


def _make(spec: DataSpec, source: Source, folder: Path, progress: bool, log: Callable[[str], None]) -> Tokenizer:
    """Does all the work that is left in `folder`, under its lock, and returns the corpus' tokenizer."""
    state = _peek(folder)
    origin = source.open(state.origin, log)
    parts = source.parts()
    tokenizer = _tokenizer(spec, source, parts, folder, log)
    writer = Writer(folder, tokenizer, SHARD_TOKENS)
    try:
        writer.state.origin = origin
        if not writer.state.done:
            workers = spec.workers or usable_cores()
            with PartsProgress(f"preparing {folder.name}", source, parts, progress, log) as shown:
                _encode_all(spec, source, parts, tokenizer, writer, workers, shown)
            _complete(writer, folder, spec)
        manifest = _manifest(spec, source, writer.state, tokenizer)
    finally:
        writer.close()
    for leftover in folder.glob("*.part"):
        leftover.unlink()
    write_json(folder / MANIFEST, manifest, checksummed=True)
    sync_folder(folder)
    (folder / STATE).unlink(missing_ok=True)
    return tokenizer


def _peek(folder: Path) -> State:
    """The state of an interrupted preparation, before there is a tokenizer to write with."""
    if not (folder / STATE).exists():
        return State()
    db = sqlite3.connect(folder / STATE)
    try:
        return load_state(db)
    except sqlite3.OperationalError:  # killed before the tables were made
        return State()
    finally:
        db.close()


def _tokenizer(
    spec: DataSpec, source: Source, parts: list[Part], folder: Path, log: Callable[[str], None]
) -> Tokenizer:
    """The tokenizer kept in the folder, or one made now; a trained one is shared between corpora of the same text."""
    path = folder / TOKENIZER
    if path.exists():
        return Tokenizer.load(path)
    content = [spec.source, source.identity, spec.text_key, spec.validation_fraction, spec.bad_documents]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def texts() -> Iterator[str]:
        log(f"training {spec.tokenizer} on a sample of the training text")
        return sample_texts(source, parts, spec.validation_fraction)

    shared = folder.parent / "tokenizers"
    # Corpora of the same text that differ in data.max_bytes train the same one.
    with _locked(shared / key, log) if spec.tokenizer.startswith("bpe-") else nullcontext():
        tokenizer = get_tokenizer(spec.tokenizer, texts, shared, key)
    tokenizer.save(path)
    return tokenizer


def _encode_all(
    spec: DataSpec,
    source: Source,
    parts: list[Part],
    tokenizer: Tokenizer,
    writer: Writer,
    workers: int,
    shown: PartsProgress,
) -> None:
    waiting: deque[tuple[_Batch, Future[dict[str, Encoded]]]] = deque()
    uncommitted = 0

    def write_oldest() -> None:
        nonlocal uncommitted
        batch, future = waiting.popleft()
        uncommitted += _write(writer, batch, future.result())
        if uncommitted >= COMMIT_TOKENS * workers:
            writer.commit()
            uncommitted = 0
        shown.update(writer.state.part, f"{sum(writer.state.total(split, 1) for split in SPLITS):,} tokens")

    failure: UserError | MachineError | None = None
    reading = _batches(spec, source, parts, writer)
    with ThreadPoolExecutor(workers) as pool:
        while True:
            try:
                batch = next(reading, None)
            except (UserError, MachineError) as error:  # a bad line, the network: what was read before is kept
                failure, batch = error, None
            if batch is None:
                break
            waiting.append((batch, pool.submit(_encode, batch, tokenizer)))
            while len(waiting) > 2 * workers:
                write_oldest()
        while waiting:
            write_oldest()
    writer.commit()
    if failure:
        raise failure


def _batches(spec: DataSpec, source: Source, parts: list[Part], writer: Writer) -> Iterator[_Batch]:
    """New documents from the committed position on, in order, about BATCH_BYTES at a time."""
    taken = {split: writer.state.total(split, 2) for split in SPLITS}
    first, skip = writer.state.part, writer.state.record
    batch = _Batch()
    for number in range(first, len(parts)):
        part = parts[number]
        record = 0
        for document in () if _enough(spec, part, taken) else source.documents(part):
            record += 1
            if number == first and record <= skip:
                continue
            if document is None:
                batch.dropped["bad"] += 1
            else:
                text = valid_text(document.text)
                raw = text.encode()
                split, digest = split_and_digest(document, raw, spec.validation_fraction)
                if not text or not writer.is_new(digest):
                    batch.dropped["duplicate" if text else "empty"] += 1
                else:
                    _take(batch, split, text, len(raw), document.source, digest)
                    taken[split] += len(raw)
            if batch.size >= BATCH_BYTES:
                batch.part, batch.record = number, record
                yield batch
                batch = _Batch()
            if _enough(spec, part, taken):
                break
        batch.part, batch.record = number + 1, 0
    if batch.part > first or batch.digests:
        yield batch


def _take(batch: _Batch, split: str, text: str, size: int, label: str, digest: bytes) -> None:
    """Puts a document of `size` UTF-8 bytes in a batch."""
    documents = batch.splits[split]
    documents.texts.append(text)
    documents.bytes.append(size)
    documents.sources.append(label)
    batch.digests.append(digest)
    batch.size += size


def _enough(spec: DataSpec, part: Part, taken: dict[str, int]) -> bool:
    """Whether `max_bytes` is reached for the split of a part. A corpus with a validation split of its own, which is
    read first, gets `validation_fraction` of them from it, so that training text is left to take."""
    if spec.max_bytes is None:
        return False
    if part.split == "val":
        return taken["val"] >= spec.validation_fraction * spec.max_bytes
    return sum(taken.values()) >= spec.max_bytes


def _encode(batch: _Batch, tokenizer: Tokenizer) -> dict[str, Encoded]:
    """What a worker does. The texts are let go of as soon as they are tokens."""
    eot = np.array([tokenizer.eot], dtype=tokenizer.dtype)
    out = {}
    for split, documents in batch.splits.items():
        if documents.texts:
            ids = [tokenizer.encode(text) for text in documents.texts]
            tokens = np.concatenate([each for one in ids for each in (one, eot)])
            out[split] = Encoded(tokens, [len(one) + 1 for one in ids], documents.bytes, documents.sources)
            documents.texts = []
    return out


def _write(writer: Writer, batch: _Batch, encoded: dict[str, Encoded]) -> int:
    """Brings the writer up to the end of a batch; returns the tokens written."""
    for split, documents in encoded.items():
        writer.add(split, documents)
    writer.remember(batch.digests)
    state = writer.state
    state.part, state.record = batch.part, batch.record
    for reason, number in batch.dropped.items():
        state.dropped[reason] += number
    return sum(len(documents.tokens) for documents in encoded.values())


def _complete(writer: Writer, folder: Path, spec: DataSpec) -> None:
    """Finishes the last shards. Raises UserError for a corpus without text on one side of the split."""
    empty = [split for split in SPLITS if not writer.state.total(split, 0)]
    if empty:
        documents = sum(writer.state.total(split, 0) for split in SPLITS)
        shutil.rmtree(folder)
        if not documents:
            raise UserError(f"data.source={spec.source} data.path={spec.path}: no text in it; give another data.path")
        key = "a smaller" if empty == ["train"] else "a larger"
        raise UserError(
            f"data.source={spec.source} data.path={spec.path}: no document of {documents} falls to {empty[0]}; "
            f"choose {key} data.validation_fraction (now {spec.validation_fraction}) or give more text"
        )
    for split in SPLITS:
        writer.seal(split)
    writer.state.done = True
    writer.commit()


def _manifest(spec: DataSpec, source: Source, state: State, tokenizer: Tokenizer) -> dict[str, Any]:
    done = sorted(state.shards, key=lambda shard: shard["file"])
    columns = ("documents", "tokens", "bytes")
    splits = {
        split: {name: state.total(split, column) for column, name in enumerate(columns)}
        | {"by_source": {label: dict(zip(columns, row, strict=True)) for label, row in state.counts[split].items()}}
        for split in SPLITS
    }
    return {
        "format": shards.FORMAT,
        "fingerprint": shards.corpus_fingerprint(done, tokenizer.fingerprint),
        "source": spec.source,
        "identity": source.identity,
        "origin": state.origin,
        "options": _options(spec),
        "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint, "n_vocab": tokenizer.n_vocab},
        "splits": splits,
        "duplicates_dropped": state.dropped["duplicate"],
        "bad_documents_skipped": state.dropped["bad"],
        "empty_documents_dropped": state.dropped["empty"],
        "sources": state.sources,
        "shards": done,
    }
