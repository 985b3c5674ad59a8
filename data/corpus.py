"""Loads the corpus that a run trains on: a prepared one, a mix of several, or token files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from common.errors import UserError
from common.format import format_bytes
from common.json_io import mapping
from data.mix import join, mix_tokenizer
from data.prepare import prepare, prepared_fingerprint
from data.record import read_notes
from data.shards import Corpus, open_corpus
from data.sources.base import DataSpec
from data.token_files import checked_fingerprint, open_token_files
from data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedCorpus:
    """An open corpus, whether this call prepared any of it, and notes for the user about its content, one line each."""

    corpus: Corpus
    fresh: bool
    notes: tuple[str, ...]


def load_corpus(spec: DataSpec, log: Callable[[str], None] = print, tokenizer: Tokenizer | None = None) -> LoadedCorpus:
    """Prepare the corpus that `spec` describes, or find it prepared, and open it.

    Its ids are those of `tokenizer`, if given. Raises like `data.prepare.prepare` and `data.token_files.open_token_files`,
    and UserError if the text cannot have the given tokenizer.
    """
    loaded = _load_mix(spec, log, tokenizer) if spec.mix else _load_one(spec, log, tokenizer)
    used = loaded.corpus.tokenizer
    if tokenizer is not None and used.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the initial model has the tokenizer {tokenizer.name}, but the corpus has {used.name}; give text instead of token"
            " files, or restore the model's tokenizer.json from a copy"
        )
    if used.exact:
        return loaded
    note = (
        f"data.tokenizer={used.name} does not keep all text (case, spaces or unknown characters), so bits per byte are"
        " approximate"
    )
    return replace(loaded, notes=(*loaded.notes, note))


def corpus_fingerprint_of(spec: DataSpec, tokenizer: Tokenizer | None = None) -> str | None:
    """Return the fingerprint of a single corpus, not a mix, or None if it has not been prepared; `tokenizer` as above."""
    find = checked_fingerprint if spec.source == "tokens" else prepared_fingerprint
    return find(spec, tokenizer)


def _load_mix(spec: DataSpec, log: Callable[[str], None], tokenizer: Tokenizer | None) -> LoadedCorpus:
    tokenizer = tokenizer or mix_tokenizer(spec, log)
    loaded = [_load_one(each.spec, log, tokenizer) for each in spec.mix]
    notes = [f"{each.name}: {note}" for each, one in zip(spec.mix, loaded, strict=True) for note in one.notes]
    return LoadedCorpus(join(spec, [one.corpus for one in loaded]), any(one.fresh for one in loaded), tuple(notes))


def _load_one(spec: DataSpec, log: Callable[[str], None], tokenizer: Tokenizer | None = None) -> LoadedCorpus:
    """Load a single corpus; `tokenizer` as for `data.prepare.prepare`."""
    if spec.source == "tokens":
        return LoadedCorpus(*open_token_files(spec, log, tokenizer))
    prepared = prepare(spec, log=log, tokenizer=tokenizer)
    notes = read_notes(mapping(prepared.manifest.get("read")))
    if left_out := ", ".join(f"{n:,} {reason}" for reason, n in prepared.left_out.items()):
        notes.append(f"documents left out: {left_out}")
    if prepared.cut and spec.max_bytes is not None:
        notes.append(
            f"stopped at data.max_bytes={format_bytes(spec.max_bytes)} of text; data.max_bytes=null takes all of it"
        )
    corpus = replace(open_corpus(prepared.folder), manifest=prepared.manifest)
    return LoadedCorpus(corpus, prepared.fresh, tuple(notes))
