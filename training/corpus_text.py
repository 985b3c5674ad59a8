"""What a plan depends on in the corpus: its size, vocabulary and fingerprint, whether it is prepared or not. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from budget.laws.published import LOCAL
from budget.planner.messages import REPEAT_WARNING
from budget.planner.plan import Plan
from common.format import format_count
from config import Config, DataConfig, mixed_sources

if TYPE_CHECKING:
    from data.shards import Corpus
    from data.sources.base import DataSpec
    from data.tokenizers.tokenizer import Tokenizer
    from training.initial_model import InitialModel


@dataclass(frozen=True)
class Text:
    """What a plan depends on in the corpus.

    Attributes:
        n_vocab: Number of token ids; None if the tokenizer's file was not loaded.
        tokenizer: Name of the tokenizer.
        train_tokens: Training tokens of one epoch; of a mix, that of its most repeated source. None if not known.
        size_source: Where that number is from, as `Request.corpus_source`.
        fingerprint: Fingerprint of the prepared corpus; None if it is not prepared.
        most_repeated: The source of a mix that determines `train_tokens`; None without a mix.
    """

    n_vocab: int | None
    tokenizer: str
    train_tokens: float | None
    fingerprint: str | None = None
    size_source: str = "unknown"
    most_repeated: str | None = None


def spec_of(config: Config) -> DataSpec:
    """The options data.* as data.corpus takes them."""
    from data.sources.base import MixedSource

    data = config.data
    total = sum(entry["weight"] for entry in data.mix.values())
    mix = tuple(
        MixedSource(name, data.mix[name]["weight"] / total, _spec_of(own)) for name, own in mixed_sources(data).items()
    )
    return replace(_spec_of(data), mix=mix)


def _spec_of(data: DataConfig) -> DataSpec:
    from data.sources.base import DataSpec
    from data.sources.hub import without_foreign_preset

    return without_foreign_preset(DataSpec(**{**asdict(data), "fallbacks": tuple(data.fallbacks), "mix": ()}))


def text_of(corpus: Corpus) -> Text:
    """What a plan depends on in an open corpus."""
    tokenizer, repeated = corpus.tokenizer, corpus.train.most_repeated
    name = None if repeated is None else repeated.name
    return Text(tokenizer.n_vocab, tokenizer.name, corpus.train.epoch_tokens, corpus.fingerprint, "prepared", name)


def prepared_text(config: Config, n_vocab: int | None, tokenizer: Tokenizer | None = None) -> Text:
    """What a plan depends on in the corpus that the options name, as far as it is known without preparing it.

    `tokenizer` is that of the initial model, if any.
    """
    from data.corpus_size import CorpusSize, corpus_size
    from data.tokenizers.tokenizer import short_name

    spec, given = spec_of(config), config.plan.corpus_tokens
    text = Text(n_vocab, short_name(config.data.tokenizer), None)
    if config.data.mix:
        text = _prepared_mix_text(text, spec, tokenizer)
    else:
        from data.corpus import corpus_fingerprint_of

        size = corpus_size(spec, tokenizer) if given is None else CorpusSize(given, "fixed")
        fingerprint = corpus_fingerprint_of(spec, tokenizer) if config.law == LOCAL else None
        text = replace(text, train_tokens=size.tokens, size_source=size.source, fingerprint=fingerprint)
    return text if given is None else replace(text, train_tokens=given, size_source="fixed", most_repeated=None)


def _prepared_mix_text(text: Text, spec: DataSpec, tokenizer: Tokenizer | None) -> Text:
    from data.mix import prepared_mix

    if (mix := prepared_mix(spec, tokenizer)) is None:
        return _estimated_mix_text(text, spec, tokenizer)
    repeated = min(mix.components, key=lambda component: component.epoch_tokens)
    return replace(
        text,
        train_tokens=repeated.epoch_tokens,
        size_source="prepared",
        fingerprint=mix.fingerprint,
        most_repeated=repeated.name,
    )


def _estimated_mix_text(text: Text, spec: DataSpec, tokenizer: Tokenizer | None) -> Text:
    """The size of a mix that is not prepared, from the sizes of its sources; unknown if that of one of them is."""
    from data.corpus_size import corpus_size

    sizes = {each.name: corpus_size(each.spec, tokenizer) for each in spec.mix}
    epochs = {each.name: tokens / each.weight for each in spec.mix if (tokens := sizes[each.name].tokens) is not None}
    if len(epochs) < len(sizes):
        return text
    repeated = min(epochs, key=lambda name: epochs[name])
    return replace(text, train_tokens=epochs[repeated], size_source=sizes[repeated].source, most_repeated=repeated)


def size_notes(config: Config, plan: Plan) -> list[str]:
    """Notes of a plan for a corpus that is not prepared, about its size."""
    from data.corpus_size import bytes_for
    from data.sources.hub import SLIMPAJAMA_6B, SLIMPAJAMA_627B

    data, epochs = config.data, plan.epochs
    if epochs is None:
        return [
            "the size of the corpus is not known before it is prepared, so its epochs are not; set plan.corpus_tokens=N"
        ]
    if data.source == "stdlib" and plan.source["corpus"] != "fixed" and epochs > REPEAT_WARNING:
        return [
            f"{epochs:,.0f} epochs of the {format_count(plan.corpus_tokens or 0)}-token default corpus only show that"
            " everything works; data=slimpajama plans for 5.9B tokens"
        ]
    size = bytes_for(plan.tokens, data.tokenizer)
    if data.source == "slimpajama" and not data.path and data.repo == SLIMPAJAMA_6B and epochs > 1 and size:
        return [
            f"{epochs:.1f} epochs of SlimPajama's 6B sample; for the original with 627B tokens: data=slimpajama"
            f" data.repo={SLIMPAJAMA_627B} data.max_bytes={math.ceil(1.1e-9 * size)}GB"
        ]
    return []


def vocab_size_for(config: Config, initial: InitialModel | None) -> int | None:
    """The vocabulary size of data.tokenizer, or of the initial model's tokenizer; None if it is not known without a file.

    Raises UserError for a name that is not a tokenizer.
    """
    from data.tokenizers.tokenizer import check_name, vocab_size_of

    if initial is not None:
        return initial.tokenizer.n_vocab
    check_name(config.data.tokenizer)
    return vocab_size_of(config.data.tokenizer)
