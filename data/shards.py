"""The files of a prepared corpus: their format, opening them and verifying them.

A shard is a file such as `train-00000.bin`: HEADER, then little-endian tokens, every document ended by end-of-text. Beside it
is a document table, `train-00000.docs.npy`, int64 (documents, 2): the position of each document's first token in the shard,
and the index of its source in the manifest's `sources`. A folder is complete if it holds manifest.json, which is written last.
"""

from __future__ import annotations

import hashlib
import json
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
from data.tokenizers.tokenizer import Tokenizer

FORMAT = 1
MAGIC = b"STINTTOK"
# magic, version, bytes per token, size of the vocabulary, tokens, documents, SHA-256 of the tokenizer.
HEADER = struct.Struct("<8sIIQQQ32s")
SPLITS = ("train", "val")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SHARD = re.compile(r"(train|val)-\d{5,9}\.bin")
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class ShardCheck:
    """The hash of a shard's two files, and its largest token id."""

    hash: str
    largest_id: int


def token_dtype(itemsize: int) -> np.dtype[Any]:
    """Return the dtype of tokens of `itemsize` bytes, little-endian on every machine."""
    return np.dtype("<u2") if itemsize == 2 else np.dtype("<u4")


def pack_header(tokenizer: Tokenizer, tokens: int, documents: int) -> bytes:
    """Return the header of a finished shard, HEADER.size bytes."""
    fingerprint = bytes.fromhex(tokenizer.fingerprint)
    return HEADER.pack(MAGIC, FORMAT, tokenizer.dtype.itemsize, tokenizer.n_vocab, tokens, documents, fingerprint)


def documents_path(shard: Path) -> Path:
    """Return the path of a shard's document table."""
    return shard.with_suffix(".docs.npy")


def read_shard(shard: Path, itemsize: int) -> ShardCheck:
    """Read a shard and its document table from disk, in constant memory."""
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
    """Return the SHA-256 of the tokenizer and the shards' hashes in order: equal for the same tokens and documents."""
    return hashlib.sha256(" ".join([tokenizer_fingerprint, *(shard["hash"] for shard in shards)]).encode()).hexdigest()


@dataclass(frozen=True)
class Component:
    """A source of a mix in the training split.

    Attributes:
        name: Its name in data.mix.
        weight: Its share of the training tokens; the shares of a mix add up to 1.
        shards: Number of its shards, which are consecutive in the split.
        tokens: Number of its training tokens.
        fingerprint: Fingerprint of its corpus.
    """

    name: str
    weight: float
    shards: int
    tokens: int
    fingerprint: str

    @property
    def epoch_tokens(self) -> float:
        """Return the training tokens of the mix in which this source is used once."""
        return self.tokens / self.weight


@dataclass(frozen=True)
class Split:
    """The train or val split of a corpus, memory-mapped read-only.

    Attributes:
        name: "train" or "val".
        shards: Tokens of each shard, uint16 or uint32 (tokens,).
        starts: Position of each document's first token in its shard, one int64 (documents,) per shard.
        source_ids: Index of each document's source in `sources`, one int64 (documents,) per shard.
        sources: Labels of the sources, the same for both splits.
        mix: The sources of the training split of a mix, in the order of their shards; empty for any other split.
    """

    name: str
    shards: list[np.ndarray]
    starts: list[np.ndarray]
    source_ids: list[np.ndarray]
    sources: list[str]
    mix: tuple[Component, ...] = ()

    @cached_property
    def n_tokens(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @property
    def most_repeated(self) -> Component | None:
        """Return the source of a mix whose epochs are the shortest; None without a mix."""
        return min(self.mix, key=lambda component: component.epoch_tokens, default=None)

    @property
    def epoch_tokens(self) -> float:
        """Return the training tokens of one epoch; of a mix, that of its most repeated source."""
        return self.n_tokens if self.most_repeated is None else self.most_repeated.epoch_tokens


def made_up_split(vocab_size: int, block_size: int) -> Split:
    """A training split in memory, one document of uniform random tokens, to measure the speed of a model."""
    dtype, size = np.uint16 if vocab_size <= 1 << 16 else np.uint32, max(1 << 20, 2 * block_size)
    tokens, zero = np.random.default_rng(0).integers(vocab_size, size=size, dtype=dtype), np.zeros(1, dtype=np.int64)
    return Split("train", [tokens], [zero], [zero], ["made up"])


@dataclass(frozen=True)
class Corpus:
    """An open prepared corpus. `fingerprint` identifies its content.

    The manifest of a mix holds those of its sources by name, under "mix".
    """

    folder: Path
    train: Split
    val: Split
    sources: list[str]
    fingerprint: str
    tokenizer: Tokenizer
    manifest: dict[str, Any]


def prepare_again_hint(folder: Path) -> str:
    """Return the hint that ends every message about an unusable folder."""
    return f"delete {folder} and prepare again"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished folder. Raises UserError if it is missing, damaged or of another format."""
    path = folder / MANIFEST
    if not path.exists():
        problem = "is not finished" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder}: the prepared corpus {problem}; prepare it with the same data settings")
    try:
        manifest: dict[str, Any] = load_json(path)
        version = manifest["format"]
        if version == FORMAT:
            manifest = verify_checksum(manifest)
            _check(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); {prepare_again_hint(folder)}") from error
    if version != FORMAT:
        raise UserError(
            f"{path}: format {version}, but this version reads format {FORMAT}; {prepare_again_hint(folder)}"
        )
    return manifest


def _check(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless the manifest is one that `data.prepare` writes: its shards are files of
    its folder, and its counts are counts."""
    for shard in manifest["shards"]:
        name = shard["file"]
        if not isinstance(name, str) or not SHARD.fullmatch(name) or shard["split"] != name.split("-")[0]:
            raise ValueError(f"{name!r} is not a valid shard name")
        for path in (folder / name, documents_path(folder / name)):
            if path.exists():  # open_corpus reports missing files
                member(folder, path.name)
        if not all(is_count(shard[key], 2**48) for key in ("tokens", "documents", "bytes", "largest_id")):
            raise ValueError(f"a count of {name} is not a whole number from 0 to 2^48")
    texts = [manifest["fingerprint"], manifest["tokenizer"]["fingerprint"], *(s["hash"] for s in manifest["shards"])]
    texts += manifest.get("text_fingerprints", {}).values()
    if not all(isinstance(text, str) for text in [*texts, *manifest["sources"]]):
        raise ValueError("a name or a hash is not a string")


def validation_text(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies the validation text of a corpus, whatever its tokenizer, and its size.

    - text_fingerprint: of its documents; None for a corpus prepared by an earlier version
    - text_source: of the files that it was read from, the options with which they were read, and its size
    - validation_bytes, validation_tokens: its size

    The text of a mix is that of all its sources.
    """
    if "mix" in manifest:
        sources = [validation_text(source) for source in manifest["mix"].values()]
        together = {key: [source[key] for source in sources] for key in sources[0]}
        return {key: _of_mix(values) for key, values in together.items()}
    split = manifest["splits"]["val"]
    read = [manifest["source"], manifest["identity"], manifest["options"], split["documents"], split["bytes"]]
    return {
        "text_fingerprint": manifest.get("text_fingerprints", {}).get("val") or None,
        "text_source": hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest(),
        "validation_bytes": split["bytes"],
        "validation_tokens": split["tokens"],
    }


def _of_mix(values: list[Any]) -> Any:
    """Return the sum of sizes, or one hash for several; None if one of them is missing."""
    if None in values:
        return None
    return sum(values) if isinstance(values[0], int) else hashlib.sha256(" ".join(values).encode()).hexdigest()


def open_corpus(folder: str | Path) -> Corpus:
    """Open a finished folder. Checks headers and sizes; `verify` checks contents.

    Raises UserError with one line for each file that does not match the manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    problems = [problem for shard in manifest["shards"] if (problem := _shard_problem(folder, shard, tokenizer))]
    known = manifest["tokenizer"]
    if (tokenizer.fingerprint, tokenizer.name) != (known["fingerprint"], known["name"]):
        problems.append(f"{folder / TOKENIZER}: not the tokenizer that made the shards; {prepare_again_hint(folder)}")
    if problems:
        raise UserError(*problems)
    splits = {split: _open_split(folder, split, manifest, tokenizer) for split in SPLITS}
    sources, fingerprint = manifest["sources"], manifest["fingerprint"]
    return Corpus(folder, splits["train"], splits["val"], sources, fingerprint, tokenizer, manifest)


def _open_split(folder: Path, name: str, manifest: dict[str, Any], tokenizer: Tokenizer) -> Split:
    dtype = token_dtype(tokenizer.dtype.itemsize)
    own = [(folder / shard["file"], shard) for shard in manifest["shards"] if shard["split"] == name]
    tokens = [np.memmap(path, dtype, "r", HEADER.size, shape=(shard["tokens"],)) for path, shard in own]
    tables = [_table(path, shard["documents"]) for path, shard in own]
    return Split(name, list(tokens), [t[:, 0] for t in tables], [t[:, 1] for t in tables], manifest["sources"])


def _table(shard: Path, documents: int) -> np.ndarray:
    """Return the memory-mapped document table of a shard, int64 (documents, 2). Raises ValueError for another shape or dtype."""
    path = documents_path(shard)
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        if shape != (documents, 2) or fortran_order or dtype != np.int64:
            raise ValueError(f"{path.name} is not a table of {documents} documents")
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


def _shard_problem(folder: Path, shard: dict[str, Any], tokenizer: Tokenizer) -> str | None:
    """Return what is wrong with a shard, or None, without reading its tokens."""
    path, hint = folder / shard["file"], prepare_again_hint(folder)
    expected = HEADER.size + shard["tokens"] * tokenizer.dtype.itemsize
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER.size)
        _table(path, shard["documents"])
    except Exception as error:  # numpy parses the header of a table as Python: a hostile one can raise anything
        return f"{path}: cannot be read ({type(error).__name__}: {error}); {hint}"
    if size != expected:
        return f"{path}: {size} bytes instead of {expected}; {hint}"
    if header != pack_header(tokenizer, shard["tokens"], shard["documents"]):
        return f"{path}: its header is not that of {shard['tokens']} {tokenizer.name} tokens; {hint}"
    if shard["largest_id"] >= tokenizer.n_vocab:
        return _id_problem(path, shard["largest_id"], tokenizer)
    return None


def _id_problem(path: Path, largest_id: int, tokenizer: Tokenizer) -> str:
    last = tokenizer.n_vocab - 1
    hint = prepare_again_hint(path.parent)
    return f"{path}: holds token id {largest_id}, but the last id of {tokenizer.name} is {last}; {hint}"


def _all_below(values: np.ndarray, end: int) -> bool:
    """Return whether all values are in range(end)."""
    return bool(values.min(initial=0) >= 0 and values.max(initial=-1) < end)


def verify(folder: str | Path, workers: int | None = None) -> None:
    """Read every shard of a finished folder and compare hashes, at about 1 GB/s per core.

    Raises UserError with one line for each shard that is missing, truncated or changed.
    """
    folder = Path(folder)
    corpus = open_corpus(folder)
    n_vocab, itemsize = corpus.tokenizer.n_vocab, corpus.tokenizer.dtype.itemsize
    hint = prepare_again_hint(folder)

    def content_problem(shard: dict[str, Any]) -> str | None:
        path = folder / shard["file"]
        check = read_shard(path, itemsize)
        if check.largest_id >= n_vocab:
            return _id_problem(path, check.largest_id, corpus.tokenizer)
        if check.hash != shard["hash"]:
            return f"{path}: its content has changed since it was written; {hint}"
        starts, sources = _table(path, shard["documents"]).T
        if not (_all_below(starts, shard["tokens"]) and _all_below(sources, len(corpus.sources))):
            return f"{documents_path(path)}: refers to tokens or sources that do not exist; {hint}"
        return None

    shards = corpus.manifest["shards"]
    pool = ThreadPoolExecutor(workers or usable_cores())
    try:
        problems = [problem for problem in pool.map(content_problem, shards) if problem]
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the remaining shards
    if corpus_fingerprint(shards, corpus.tokenizer.fingerprint) != corpus.fingerprint:
        problems.append(f"{folder / MANIFEST}: its fingerprint does not match its shards; {hint}")
    if problems:
        raise UserError(*problems)
