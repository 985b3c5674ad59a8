"""From a corpus to token shards, once: all cores, constant memory, and a kill at any moment costs seconds.

The main thread reads, drops duplicates and writes; threads encode, for the encoder releases the GIL. Results are written
in the order of reading, so the shards do not depend on the number of threads or on interruptions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.progress import PartsProgress
from data.sample import sample_texts, split_and_digest
from data.shards import (
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER,
    corpus_fingerprint,
    mend,
    read_manifest,
    usable_cores,
    verify,
    write_json,
)
from data.sources import DataSpec, Part, Source, make_source
from data.tokenizer import Tokenizer, check_name, get_tokenizer, valid_text
from data.writer import STATE, Encoded, Writer
from errors import MachineError, UserError

SHARD_TOKENS = 1 << 26  # 128 MiB of uint16
BATCH_CHARACTERS = 1 << 19  # text per task of a thread: small beside memory, large beside the cost of a task
COMMIT_TOKENS = 1 << 22  # at most this much is encoded again after a kill, a few seconds' worth
# What changes the tokens that come out; cache_dir and workers do not.
OPTIONS = ("source", "text_key", "tokenizer", "validation_fraction", "max_bytes", "bad_documents")


@dataclass(frozen=True)
class PreparedInfo:
    """A finished corpus on disk; `fresh` when this call made it."""

    folder: Path
    fresh: bool
    manifest: dict[str, Any]


@dataclass
class Batch:
    """Documents on their way to a thread, and where the reader stood after them."""

    texts: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    sources: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    digests: list[bytes] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=lambda: {"duplicate": 0, "bad": 0, "empty": 0})
    characters: int = 0
    part: int = 0
    record: int = 0


def prepare(
    spec: DataSpec,
    progress: bool = True,
    log: Callable[[str], None] = print,
    shard_tokens: int = SHARD_TOKENS,
) -> PreparedInfo:
    """Make the shards of a corpus, or find and verify the ones made before; goes on where a killed call was.

    Raises UserError for what is wrong with the corpus or its settings, MachineError for a full disk or a lost network.
    """
    check_name(spec.tokenizer)
    source = make_source(spec)
    folder = Path(spec.cache_dir) / f"{spec.source}-{spec.tokenizer}-{cache_key(spec, source.identity, shard_tokens)}"
    if (folder / MANIFEST).exists():
        verify(folder)
        return PreparedInfo(folder, False, read_manifest(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not (folder / MANIFEST).exists():
                _make(spec, source, folder, progress, log, shard_tokens)
    except (OSError, sqlite3.OperationalError) as error:
        raise MachineError(
            f"{folder} could not be written ({error}); what was finished is kept: free some space, or choose another"
            " disk with data.cache_dir=FOLDER, and type the same command"
        ) from error
    return PreparedInfo(folder, True, read_manifest(folder))


def cache_key(spec: DataSpec, identity: dict[str, Any], shard_tokens: int) -> str:
    """12 hex digits that stand for the corpus and the settings that decide its tokens."""
    options = {name: getattr(spec, name) for name in OPTIONS}
    content = json.dumps([FORMAT, shard_tokens, options, identity], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second preparer; raises UserError when there is one."""
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being prepared by another process; wait for it or stop it") from None
        yield


def _make(
    spec: DataSpec, source: Source, folder: Path, progress: bool, log: Callable[[str], None], shard_tokens: int
) -> None:
    tokenizer = Tokenizer.load(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None
    origin = source.open(_origin(folder), log)
    parts = source.parts()
    if tokenizer is None:
        if spec.tokenizer.startswith("bpe-"):
            log(f"training {spec.tokenizer} on a sample of the training text")
        tokenizer = get_tokenizer(
            spec.tokenizer, lambda: sample_texts(source, parts, spec.validation_fraction), folder, "trained"
        )
        tokenizer.save(folder / TOKENIZER)
        (folder / f"{spec.tokenizer}-trained.json").unlink(missing_ok=True)
    writer = Writer(folder, tokenizer, shard_tokens)
    try:
        writer.state.origin = origin
        if not writer.state.done:
            with PartsProgress(f"preparing {spec.source}", source, parts, progress, log) as bar:
                _encode_all(spec, source, parts, tokenizer, writer, bar)
            _refuse_empty(spec, writer, folder)
            for split in SPLITS:
                writer.seal(split)
            writer.state.done = True
            writer.commit()
        state = writer.state
    finally:
        writer.close()
    write_json(folder / MANIFEST, _manifest(spec, source, tokenizer, vars(state)))
    for name in (STATE, *(path.name for path in folder.glob("*.part"))):
        (folder / name).unlink(missing_ok=True)


def _origin(folder: Path) -> dict[str, Any] | None:
    """What `Source.open` returned when an interrupted preparation began."""
    if not (folder / STATE).exists():
        return None
    from data.writer import load_state

    connection = sqlite3.connect(folder / STATE)
    try:
        return load_state(connection).origin
    except sqlite3.OperationalError:  # killed before the first table was made
        return None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{folder / STATE}: damaged ({error}); {mend(folder)}") from error
    finally:
        connection.close()


def _encode_all(
    spec: DataSpec, source: Source, parts: list[Part], tokenizer: Tokenizer, writer: Writer, bar: PartsProgress
) -> None:
    """Read, encode and write everything that is not written yet."""
    workers = spec.workers or usable_cores()
    waiting: deque[tuple[Batch, Future[dict[str, Encoded]]]] = deque()
    uncommitted = 0

    def write_oldest() -> int:
        batch, future = waiting.popleft()
        tokens = 0
        for split, encoded in future.result().items():
            writer.add(split, encoded)
            tokens += len(encoded.tokens)
        writer.remember(batch.digests)
        for reason, count in batch.dropped.items():
            writer.state.dropped[reason] += count
        writer.state.part, writer.state.record = batch.part, batch.record
        bar.update(batch.part, f"{sum(writer.state.total(split, 1) for split in SPLITS) / 1e6:.1f}M tokens")
        return tokens

    with ThreadPoolExecutor(workers) as pool:
        for batch in _batches(spec, source, parts, writer):
            waiting.append((batch, pool.submit(_encode, batch, tokenizer)))
            while len(waiting) > 3 * workers:
                uncommitted += write_oldest()
            if uncommitted >= COMMIT_TOKENS:
                writer.commit()
                uncommitted = 0
        while waiting:
            write_oldest()
    bar.update(len(parts), f"{sum(writer.state.total(split, 1) for split in SPLITS) / 1e6:.1f}M tokens")


def _encode(batch: Batch, tokenizer: Tokenizer) -> dict[str, Encoded]:
    """The documents of a batch as ids, each ended by end-of-text."""
    done = {}
    end = np.array([tokenizer.eot], dtype=tokenizer.dtype)
    for split, texts in batch.texts.items():
        if texts:
            ids = [tokenizer.encode(text) for text in texts]
            tokens = np.concatenate([piece for each in ids for piece in (each, end)])
            sizes = [len(text.encode()) for text in texts]
            done[split] = Encoded(tokens, [len(each) + 1 for each in ids], sizes, batch.sources[split])
    return done


def _batches(spec: DataSpec, source: Source, parts: list[Part], writer: Writer) -> Iterator[Batch]:
    """New documents from where the writer's state stands, in batches of about BATCH_CHARACTERS."""
    first, skip = writer.state.part, writer.state.record
    left = None if spec.max_bytes is None else spec.max_bytes - sum(writer.state.total(split, 2) for split in SPLITS)
    batch = Batch()
    for part in range(first, len(parts)):
        for record, document in enumerate(source.documents(parts[part])):
            if part == first and record < skip:
                continue
            if left is not None and left <= 0:
                batch.part, batch.record = part, record
                yield batch
                return
            text = "" if document is None else valid_text(document.text)
            if document is None or not text:
                batch.dropped["bad" if document is None else "empty"] += 1
            else:
                split, digest = split_and_digest(document, text, spec.validation_fraction)
                if writer.is_new(digest):
                    batch.texts[split].append(text)
                    batch.sources[split].append(document.source)
                    batch.digests.append(digest)
                    batch.characters += len(text)
                    left = None if left is None else left - len(text.encode())
                else:
                    batch.dropped["duplicate"] += 1
            if batch.characters >= BATCH_CHARACTERS:
                batch.part, batch.record = part, record + 1
                yield batch
                batch = Batch()
    batch.part, batch.record = len(parts), 0
    yield batch


def _refuse_empty(spec: DataSpec, writer: Writer, folder: Path) -> None:
    """A corpus without training or without validation text is no corpus; its folder goes."""
    documents = {split: writer.state.total(split, 0) for split in SPLITS}
    if all(documents.values()):
        return
    shutil.rmtree(folder)
    origin = f"data.path={spec.path}" if spec.path else f"data.source={spec.source}"
    if not any(documents.values()):
        raise UserError(f"{origin}: no text in it (dropped: {writer.state.dropped}); give a file or folder with text")
    missing = "training" if documents["val"] else "validation"
    raise UserError(
        f"{origin}: its {sum(documents.values())} document(s) leave none for {missing}; give more documents or change"
        f" data.validation_fraction={spec.validation_fraction}"
    )


def _manifest(spec: DataSpec, source: Source, tokenizer: Tokenizer, state: dict[str, Any]) -> dict[str, Any]:
    counts = {
        split: {name: dict(zip(("documents", "tokens", "bytes"), row, strict=True)) for name, row in rows.items()}
        for split, rows in state["counts"].items()
    }
    options = {name: value for name, value in asdict(spec).items() if name in OPTIONS}
    return {
        "format": FORMAT,
        "options": options,
        "identity": source.identity,
        "origin": state["origin"],
        "tokenizer": {"name": tokenizer.name, "n_vocab": tokenizer.n_vocab, "fingerprint": tokenizer.fingerprint},
        "sources": state["sources"],
        "counts": counts,
        "dropped": state["dropped"],
        "shards": state["shards"],
        "fingerprint": corpus_fingerprint(state["shards"], tokenizer.fingerprint),
    }
