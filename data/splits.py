"""Which documents of a corpus are held out for validation: by the names of files, by hash, or by place.

docs/input.md states the rule.
"""

from __future__ import annotations

import hashlib
import os.path
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from data.documents import Document
from data.files.find_files import stem_of

# Usual names of a corpus' own splits, each in order of preference. The names of the splits in a prepared corpus are
# "train" and "val".
TRAIN_NAMES = ("train",)
VALIDATION_NAMES = ("validation", "val", "valid", "dev", "test")
SPLIT_NAMES = TRAIN_NAMES + VALIDATION_NAMES
LONGEST_CUT_LINE = 1 << 20  # bytes in which the start of a line is searched for


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


def split_names(files: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the name of the split that each file belongs to by the names of its folders or its own; "" without one.

    A file is given as the parts of its path. A folder counts at the top, that is directly below the folder that holds all
    files, and deeper if a folder of training text and one of validation text lie side by side. A file's own name holds the
    name of a split as one of its words, and as the last one if there is no training split: corpus.dev.txt is a split of
    corpus.txt, but dev-guide.md is not.
    """
    top = len(PurePosixPath(os.path.commonpath(["/".join(file[:-1]) for file in files])).parts)
    beside: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in files:
        for depth in range(top, len(file) - 1):
            beside[file[:depth]].add(file[depth].lower())

    def pair_in(folder: tuple[str, ...]) -> bool:
        return all(not beside[folder].isdisjoint(names) for names in (TRAIN_NAMES, VALIDATION_NAMES))

    def by_folder(file: tuple[str, ...]) -> str:
        for depth in range(top, len(file) - 1):
            name = file[depth].lower()
            if name in SPLIT_NAMES and (depth == top or pair_in(file[:depth])):
                return name
        return ""

    folders = [by_folder(file) for file in files]
    words = [[] if folder else _words(file[-1]) for folder, file in zip(folders, files, strict=True)]
    names = [folder or _only_split(found) for folder, found in zip(folders, words, strict=True)]
    if not set(names).isdisjoint(TRAIN_NAMES):
        return names
    return [
        name if folder or found[-1:] == [name] else ""
        for name, folder, found in zip(names, folders, words, strict=True)
    ]


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return which of the split names of a corpus' files are "train" and which "val"; {} without a split of its own.

    Files of any other name are not read. Without training text of that name, files without a name are the training text; a
    lone "test" holds out nothing then, because folders of tests are common.
    """
    found = set(names)
    training = next((name for name in (*TRAIN_NAMES, "") if name in found), None)
    lone = ("test",) if training == "" else ()
    held_out = next((name for name in VALIDATION_NAMES if name in found and name not in lone), None)
    return {} if training is None or held_out is None else {held_out: "val", training: "train"}


def without_split(stem: str) -> str:
    """Return the stem of a file's name without the name of a split: "wiki" for "wiki-train"; it may be ""."""
    return re.sub(rf"(?:^|[._-])(?:{'|'.join(SPLIT_NAMES)})(?=[._\-\d]|$)", "", _bare(stem), flags=re.I).strip("._-")


def cut_position(read: Callable[[int, int], bytes], near: int, size: int) -> int:
    """Return where a text of `size` bytes is cut into training and validation text, about at byte `near`.

    That is the first start of a line at or after `near` or, without one in LONGEST_CUT_LINE, a start of a character; 0 for a
    text of one character. `read(start, n)` returns up to n bytes of the text from `start` on.
    """
    first = max(0, near - 4)  # a character of UTF-8 has at most four bytes
    window = read(first, 5 + LONGEST_CUT_LINE)
    line = first + window.find(b"\n", max(0, near - 1 - first)) + 1
    if max(near, 1) <= line < size:
        return line
    starts = [first + i for i, byte in enumerate(window[: near - first + 5]) if byte & 0xC0 != 0x80 and first + i]
    return next((start for start in starts if start >= near), starts[-1] if starts else 0)


def _words(file: str) -> list[str]:
    """Return the words of a file's name: ["wiki", "valid"] for "wiki.valid-00000-of-00002.jsonl.zst"."""
    return [word for word in re.split(r"[._\-\d]+", _bare(stem_of(Path(file))).lower()) if word]


def _bare(stem: str) -> str:
    """Return a stem without the number of a shard that `stem_of` leaves: "train" for "train-00000-of"."""
    return re.sub(r"[._-]\d+-of$", "", stem)


def _only_split(words: list[str]) -> str:
    names = {word for word in words if word in SPLIT_NAMES}
    return names.pop() if len(names) == 1 else ""
