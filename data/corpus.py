"""Loads the corpus that a run trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data.mix import join, mix_tokenizer
from data.prepare import prepare
from data.record import read_notes
from data.shards import Corpus, open_corpus
from data.sources.base import DataSpec
from data.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedCorpus:
    """An open corpus, whether this call prepared any of it, and notes for the user about its content, one line each."""

    corpus: Corpus
    fresh: bool
    notes: tuple[str, ...]


def load_corpus(spec: DataSpec, log: Callable[[str], None] = print) -> LoadedCorpus:
    """Prepare the corpus that `spec` describes, or find it prepared, and open it. Raises like `data.prepare.prepare`."""
    if not spec.mix:
        return _load_one(spec, log)
    tokenizer = mix_tokenizer(spec, log)
    loaded = [_load_one(each.spec, log, tokenizer) for each in spec.mix]
    notes = [f"{each.name}: {note}" for each, one in zip(spec.mix, loaded, strict=True) for note in one.notes]
    return LoadedCorpus(join(spec, [one.corpus for one in loaded]), any(one.fresh for one in loaded), tuple(notes))


def _load_one(spec: DataSpec, log: Callable[[str], None], tokenizer: Tokenizer | None = None) -> LoadedCorpus:
    """Load a corpus that is no mix; `tokenizer` as for `data.prepare.prepare`."""
    prepared = prepare(spec, log=log, tokenizer=tokenizer)
    notes = read_notes(prepared.read)
    if left_out := ", ".join(f"{n:,} {reason}" for reason, n in prepared.left_out.items()):
        notes.append(f"documents left out: {left_out}")
    if prepared.cut:
        notes.append(f"stopped at data.max_bytes={spec.max_bytes:,} of text; data.max_bytes=null takes all of it")
    return LoadedCorpus(open_corpus(prepared.folder), prepared.fresh, tuple(notes))
