"""Which documents of a corpus are held out for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from data.documents import Document

# Usual names of a corpus' own splits, each in order of preference. The names of the splits in a prepared corpus are
# "train" and "val".
TRAIN_NAMES = ("train",)
VALIDATION_NAMES = ("validation", "val", "valid", "dev", "test")


def digest_of(raw: bytes) -> bytes:
    """Return a digest of 16 bytes of a text in UTF-8, which identifies duplicates and decides the split.

    SHA-256 is faster than BLAKE2 on processors with instructions for it.
    """
    return hashlib.sha256(raw).digest()[:16]


def split_of(digest: bytes, validation_fraction: float) -> str:
    """Return "train" or "val" by the hash of a text, so that the split of a document does not depend on other documents."""
    return "val" if int.from_bytes(digest[:8], "big") < validation_fraction * 2**64 else "train"


def chained(fingerprint: str, digests: Iterable[bytes]) -> str:
    """Return the fingerprint of a text that is extended by documents with these digests; that of an empty text is "".

    It depends on the documents and their order, and not on their tokens.
    """
    for digest in digests:
        fingerprint = hashlib.sha256(fingerprint.encode() + digest).hexdigest()
    return fingerprint


def split_and_digest(document: Document, raw: bytes, validation_fraction: float) -> tuple[str, bytes]:
    """Return the split of a document and the digest of its text; `raw` is its `valid_text` in UTF-8."""
    digest = digest_of(raw)
    return document.split or split_of(digest, validation_fraction), digest
