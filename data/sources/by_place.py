"""Splits a corpus of too few documents by place: its last bytes are the validation text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from data.documents import Document
from data.sources.base import DataSpec, Overview, Part, Source
from data.splits import cut_position, digest_of, split_of
from data.tokenizers.tokenizer import valid_text

# So many documents are enough for a hash to give both splits, unless the fraction is tiny.
MOST_DOCUMENTS = 100_000


@dataclass(frozen=True)
class _Place:
    """A new document: its part and record (from 1), the size of its text in UTF-8 bytes, and the digest of its text."""

    part: int
    record: int
    size: int
    digest: bytes

    @property
    def position(self) -> tuple[int, int]:
        return self.part, self.record


class PlacedSource:
    """A source without splits whose documents before a byte position are training text, and those after it validation text.

    The document at that position is cut in two, at the start of a line if possible. It gives the documents up to
    `data.max_bytes` of text, and no others.
    """

    def __init__(self, source: Source, parts: list[Part], places: list[_Place], near: int, ends: bool) -> None:
        """`places` are the distinct documents in order, and the cut is at about byte `near` of their text.

        With `ends`, the source ends after the last of them, because of `data.max_bytes`.
        """
        self._source, self._parts, self.in_bytes = source, parts, source.in_bytes
        self._index = {part: number for number, part in enumerate(parts)}
        self._end = places[-1].position if ends else None
        for place in places:
            if near < place.size:
                break
            near -= place.size
        self._border = place
        self._pieces = self._cut(near)
        self.identity: dict[str, Any] = {**source.identity, "cut": [*place.position, near]}

    @property
    def consumed(self) -> int:
        return self._source.consumed

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        return self._source.open(previous, log)

    def parts(self) -> list[Part]:
        return self._parts

    def overview(self) -> Overview:
        return replace(self._source.overview(), validation="end of the text")

    def documents(self, part: Part) -> Iterator[Document | None]:
        index = self._index[part]
        for record, document in enumerate(self._source.documents(part), start=1):
            place = index, record
            if self._end and place > self._end:
                return
            if document is None:
                yield None
            elif place == self._border.position:
                yield from self._pieces
            elif place < self._border.position:
                yield replace(document, split="train")
            elif digest_of(valid_text(document.text).encode()) == self._border.digest:
                yield self._pieces[-1]  # a duplicate of the document that is cut, which is dropped as one
            else:
                yield replace(document, split="val")

    def _cut(self, near: int) -> list[Document]:
        """Return the training and the validation piece of the document at the border, without empty ones."""
        documents = self._source.documents(self._parts[self._border.part])
        document = next(each for record, each in enumerate(documents, start=1) if record == self._border.record)
        assert document is not None
        raw = valid_text(document.text).encode()
        cut = cut_position(lambda start, n: raw[start : start + n], near, len(raw)) if near else 0
        pieces = {"train": raw[:cut], "val": raw[cut:]}
        return [replace(document, text=piece.decode(), split=split) for split, piece in pieces.items() if piece]


def split_by_place(spec: DataSpec, source: Source, parts: list[Part]) -> PlacedSource | None:
    """Return the source split by place if its documents have no split and are too few for their hashes to give both.

    It reads documents until there is one of each split, a few hundred as a rule. The result is the same each time.
    """
    if any(part.split for part in parts):
        return None
    places: list[_Place] = []
    splits: set[str] = set()
    total, ends = 0, False
    for place in _new_documents(source, parts):
        places.append(place)
        total += place.size
        splits.add(split_of(place.digest, spec.validation_fraction))
        if len(splits) == 2 or len(places) == MOST_DOCUMENTS:
            return None
        ends = spec.max_bytes is not None and total >= spec.max_bytes
        if ends:
            break
    near = total - max(1, round(total * spec.validation_fraction))
    return PlacedSource(source, parts, places, near, ends) if places else None


def _new_documents(source: Source, parts: list[Part]) -> Iterator[_Place]:
    """Yield the place of each document that is neither empty nor a duplicate."""
    seen: set[bytes] = set()
    for number, part in enumerate(parts):
        for record, document in enumerate(source.documents(part), start=1):
            raw = valid_text(document.text).encode() if document else b""
            if raw and (digest := digest_of(raw)) not in seen:
                seen.add(digest)
                yield _Place(number, record, len(raw), digest)
