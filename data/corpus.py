"""Loads the corpus that a run trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.format import format_bytes
from data.prepare import prepare
from data.shards import Corpus, open_corpus
from data.sources.base import DataSpec


@dataclass(frozen=True)
class LoadedCorpus:
    """An open corpus, whether this call prepared it, and notes for the user about its content, one line each."""

    corpus: Corpus
    fresh: bool
    notes: tuple[str, ...]


def load_corpus(spec: DataSpec, log: Callable[[str], None] = print) -> LoadedCorpus:
    """Prepare the corpus that `spec` describes, or find it prepared, and open it. Raises like `data.prepare.prepare`."""
    prepared = prepare(spec, log=log)
    notes = []
    if left_out := ", ".join(f"{n:,} {reason}" for reason, n in prepared.left_out.items()):
        notes.append(f"documents left out: {left_out}")
    if prepared.cut and spec.max_bytes is not None:
        notes.append(
            f"stopped at data.max_bytes={format_bytes(spec.max_bytes)} of text; data.max_bytes=null takes all of it"
        )
    return LoadedCorpus(open_corpus(prepared.folder), prepared.fresh, tuple(notes))
