"""Tokenizers that are trained on a corpus ("bpe-N"): trained once for the same text, and shared by its prepared corpora."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.cache import locked, short_hash
from data.sources.base import DataSpec, Source
from data.tokenizers.tokenizer import Tokenizer, get_tokenizer, is_trained


def sample_key(spec: DataSpec, source: Source) -> list[Any]:
    """Return what determines the sample of a corpus; data.max_bytes does not."""
    return [spec.source, source.identity, spec.text_key, spec.validation_fraction, spec.bad_documents]


def shared_tokenizer(
    spec: DataSpec, texts: Callable[[], Iterator[str]], key: list[Any], log: Callable[[str], None]
) -> Tokenizer:
    """Return the tokenizer of `spec`. A trained one is saved below `spec.cache_dir` for the sample that `key` identifies."""

    def logged_texts() -> Iterator[str]:
        log(f"training {spec.tokenizer} on a sample of the training text")
        return texts()

    shared, short = tokenizer_place(spec, key)
    if not is_trained(spec.tokenizer):
        return get_tokenizer(spec.tokenizer, None, shared, short)
    with suppress(UserError):  # it is trained already; the folder may be read-only for this user
        return get_tokenizer(spec.tokenizer, None, shared, short)
    with locked(shared / short, log):
        return get_tokenizer(spec.tokenizer, logged_texts, shared, short)


def tokenizer_place(spec: DataSpec, key: list[Any]) -> tuple[Path, str]:
    """Return the folder of trained tokenizers, and the part of the file's name that identifies the sample."""
    return Path(spec.cache_dir).expanduser() / "tokenizers", short_hash(key)
