"""Which training text a BPE tokenizer is trained on: a bounded, deterministic sample from all over the corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from data.documents import Document
from data.sources.base import Part, Source, split_of
from data.tokenizer import valid_text

# 32 MB is plenty for tens of thousands of merges, and training BPE takes a large multiple of its text in memory
# (huggingface/tokenizers#1345), the more so the longer the texts are.
SAMPLE_BYTES = 32 << 20
PIECE_CHARACTERS = 10_000
# At most about this many times the sample is read for it, from at least this many parts (or all there are).
READ_FACTOR = 8
FEWEST_PARTS = 64
# Text in a compressed byte, roughly: zstd and parquet files of web text.
EXPANSION = 3


def digest_of(raw: bytes) -> bytes:
    """16 bytes that stand for a text, given as UTF-8: equal texts are duplicates, and it decides the split.

    SHA-256 because processors have instructions for it: it is over twice as fast here as BLAKE2.
    """
    return hashlib.sha256(raw).digest()[:16]


def split_and_digest(document: Document, raw: bytes, validation_fraction: float) -> tuple[str, bytes]:
    """The split a document belongs to, and the digest of its text; `raw` is `valid_text` of that, as UTF-8."""
    digest = digest_of(raw)
    return document.split or split_of(digest, validation_fraction), digest


def sample_texts(source: Source, parts: list[Part], validation_fraction: float) -> Iterator[str]:
    """Pieces of training documents, SAMPLE_BYTES in all at most; never one of a validation document."""
    training = [part for part in parts if part.split != "val"]
    total = max(1, EXPANSION * sum(part.size for part in training))
    stride = max(1, min(total // (READ_FACTOR * SAMPLE_BYTES), len(training) // FEWEST_PARTS))
    chosen = training[::stride]
    size = max(1, sum(part.size for part in chosen))
    keep = max(1 / READ_FACTOR, min(1.0, SAMPLE_BYTES / (EXPANSION * size)))
    for part in chosen:
        left = -(-SAMPLE_BYTES * part.size // size)
        for piece in _pieces(source, part, validation_fraction, keep):
            left -= len(piece.encode())
            if left < 0:
                break
            yield piece


def _pieces(source: Source, part: Part, validation_fraction: float, keep: float) -> Iterator[str]:
    for document in source.documents(part):
        if document is None:
            continue
        text = valid_text(document.text)
        split, digest = split_and_digest(document, text.encode(), validation_fraction)
        if split == "val":
            continue
        for start in range(0, len(text), PIECE_CHARACTERS):
            lot = hashlib.blake2b(b"%d" % start, key=digest, digest_size=8).digest()
            if int.from_bytes(lot, "big") < keep * 2**64:
                yield text[start : start + PIECE_CHARACTERS]
