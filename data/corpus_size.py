"""The number of training tokens of a corpus before it is prepared: from its manifest, a table, or the size of its text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.prepare import prepared_manifest
from data.sources.base import DataSpec
from data.sources.hub import SLIMPAJAMA_6B, SLIMPAJAMA_627B, SLIMPAJAMA_627B_COPY
from data.sources.registry import make_source
from data.token_files import find_token_files
from data.tokenizers.tokenizer import Tokenizer, is_trained, vocab_size_of


@dataclass(frozen=True)
class CorpusSize:
    """The training tokens of a corpus, None if they are unknown, and where the number is from.

    Attributes:
        source: prepared (its manifest) | known (published or counted) | estimate (from bytes of text) | unknown.
    """

    tokens: float | None
    source: str


UNKNOWN = CorpusSize(None, "unknown")


@dataclass(frozen=True)
class Compression:
    """Bytes of text per token: of tokenizers by name, and of bpe-N at some N, between which it is interpolated."""

    by_name: dict[str, float]
    by_size: dict[int, float]

    def bytes_per_token(self, tokenizer: str) -> float | None:
        """Return the bytes per token of a tokenizer; None if it was not measured."""
        if is_trained(tokenizer):
            sizes, ratios = np.log(list(self.by_size)), list(self.by_size.values())
            return float(np.interp(math.log(vocab_size_of(tokenizer) or 1), sizes, ratios))
        return self.by_name.get(tokenizer)


# SlimPajama: GPT-2's from the sizes below; those of bpe-N as measured on 20 MB of it, relative to GPT-2's; those of later
# published tokenizers are about a tenth above GPT-2's. Other text may differ by a third.
ENGLISH = Compression(
    {"bytes": 1.0, "gpt2": 4.025, "r50k_base": 4.025, "p50k_base": 4.025, "p50k_edit": 4.025}
    | {"cl100k_base": 4.4, "o200k_base": 4.5, "o200k_harmony": 4.5},
    {512: 2.2, 4096: 3.5, 16384: 4.2, 32768: 4.4},
)
# Measured on Python 3.11. GPT-2's vocabulary has no runs of spaces.
PYTHON = Compression({"bytes": 1.0, "gpt2": 2.08, "r50k_base": 2.08}, {512: 2.08, 4096: 3.35, 16384: 3.82, 32768: 3.93})

# Training text of data sets on the Hub, bytes in UTF-8. SlimPajama-6B: the card says 23,918,118,724 bytes in 5,489,000 rows,
# of which about 30 per row are other columns, and "roughly 6B tokens"; with GPT-2's tokenizer about 5.9B. SlimPajama-627B: as
# many tokens as its name says, at the same bytes per token.
HUB_BYTES = {
    SLIMPAJAMA_6B: 23.75e9,
    SLIMPAJAMA_627B: 627e9 * 4.025,
    SLIMPAJAMA_627B_COPY: 627e9 * 4.025,
}
COUNTED = ("gpt2", "r50k_base")  # tokenizers whose number of tokens in these data sets is known, not estimated
# Files whose size is about that of their text; compressed ones are not.
PLAIN = ("", ".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")


def corpus_size(spec: DataSpec, tokenizer: Tokenizer | None = None) -> CorpusSize:
    """Return the size of the corpus that `spec` describes. It reads no text and needs no network.

    `tokenizer` is used instead of one that would be trained on the text, if given.

    It is unknown for text that cannot be found, because a plan may be for another machine.
    """
    if spec.source == "tokens":
        return _token_files_size(spec)
    manifest = prepared_manifest(spec, tokenizer)
    if manifest is not None:
        return CorpusSize(manifest["splits"]["train"]["tokens"], "prepared")
    return SIZES.get(spec.source, _no_size)(spec)


def _no_size(spec: DataSpec) -> CorpusSize:
    return UNKNOWN


def _stdlib_size(spec: DataSpec) -> CorpusSize:
    size = sum(part.size for part in make_source(spec).parts())
    return _estimated((1 - spec.validation_fraction) * size, spec, PYTHON)


def _hub_size(spec: DataSpec) -> CorpusSize:
    if spec.path:
        return _files_size(spec)
    size = HUB_BYTES.get(spec.repo or SLIMPAJAMA_6B)
    if size is None or spec.config or spec.split != "train":
        return UNKNOWN
    found = _estimated(size, spec, ENGLISH)
    return CorpusSize(found.tokens, "known") if spec.tokenizer in COUNTED else found


def _files_size(spec: DataSpec) -> CorpusSize:
    try:
        parts = [part for part in make_source(spec).parts() if part.split != "val"]
    except (UserError, OSError):
        return UNKNOWN
    if any(part.path is None or Path(part.path).suffix.lower() not in PLAIN for part in parts):
        return UNKNOWN
    shares = [1.0 if part.split else 1 - spec.validation_fraction for part in parts]
    return _estimated(sum(share * part.size for share, part in zip(shares, parts, strict=True)), spec, ENGLISH)


def _token_files_size(spec: DataSpec) -> CorpusSize:
    try:
        sections = find_token_files(spec).sections
    except (UserError, OSError):
        return UNKNOWN
    return CorpusSize(sum(each.stop - each.start for each in sections if each.split == "train"), "known")


def _estimated(size: float, spec: DataSpec, compression: Compression) -> CorpusSize:
    """Return the size of `size` bytes of training text, or of data.max_bytes if that is less."""
    ratio = compression.bytes_per_token(spec.tokenizer)
    size = min(size, spec.max_bytes or math.inf)
    return CorpusSize(float(round(size / ratio)), "estimate") if ratio and size else UNKNOWN


def bytes_for(tokens: float, tokenizer: str) -> float | None:
    """Return about how many bytes of English text give `tokens` tokens; None for a tokenizer that was not measured."""
    ratio = ENGLISH.bytes_per_token(tokenizer)
    return tokens * ratio if ratio else None


SIZES: dict[str, Callable[[DataSpec], CorpusSize]] = {
    "stdlib": _stdlib_size,
    "slimpajama": _hub_size,
    "hub": _hub_size,
    "text": _files_size,
}
