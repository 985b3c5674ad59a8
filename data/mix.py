"""Several corpora as one: the training tokens are drawn from each source by its weight (data.loader).

Every source is prepared as a corpus of its own. A tokenizer trained on the text ("bpe-N") is trained once on a sample of all
sources. The validation split holds all validation tokens of all sources, whatever the weights, so that different mixes of the
same sources are scored on the same text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from data.cache import disk_errors
from data.prepare import prepared_manifest
from data.shards import Component, Corpus, Split
from data.sources.base import DataSpec, Source
from data.sources.by_place import split_by_place
from data.sources.registry import make_source
from data.tokenizers.sample import sample_texts
from data.tokenizers.tokenizer import Tokenizer, get_tokenizer, is_trained
from data.tokenizers.trained import sample_key, shared_tokenizer, tokenizer_place


def mix_tokenizer(spec: DataSpec, log: Callable[[str], None]) -> Tokenizer | None:
    """Return the tokenizer that is trained on the sources of a mix; None if its tokenizer does not depend on the text."""
    if not is_trained(spec.tokenizer):
        return None
    sources = [make_source(each.spec) for each in spec.mix]
    folder = Path(spec.cache_dir).expanduser() / "tokenizers"
    with disk_errors(folder):
        return shared_tokenizer(spec, lambda: _sample(spec, sources, log), _key(spec, sources), log)


def _key(spec: DataSpec, sources: Sequence[Source]) -> list[Any]:
    return [
        [each.weight, each.spec.max_bytes, *sample_key(each.spec, source)]
        for each, source in zip(spec.mix, sources, strict=True)
    ]


def _sample(spec: DataSpec, sources: Sequence[Source], log: Callable[[str], None]) -> Iterator[str]:
    """Yield pieces of the training text of all sources in proportion to their weights, at most about SAMPLE_BYTES.

    The source with the most text for its weight is read once; those with less are repeated, as in training.
    """
    samples: list[list[str]] = []
    for each, source in zip(spec.mix, sources, strict=True):
        source.open(None, log)
        parts = source.parts()
        training: Source = split_by_place(each.spec, source, parts) or source
        samples.append(list(sample_texts(training, parts, each.spec.validation_fraction, each.weight)))
    sizes = [sum(len(piece.encode()) for piece in pieces) for pieces in samples]
    total = max(size / each.weight for size, each in zip(sizes, spec.mix, strict=True))
    for each, pieces in zip(spec.mix, samples, strict=True):
        yield from _repeated(pieces, round(each.weight * total))


def _repeated(pieces: list[str], size: int) -> Iterator[str]:
    """Yield the pieces again and again, until they have about `size` bytes."""
    for piece in cycle(pieces):
        if size <= 0:
            break
        size -= len(piece.encode())
        yield piece


def join(spec: DataSpec, corpora: Sequence[Corpus]) -> Corpus:
    """Return the corpora of the sources of `spec.mix`, in their order, as one corpus. Nothing is copied.

    Raises UserError if they have different tokenizers.
    """
    first = corpora[0].tokenizer
    for each, corpus in zip(spec.mix, corpora, strict=True):
        if corpus.tokenizer.fingerprint != first.fingerprint:
            raise UserError(
                f"data.mix: the tokens of {each.name} are of {corpus.tokenizer.name}, those of {spec.mix[0].name} of"
                f" {first.name}; a mix has one tokenizer: leave one of them out"
            )
    names = [each.name for each in spec.mix]
    mix = tuple(
        Component(each.name, each.weight, len(corpus.train.shards), corpus.train.n_tokens, corpus.fingerprint)
        for each, corpus in zip(spec.mix, corpora, strict=True)
    )
    train = _joined("train", [corpus.train for corpus in corpora], names, mix)
    val = _joined("val", [corpus.val for corpus in corpora], names, ())
    manifest = {"mix": {name: corpus.manifest for name, corpus in zip(names, corpora, strict=True)}}
    return Corpus(Path(spec.cache_dir), train, val, names, _fingerprint(mix), first, manifest)


def _joined(name: str, splits: Sequence[Split], names: list[str], mix: tuple[Component, ...]) -> Split:
    """Return the splits one after the other; the source of a document is the number of its split."""
    owners = [np.broadcast_to(np.int64(i), starts.shape) for i, split in enumerate(splits) for starts in split.starts]
    shards = [shard for split in splits for shard in split.shards]
    return Split(name, shards, [starts for split in splits for starts in split.starts], owners, names, mix)


def _fingerprint(mix: tuple[Component, ...]) -> str:
    """Return the SHA-256 of the names, weights and fingerprints of the sources."""
    parts = [(each.name, each.weight, each.fingerprint) for each in mix]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class PreparedMix:
    """The fingerprint and the sources of a mix that has been prepared; its shards are not counted."""

    fingerprint: str
    components: tuple[Component, ...]


def prepared_mix(spec: DataSpec, tokenizer: Tokenizer | None = None) -> PreparedMix | None:
    """Return what is known of a mix, or None if one of its sources has not been prepared.

    `tokenizer` is the one that is used instead of a trained one, if any.
    """
    try:
        if tokenizer is None and is_trained(spec.tokenizer):
            place = tokenizer_place(spec, _key(spec, [make_source(each.spec) for each in spec.mix]))
            tokenizer = get_tokenizer(spec.tokenizer, None, *place)
    except UserError:
        return None
    manifests = [prepared_manifest(each.spec, tokenizer) for each in spec.mix]
    mix = tuple(
        Component(each.name, each.weight, 0, manifest["splits"]["train"]["tokens"], manifest["fingerprint"])
        for each, manifest in zip(spec.mix, manifests, strict=True)
        if manifest is not None
    )
    if len(mix) < len(spec.mix):
        return None
    return PreparedMix(_fingerprint(mix), mix)
