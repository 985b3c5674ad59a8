"""Prepares a corpus: tokenizes the text of a source into shards, once per corpus, before a run's budget starts.

The main thread reads, drops duplicates and writes. Worker threads tokenize (tiktoken releases the GIL), with a bounded number
of batches in flight, so memory does not grow with the corpus. The result depends on the spec alone, not on the number of
threads or on interruptions.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.cpu import usable_cores
from common.errors import MachineError, UserError
from common.format import format_bytes, format_number_of
from common.json_io import mapping, sync_folder, write_json
from data import shards
from data.cache import disk_errors, locked, short_hash
from data.progress import PartsProgress
from data.record import left_out, read_record
from data.shard_writer import STATE, Encoded, State, Writer, load_state
from data.shards import MANIFEST, SPLITS, TOKENIZER
from data.sources.base import DataSpec, Part, Source
from data.sources.by_place import split_by_place
from data.sources.registry import make_source
from data.splits import chained, split_and_digest
from data.tokenizers.sample import sample_texts
from data.tokenizers.tokenizer import (
    Tokenizer,
    check_name,
    is_published,
    short_name,
    tokenizer_key,
    valid_text,
)
from data.tokenizers.trained import sample_key, shared_tokenizer

# Text in one task of a worker: large enough (about 20 ms) to hide the overhead, small enough to keep many cores busy.
BATCH_BYTES = 1 << 18
SHARD_TOKENS = 64 << 20
# Tokens per worker between two commits, about two seconds of work; a commit waits for the disk (fsync).
COMMIT_TOKENS = 4 << 20


@dataclass(frozen=True)
class PreparedInfo:
    """A finished corpus: its folder, whether this call prepared it, its manifest and its tokenizer.

    The manifest lists the files that are not read now, which may be others than when the corpus was prepared.
    """

    folder: Path
    fresh: bool
    manifest: dict[str, Any]
    tokenizer: Tokenizer

    @property
    def left_out(self) -> dict[str, int]:
        """Return how many documents of the source are not in the corpus, by reason; reasons with 0 are omitted."""
        return left_out(self.manifest)

    @property
    def cut(self) -> bool:
        """Return whether `data.max_bytes` ended the corpus."""
        limit = self.manifest["options"]["max_bytes"]
        return limit is not None and sum(split["bytes"] for split in self.manifest["splits"].values()) >= limit


class _WithoutText(UserError):
    """A corpus of which a split has no document."""


@dataclass
class _Documents:
    texts: list[str] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


@dataclass
class _Batch:
    """New documents for each split, with the position in the source after them and the counts of dropped documents."""

    part: int = 0
    record: int = 0
    size: int = 0
    digests: dict[str, list[bytes]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    dropped: Counter[str] = field(default_factory=Counter)
    splits: dict[str, _Documents] = field(default_factory=lambda: {split: _Documents() for split in SPLITS})

    def append(self, split: str, text: str, size: int, label: str, digest: bytes) -> None:
        """Append a document of `size` UTF-8 bytes."""
        documents = self.splits[split]
        documents.texts.append(text)
        documents.bytes.append(size)
        documents.sources.append(label)
        self.digests[split].append(digest)
        self.size += size


def prepare(
    spec: DataSpec,
    progress: bool = True,
    log: Callable[[str], None] = print,
    tokenizer: Tokenizer | None = None,
) -> PreparedInfo:
    """Return the corpus that `spec` describes: prepare it, continue an interrupted preparation, or verify a finished corpus.

    It lies in a folder below `spec.cache_dir`. `tokenizer` is used instead of one that would be trained on the text, such as
    that of a whole mix or of another run. After a kill at any moment the same call continues, and the result is the same to
    the byte. A finished corpus needs no network. Raises UserError for problems of `spec` or of the text, and MachineError for
    a full disk or a failing network; the work committed before is kept.
    """
    tokenizer = None if tokenizer is not None and is_published(spec.tokenizer) else tokenizer
    if tokenizer is None:
        check_name(spec.tokenizer)
    source = make_source(spec)
    folder = _folder(spec, source, tokenizer)
    if (folder / MANIFEST).exists():
        return _open_finished(folder, source)
    with disk_errors(folder), locked(folder, log):
        if (folder / MANIFEST).exists():  # prepared by another process while this one waited
            return _open_finished(folder, source)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).exists():
            log(f"continuing the preparation of {folder}")
        try:
            used = _prepare(spec, source, folder, progress, log, tokenizer)
        except _WithoutText:
            shutil.rmtree(folder)  # nothing in it is worth continuing
            raise
    return PreparedInfo(folder, True, shards.read_manifest(folder), used)


def prepared_fingerprint(spec: DataSpec, tokenizer: Tokenizer | None = None) -> str | None:
    """Return the fingerprint of the corpus that `spec` describes, or None if it has not been prepared."""
    manifest = prepared_manifest(spec, tokenizer)
    return None if manifest is None else manifest.get("fingerprint")


def prepared_manifest(spec: DataSpec, tokenizer: Tokenizer | None = None) -> dict[str, Any] | None:
    """Return the manifest of the corpus that `prepare` with these arguments makes, or None if it has not been prepared."""
    tokenizer = None if is_published(spec.tokenizer) else tokenizer
    try:
        return shards.read_manifest(_folder(spec, make_source(spec), tokenizer))
    except UserError:
        return None


def _folder(spec: DataSpec, source: Source, tokenizer: Tokenizer | None) -> Path:
    """Return the folder of a corpus. With a given `tokenizer` it is another one, unless that one was trained on this text."""
    content = [shards.FORMAT, spec.source, source.identity, tokenizer_key(spec.tokenizer), _options(spec)]
    start = Path(spec.cache_dir).expanduser() / f"{spec.source}-{short_name(spec.tokenizer)}-"
    own = start.with_name(start.name + short_hash(content))
    if tokenizer is None or _tokenizer_of(own) == tokenizer.fingerprint:
        return own
    return start.with_name(start.name + short_hash([*content, tokenizer.fingerprint]))


def _tokenizer_of(folder: Path) -> str | None:
    """Return the fingerprint of the tokenizer of a finished corpus; None for one that is not finished."""
    try:
        fingerprint: str = shards.read_manifest(folder)["tokenizer"]["fingerprint"]
    except UserError:
        return None
    return fingerprint


def _open_finished(folder: Path, source: Source) -> PreparedInfo:
    with suppress(OSError):  # the folder may be read-only for this user
        (folder / STATE).unlink(missing_ok=True)  # left by a kill after the manifest was written
    shards.verify(folder)
    manifest = shards.read_manifest(folder)
    now = read_record(source.overview())
    # The files that are not read have no part in the corpus' identity, so they may have changed.
    known = {name: now[name] for name in ("not_read", "files_not_read")} if now["files"] else {}
    if read := {**mapping(manifest.get("read")), **known}:
        manifest["read"] = read
    return PreparedInfo(folder, False, manifest, Tokenizer.load(folder / TOKENIZER))


def _options(spec: DataSpec) -> dict[str, Any]:
    """Return the options that determine the tokens, besides source and tokenizer."""
    return {
        "text_key": spec.text_key,
        "validation_fraction": spec.validation_fraction,
        "max_bytes": spec.max_bytes,
        "bad_documents": spec.bad_documents,
        "shard_tokens": SHARD_TOKENS,
    }


def _prepare(
    spec: DataSpec,
    source: Source,
    folder: Path,
    progress: bool,
    log: Callable[[str], None],
    given: Tokenizer | None,
) -> Tokenizer:
    """Do the remaining work in `folder`, whose lock is held, and return the tokenizer: the given one, if any."""
    state = _committed_state(folder)
    origin = source.open(state.origin, log)
    parts = source.parts()
    reading = spec
    if placed := split_by_place(spec, source, parts):
        source, reading = placed, replace(spec, max_bytes=None)  # it ends at max_bytes by itself
    if given is not None and not (folder / TOKENIZER).exists():
        given.save(folder / TOKENIZER)
    tokenizer = _tokenizer(spec, source, parts, folder, log)
    writer = Writer(folder, tokenizer, SHARD_TOKENS)
    try:
        writer.state.origin = origin
        if not writer.state.done:
            workers = spec.workers or usable_cores()
            with PartsProgress(f"preparing {folder.name}", source, parts, progress, log) as shown:
                _encode_all(reading, source, parts, tokenizer, writer, workers, shown)
            _complete(writer, spec, source)
        manifest = _manifest(spec, source, writer.state, tokenizer)
    finally:
        writer.close()
    for leftover in folder.glob("*.part"):
        leftover.unlink()
    write_json(folder / MANIFEST, manifest, checksummed=True)
    sync_folder(folder)
    (folder / STATE).unlink(missing_ok=True)
    return tokenizer


def _committed_state(folder: Path) -> State:
    """Return the state of an interrupted preparation, or an initial state."""
    if not (folder / STATE).exists():
        return State()
    db = sqlite3.connect(folder / STATE)
    try:
        return load_state(db)
    except sqlite3.OperationalError:  # killed before the tables were created
        return State()
    finally:
        db.close()


def _tokenizer(
    spec: DataSpec, source: Source, parts: list[Part], folder: Path, log: Callable[[str], None]
) -> Tokenizer:
    """Return the tokenizer saved in the folder, or create and save it. Corpora of the same text share a trained one."""
    path = folder / TOKENIZER
    if path.exists():
        return Tokenizer.load(path)

    def texts() -> Iterator[str]:
        return sample_texts(source, parts, spec.validation_fraction)

    # The key does not hold data.max_bytes, which changes the sample only with a split by place, whose identity tells.
    tokenizer = shared_tokenizer(spec, texts, sample_key(spec, source), log)
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
    """Tokenize and write all documents after the committed position, in order. Commits before it raises an error."""
    waiting: deque[tuple[_Batch, Future[dict[str, Encoded]]]] = deque()
    uncommitted = 0

    def write_oldest() -> None:
        nonlocal uncommitted
        batch, future = waiting.popleft()
        uncommitted += _write(writer, batch, future.result())
        if uncommitted >= COMMIT_TOKENS * workers:
            writer.commit()
            uncommitted = 0
        shown.update(f"{sum(writer.state.total(split, 1) for split in SPLITS):,} tokens", _share_of_limit(spec, writer))

    failure: UserError | MachineError | None = None
    reading = _batches(spec, source, parts, writer, shown)
    with ThreadPoolExecutor(workers) as pool:
        while True:
            try:
                batch = next(reading, None)
            except (UserError, MachineError) as error:  # a bad line, the network: write what was read before
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


def _share_of_limit(spec: DataSpec, writer: Writer) -> float:
    """Return the share of `max_bytes` that is written; 0 without a limit."""
    written = sum(writer.state.total(split, 2) for split in SPLITS)
    return written / spec.max_bytes if spec.max_bytes else 0.0


def _batches(
    spec: DataSpec, source: Source, parts: list[Part], writer: Writer, shown: PartsProgress
) -> Iterator[_Batch]:
    """Yield batches of new documents of about BATCH_BYTES, in order, from the committed position on."""
    taken = {split: writer.state.total(split, 2) for split in SPLITS}
    first, skip = writer.state.part, writer.state.record
    batch = _Batch()
    for number in range(first, len(parts)):
        part = parts[number]
        if part.split == "train" and number and parts[number - 1].split == "val" and not taken["val"]:
            bad = writer.state.dropped["bad"] + batch.dropped["bad"]
            raise _without_text(spec, source, "val", 0, bad)  # before hours of work on the training text
        record = 0
        shown.begin(number)
        for document in () if _reached_max_bytes(spec, part, taken) else source.documents(part):
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
                    batch.append(split, text, len(raw), document.source, digest)
                    taken[split] += len(raw)
            if batch.size >= BATCH_BYTES:
                batch.part, batch.record = number, record
                yield batch
                batch = _Batch()
            if _reached_max_bytes(spec, part, taken):
                break
        batch.part, batch.record = number + 1, 0
    shown.begin(len(parts))
    if batch.part > first or any(batch.digests.values()):
        yield batch


def _reached_max_bytes(spec: DataSpec, part: Part, taken: dict[str, int]) -> bool:
    """Return whether `max_bytes` is reached for the split of a part.

    A validation split of the corpus is read first. It gets `validation_fraction` of the bytes, so that the rest is left for
    training text.
    """
    if spec.max_bytes is None:
        return False
    if part.split == "val":
        return taken["val"] >= spec.validation_fraction * spec.max_bytes
    return sum(taken.values()) >= spec.max_bytes


def _encode(batch: _Batch, tokenizer: Tokenizer) -> dict[str, Encoded]:
    """Tokenize a batch, in a worker thread, and release its texts."""
    eot = np.array([tokenizer.eot], dtype=tokenizer.dtype)
    out = {}
    for split, documents in batch.splits.items():
        if documents.texts:
            ids = [tokenizer.encode(text) for text in documents.texts]
            tokens = np.concatenate([array for document in ids for array in (document, eot)])
            out[split] = Encoded(tokens, [len(document) + 1 for document in ids], documents.bytes, documents.sources)
            documents.texts = []
    return out


def _write(writer: Writer, batch: _Batch, encoded: dict[str, Encoded]) -> int:
    """Write a batch and advance the writer's state past it. Return the number of tokens."""
    for split, documents in encoded.items():
        writer.add(split, documents)
    writer.remember([digest for digests in batch.digests.values() for digest in digests])
    state = writer.state
    for split, fingerprint in state.texts.items():
        state.texts[split] = chained(fingerprint, batch.digests[split])
    state.part, state.record = batch.part, batch.record
    for reason, number in batch.dropped.items():
        state.dropped[reason] += number
    return sum(len(documents.tokens) for documents in encoded.values())


def _complete(writer: Writer, spec: DataSpec, source: Source) -> None:
    """Finish the last shards. Raises _WithoutText if train or val has no document."""
    documents = sum(writer.state.total(split, 0) for split in SPLITS)
    for split in SPLITS:
        if not writer.state.total(split, 0):
            if spec.max_bytes is not None and writer.state.total("val", 2) >= spec.max_bytes:
                raise _WithoutText(
                    f"data.max_bytes={format_bytes(spec.max_bytes)} is too little: the documents of the validation split,"
                    f" {source.overview().validation}, take all of it; raise it, or set it to null"
                )
            raise _without_text(spec, source, split, documents, writer.state.dropped["bad"])
    for split in SPLITS:
        writer.finish_shard(split)
    writer.state.done = True
    writer.commit()


def _without_text(spec: DataSpec, source: Source, split: str, documents: int, bad: int) -> _WithoutText:
    """Return the error for a split without a document, of a corpus with `documents` documents.

    `bad` is the number of bad records that were skipped.
    """
    option = "path" if spec.path else "repo"
    named = f"data.source={spec.source}" + (f" data.{option}={value}" if (value := getattr(spec, option)) else "")
    explicit, own = any(part.split for part in source.parts()), source.overview().validation
    no_text = "no text"
    if bad:
        skipped = f"{bad:,} bad {'record was' if bad == 1 else 'records were'} skipped"
        no_text += f" ({skipped}; data.bad_documents=refuse says what is wrong with the first)"
    if split == "val" and spec.validation_path:
        return _WithoutText(f"data.validation_path={spec.validation_path}: {no_text}; give files with text")
    if split == "val" and explicit:
        change = "add text, rename it if it is not meant as a split, or give other text with data.validation_path="
        return _WithoutText(
            f"{named}: {no_text} in the validation split, {own}; {change if spec.path else 'give another data.repo'}"
        )
    if not documents:
        return _WithoutText(f"{named}: {no_text}; give another data.{option}")
    if explicit:
        return _WithoutText(
            f"{named}: no training text besides the {format_number_of(documents, 'document')} of the validation split, {own};"
            f" {'add other text' if spec.path else 'choose another data.split'}"
        )
    change = "a smaller" if split == "train" else "a larger"
    return _WithoutText(
        f"{named}: none of {format_number_of(documents, 'document')} is in {split}; set {change} data.validation_fraction"
        f" (now {spec.validation_fraction}) or give more text"
    )


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
        "read": read_record(source.overview()),
        "options": _options(spec),
        "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint, "n_vocab": tokenizer.n_vocab},
        "splits": splits,
        "text_fingerprints": state.texts,
        "duplicates_dropped": state.dropped["duplicate"],
        "bad_documents_skipped": state.dropped["bad"],
        "empty_documents_dropped": state.dropped["empty"],
        "sources": state.sources,
        "shards": done,
    }
