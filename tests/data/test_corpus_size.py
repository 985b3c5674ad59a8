"""The size of a corpus before it is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.corpus_size import CorpusSize, bytes_for, corpus_size
from data.sources.base import DataSpec
from data.sources.hub import SLIMPAJAMA_627B
from tests.data.helpers import make, texts, write_jsonl


def size_of(tmp_path: Path, **options: Any) -> CorpusSize:
    given = {"source": "text", "tokenizer": "bytes", "validation_fraction": 0.1, **options}
    return corpus_size(DataSpec(cache_dir=str(tmp_path / "prepared"), **given))


def test_files_are_estimated_until_they_are_prepared(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts(200)):
        (folder / f"{number}.txt").write_text(text)
    estimate = size_of(tmp_path, path=str(folder))
    assert estimate.source == "estimate"
    tokens = make(tmp_path, folder).manifest["splits"]["train"]["tokens"]
    assert estimate.tokens == pytest.approx(tokens, rel=0.1)
    assert size_of(tmp_path, path=str(folder)) == CorpusSize(tokens, "prepared")


def test_a_file_is_split_as_in_training(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line\n" * 1000)
    assert size_of(tmp_path, path=str(tmp_path / "a.txt"), validation_fraction=0.5) == CorpusSize(3500.0, "estimate")


@pytest.mark.parametrize("name", ["nowhere.txt", "small.jsonl.zst"])
def test_text_that_is_compressed_or_elsewhere_has_no_known_size(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "small.jsonl.zst", texts(5))
    assert size_of(tmp_path, path=str(tmp_path / name)) == CorpusSize(None, "unknown")


def test_slimpajamas_sizes_are_those_of_its_card(tmp_path: Path) -> None:
    """The card: 23.9 GB in 5.489 million rows, "roughly 6B tokens"; the original has 627B in "over 2TBs"."""
    pajama = {"source": "slimpajama", "tokenizer": "gpt2"}
    sample = size_of(tmp_path, **pajama, max_bytes=25_000_000_000)
    assert (sample.source, sample.tokens) == ("known", pytest.approx(5.9e9, rel=0.01))
    text = size_of(tmp_path, **pajama | {"tokenizer": "bytes"})
    assert (text.source, text.tokens) == ("estimate", pytest.approx(23.75e9, rel=0.01))
    assert (bytes_for(5.9e9, "gpt2") or 0.0) == pytest.approx(23.75e9, rel=0.01)
    original = size_of(tmp_path, **pajama, repo=SLIMPAJAMA_627B)
    assert original.tokens == pytest.approx(627e9)
    limited = size_of(tmp_path, **pajama, repo=SLIMPAJAMA_627B, max_bytes=40_250_000_000)
    assert limited.tokens == pytest.approx(1e10)
    assert size_of(tmp_path, **pajama, repo="somebody/else") == CorpusSize(None, "unknown")


def test_the_standard_library_is_counted_as_it_is_on_this_machine(tmp_path: Path) -> None:
    """bench/results/make_train.json: 0.42 epochs of it were 3.97M tokens on Python 3.11. Other versions differ somewhat."""
    size = size_of(tmp_path, source="stdlib", tokenizer="bpe-4096", validation_fraction=0.03)
    assert (size.source, size.tokens) == ("estimate", pytest.approx(3.97e6 / 0.42, rel=0.15))
