"""Prepared corpora on disk: files of tokens with their documents, a manifest, and how to open and check them.

A shard is `train-00000.bin`: HEADER, then little-endian tokens; every document ends with end-of-text. Beside it lies
`train-00000.docs.npy`, int64 of shape (documents, 2): each document's first token in the shard, and the index of its
source in the manifest's `sources`. A folder is complete when it holds manifest.json, which is written last.
"""

from __future__ import annotations

import hashlib
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.checksum import verify_checksum
from common.cpu import usable_cores
from common.errors import UserError
from common.safe_read import is_count, load_json, member
from data.tokenizer import Tokenizer

FORMAT = 1
MAGIC = b"STINTTOK"
# magic, version, bytes a token, ids in the vocabulary, tokens, documents, SHA-256 of the tokenizer.
HEADER = struct.Struct("<8sIIQQQ32s")
SPLITS = ("train", "val")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SHARD = re.compile(r"(train|val)-\d{5,9}\.bin")
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class ShardCheck:
    """What reading a whole shard tells: a hash over both its files, and its largest id."""

    hash: str
    largest_id: int


def token_dtype(itemsize: int) -> np.dtype[Any]:
    """The dtype of tokens of so many bytes, little-endian whatever the machine."""
    return np.dtype("<u2") if itemsize == 2 else np.dtype("<u4")


def pack_header(tokenizer: Tokenizer, tokens: int, documents: int) -> bytes:
    """The HEADER.size bytes that a finished shard begins with."""
    fingerprint = bytes.fromhex(tokenizer.fingerprint)
    return HEADER.pack(MAGIC, FORMAT, tokenizer.dtype.itemsize, tokenizer.n_vocab, tokens, documents, fingerprint)


def documents_path(shard: Path) -> Path:
    """Where the document table of `shard` lies."""
    return shard.with_suffix(".docs.npy")


def read_shard(shard: Path, itemsize: int) -> ShardCheck:
    """Reads a shard and its table from the disk, in constant memory."""
    digest, largest = hashlib.sha256(), -1
    with shard.open("rb") as file:
        digest.update(file.read(HEADER.size))
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            tokens = np.frombuffer(chunk[: len(chunk) // itemsize * itemsize], dtype=token_dtype(itemsize))
            largest = max(largest, int(tokens.max(initial=0)))
    with documents_path(shard).open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return ShardCheck(digest.hexdigest(), largest)


def corpus_fingerprint(shards: list[dict[str, Any]], tokenizer_fingerprint: str) -> str:
    """SHA-256 over the shards' hashes in order and the tokenizer: equal means the same tokens and documents."""
    return hashlib.sha256(" ".join([tokenizer_fingerprint, *(each["hash"] for each in shards)]).encode()).hexdigest()


@dataclass(frozen=True)
class Split:
    """One side of a corpus, memory-mapped and read-only.

    Attributes:
        name: "train" or "val".
        shards: Tokens of each shard, shape (tokens,), uint16 or uint32.
        starts: First token of each document, per shard, shape (documents,), int64.
        source_ids: Index into `sources` of each document, per shard, shape (documents,), int64.
        sources: Labels of the sources, the same in both splits.
    """

    name: str
    shards: list[np.ndarray]
    starts: list[np.ndarray]
    source_ids: list[np.ndarray]
    sources: list[str]

    @cached_property
    def n_tokens(self) -> int:
        return sum(len(shard) for shard in self.shards)


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, opened; `fingerprint` stands for its content."""

    folder: Path
    train: Split
    val: Split
    sources: list[str]
    fingerprint: str
    tokenizer: Tokenizer
    manifest: dict[str, Any]


def prepare_again_hint(folder: Path) -> str:
    """The end of every message about a folder that cannot be used."""
    return f"delete {folder} and prepare again"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder. Raises UserError for an unfinished, damaged or newer one."""
    path = folder / MANIFEST
    if not path.exists():
        what = "is not finished" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder}: the prepared corpus {what}; prepare it with the same data settings")
    try:
        manifest: dict[str, Any] = load_json(path)
        version = manifest["format"]
        if version == FORMAT:
            manifest = verify_checksum(manifest)
            _check(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); {prepare_again_hint(folder)}") from error
    if version != FORMAT:
        raise UserError(f"{path}: format {version}, this version reads {FORMAT}; {prepare_again_hint(folder)}")
    return manifest


def _check(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises ValueError, or what a missing key raises, where a manifest is not one that `data.prepare` writes: its shards
    are files of its own folder, and its figures are figures."""
    for shard in manifest["shards"]:
        name = shard["file"]
        if not isinstance(name, str) or not SHARD.fullmatch(name) or shard["split"] != name.split("-")[0]:
            raise ValueError(f"{name!r} is not the name of a shard")
        for path in (folder / name, documents_path(folder / name)):
            if path.exists():  # what is missing has a line of its own
                member(folder, path.name)
        if not all(is_count(shard[key], 2**48) for key in ("tokens", "documents", "bytes", "largest_id")):
            raise ValueError(f"the figures of {name} are no figures")
    texts = [manifest["fingerprint"], manifest["tokenizer"]["fingerprint"], *(s["hash"] for s in manifest["shards"])]
    if not all(isinstance(text, str) for text in [*texts, *manifest["sources"]]):
        raise ValueError("a name or a hash is no text")


def open_corpus(folder: str | Path) -> Corpus:
    """Opens a finished folder. Checks headers and sizes, not contents (that is `verify`).

    Raises UserError, one line a shard, for what does not fit.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    problems = [each for shard in manifest["shards"] if (each := _outside(folder, shard, tokenizer))]
    known = manifest["tokenizer"]
    if (tokenizer.fingerprint, tokenizer.name) != (known["fingerprint"], known["name"]):
        problems.append(f"{folder / TOKENIZER}: not the tokenizer that made the shards; {prepare_again_hint(folder)}")
    if problems:
        raise UserError(*problems)
    splits = {split: _open_split(folder, split, manifest, tokenizer) for split in SPLITS}
    return Corpus(
        folder, splits["train"], splits["val"], manifest["sources"], manifest["fingerprint"], tokenizer, manifest
    )


def _open_split(folder: Path, name: str, manifest: dict[str, Any], tokenizer: Tokenizer) -> Split:
    dtype = token_dtype(tokenizer.dtype.itemsize)
    shards: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    source_ids: list[np.ndarray] = []
    for shard in manifest["shards"]:
        if shard["split"] != name:
            continue
        path = folder / shard["file"]
        shards.append(np.memmap(path, dtype=dtype, mode="r", offset=HEADER.size, shape=(shard["tokens"],)))
        table = _table(path, shard["documents"])
        starts.append(table[:, 0])
        source_ids.append(table[:, 1])
    return Split(name, shards, starts, source_ids, manifest["sources"])


def _table(shard: Path, documents: int) -> np.ndarray:
    """The document table of a shard, mapped: int64 of shape (documents, 2). Raises ValueError for any other."""
    path = documents_path(shard)
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if shape != (documents, 2) or by_columns or dtype != np.int64:
            raise ValueError(f"{path.name} is not a table of {documents} documents")
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


def _outside(folder: Path, shard: dict[str, Any], tokenizer: Tokenizer) -> str | None:
    """What is wrong with a shard, seen without reading its tokens."""
    path = folder / shard["file"]
    itemsize = tokenizer.dtype.itemsize
    expected = HEADER.size + shard["tokens"] * itemsize
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER.size)
        _table(path, shard["documents"])
    except Exception as error:  # numpy reads the header of a table as Python: a hostile one can fail in many ways
        return f"{path}: cannot be read ({type(error).__name__}: {error}); {prepare_again_hint(folder)}"
    if size != expected:
        return f"{path}: {size} bytes instead of {expected}; {prepare_again_hint(folder)}"
    if header != pack_header(tokenizer, shard["tokens"], shard["documents"]):
        return (
            f"{path}: its header is not that of {shard['tokens']} {tokenizer.name} tokens; {prepare_again_hint(folder)}"
        )
    if shard["largest_id"] >= tokenizer.n_vocab:
        return f"{path}: holds id {shard['largest_id']}, {tokenizer.name} ends at {tokenizer.n_vocab - 1}; {prepare_again_hint(folder)}"
    return None


def _within(values: np.ndarray, end: int) -> bool:
    return bool(values.min(initial=0) >= 0 and values.max(initial=-1) < end)


def verify(folder: str | Path, workers: int | None = None) -> None:
    """Reads every shard of a finished folder and compares hashes; about 1 GB/s a core.

    Raises UserError, one line a shard, for a missing, truncated or changed one.
    """
    folder = Path(folder)
    corpus = open_corpus(folder)
    limit, itemsize = corpus.tokenizer.n_vocab, corpus.tokenizer.dtype.itemsize

    def inside(shard: dict[str, Any]) -> str | None:
        path = folder / shard["file"]
        found = read_shard(path, itemsize)
        if found.largest_id >= limit:
            return f"{path}: holds id {found.largest_id}, {corpus.tokenizer.name} ends at {limit - 1}; {prepare_again_hint(folder)}"
        if found.hash != shard["hash"]:
            return f"{path}: its content has changed since it was written; {prepare_again_hint(folder)}"
        starts, sources = _table(path, shard["documents"]).T
        if not (_within(starts, shard["tokens"]) and _within(sources, len(corpus.sources))):
            return f"{documents_path(path)}: names tokens or sources that are not there; {prepare_again_hint(folder)}"
        return None

    shards = corpus.manifest["shards"]
    pool = ThreadPoolExecutor(workers or usable_cores())
    try:
        problems = [each for each in pool.map(inside, shards) if each]
    finally:
        pool.shutdown(cancel_futures=True)  # a signal to stop does not wait for the shards that are still to come
    if corpus_fingerprint(shards, corpus.tokenizer.fingerprint) != corpus.fingerprint:
        problems.append(f"{folder / MANIFEST}: its fingerprint is not that of its shards; {prepare_again_hint(folder)}")
    if problems:
        raise UserError(*problems)
