"""Loads the corpus that a run trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from data import prepare
from data.shards import Corpus, open_corpus
from data.sources.base import DataSpec
from data.token_files import checked_fingerprint, open_token_files


@dataclass(frozen=True)
class LoadedCorpus:
    """An open corpus, whether this call prepared it, and notes for the user about its content, one line each."""

    corpus: Corpus
    fresh: bool
    notes: tuple[str, ...]


def load_corpus(spec: DataSpec, log: Callable[[str], None] = print) -> LoadedCorpus:
    """Prepare the corpus that `spec` describes, or find it prepared, and open it.

    Raises like `data.prepare.prepare` and `data.token_files.open_token_files`.
    """
    loaded = LoadedCorpus(*open_token_files(spec, log)) if spec.source == "tokens" else _prepared(spec, log)
    if loaded.corpus.tokenizer.exact:
        return loaded
    note = (
        f"data.tokenizer={loaded.corpus.tokenizer.name} does not keep all text (case, spaces or unknown characters), so bits"
        " per byte are approximate"
    )
    return replace(loaded, notes=(*loaded.notes, note))


def corpus_fingerprint_of(spec: DataSpec) -> str | None:
    """Return the fingerprint of the corpus that `spec` describes, or None if it has not been prepared."""
    return checked_fingerprint(spec) if spec.source == "tokens" else prepare.prepared_fingerprint(spec)


def _prepared(spec: DataSpec, log: Callable[[str], None]) -> LoadedCorpus:
    prepared = prepare.prepare(spec, log=log)
    notes = []
    if left_out := ", ".join(f"{n:,} {reason}" for reason, n in prepared.left_out.items()):
        notes.append(f"documents left out: {left_out}")
    if prepared.cut:
        notes.append(f"stopped at data.max_bytes={spec.max_bytes:,} of text; data.max_bytes=null takes all of it")
    return LoadedCorpus(open_corpus(prepared.folder), prepared.fresh, tuple(notes))
