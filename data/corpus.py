"""Loads the corpus that a run trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.errors import UserError
from data.prepare import prepare
from data.shards import Corpus, open_corpus
from data.sources.base import DataSpec
from data.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedCorpus:
    """An open corpus, whether this call prepared it, and notes for the user about its content, one line each."""

    corpus: Corpus
    fresh: bool
    notes: tuple[str, ...]


def load_corpus(spec: DataSpec, log: Callable[[str], None] = print, tokenizer: Tokenizer | None = None) -> LoadedCorpus:
    """Prepare the corpus that `spec` describes, or find it prepared, and open it.

    Its ids are those of `tokenizer`, if given. Raises like `data.prepare.prepare`, and UserError if `tokenizer` has the name
    of a published one and is another.
    """
    prepared = prepare(spec, log=log, tokenizer=tokenizer)
    if tokenizer is not None and prepared.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the model's tokenizer is called {tokenizer.name}, but is not the published tokenizer of this name; restore"
            " its tokenizer.json from a copy"
        )
    notes = []
    if left_out := ", ".join(f"{n:,} {reason}" for reason, n in prepared.left_out.items()):
        notes.append(f"documents left out: {left_out}")
    if prepared.cut:
        notes.append(f"stopped at data.max_bytes={spec.max_bytes:,} of text; data.max_bytes=null takes all of it")
    return LoadedCorpus(open_corpus(prepared.folder), prepared.fresh, tuple(notes))
