"""The text on which a BPE tokenizer is trained: a bounded, deterministic sample from all parts of the corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from data.sources.base import Part, Source
from data.splits import split_and_digest
from data.tokenizers.tokenizer import valid_text

# 32 MiB are enough for tens of thousands of merges. Training BPE needs many times the size of its text in memory
# (huggingface/tokenizers#1345), and more for longer texts, hence the pieces.
SAMPLE_BYTES = 32 << 20
PIECE_CHARACTERS = 10_000
READ_FACTOR = 8  # at most about so many times SAMPLE_BYTES are read
FEWEST_PARTS = 64  # parts to sample from, if the corpus has so many
EXPANSION = 3  # bytes of text per byte of a compressed file, roughly: zstd and parquet files of web text


def sample_texts(source: Source, parts: list[Part], validation_fraction: float, share: float = 1.0) -> Iterator[str]:
    """Yield pieces of training documents, at most `share` of SAMPLE_BYTES in all; validation documents are never used."""
    sample_bytes = max(1, round(share * SAMPLE_BYTES))
    training = [part for part in parts if part.split != "val"]
    total = max(1, EXPANSION * sum(part.size for part in training))
    stride = max(1, min(total // (READ_FACTOR * sample_bytes), len(training) // FEWEST_PARTS))
    chosen = training[::stride]
    size = max(1, sum(part.size for part in chosen))
    keep = max(1 / READ_FACTOR, min(1.0, sample_bytes / (EXPANSION * size)))
    for part in chosen:
        left = -(-sample_bytes * part.size // size)
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
