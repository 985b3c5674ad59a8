"""Several corpora as one: preparing, the shared tokenizer, the splits and the fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus import LoadedCorpus, load_corpus
from data.eval_windows import EvalRange
from data.mix import join, prepared_mix
from data.prepare import prepare
from data.sources.base import DataSpec, MixedSource
from data.tokenizers import sample as tokenizer_sample
from tests.data.helpers import make, refused, texts, write_jsonl


def spec_of(place: Path, weights: dict[str, float], **options: Any) -> DataSpec:
    """Return a mix of JSON lines in `place`, which are written if they are missing; weights add up to 1."""
    given: dict[str, Any] = {"tokenizer": "bytes", "validation_fraction": 0.1, "workers": 2}
    given |= {"cache_dir": str(place / "prepared"), **options}
    sources = []
    for name, weight in weights.items():
        path = place / f"{name}.jsonl"
        if not path.exists():
            write_jsonl(path, texts(60, seed=len(name), longest=80))
        sources.append(MixedSource(name, weight, DataSpec(source="text", path=str(path), **given)))
    return DataSpec(source="mix", mix=tuple(sources), **given)


def load(spec: DataSpec) -> tuple[LoadedCorpus, list[str]]:
    said: list[str] = []
    return load_corpus(spec, said.append), said


def tokens_of(shards: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(shards)


def test_the_splits_of_a_mix_are_those_of_its_sources(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"a": 0.9, "bb": 0.1})
    alone = [load(replace(each.spec, cache_dir=str(tmp_path / "alone")))[0].corpus for each in spec.mix]
    corpus = load(spec)[0].corpus
    for split in ("train", "val"):
        joined = tokens_of(getattr(corpus, split).shards)
        assert np.array_equal(joined, tokens_of([shard for one in alone for shard in getattr(one, split).shards]))
    assert corpus.sources == corpus.val.sources == ["a", "bb"]
    assert [(c.name, c.weight, c.tokens, c.fingerprint) for c in corpus.train.mix] == [
        (name, weight, one.train.n_tokens, one.fingerprint)
        for name, weight, one in zip(("a", "bb"), (0.9, 0.1), alone, strict=True)
    ]
    windows = EvalRange(corpus.val, 16)
    _, targets, sources = windows.windows(0, windows.n_windows)
    assert (targets != -1).sum() == corpus.val.n_tokens
    counts = np.bincount(sources[sources >= 0], minlength=2)
    assert counts.tolist() == [one.val.n_tokens for one in alone]


def test_mixes_of_the_same_sources_are_scored_on_the_same_text(tmp_path: Path) -> None:
    one, other = (load(spec_of(tmp_path, {"a": w, "bb": 1 - w}))[0].corpus for w in (0.5, 0.9))
    assert EvalRange(one.val, 16).fingerprint == EvalRange(other.val, 8).fingerprint
    assert one.fingerprint != other.fingerprint


def test_the_fingerprint_depends_on_names_weights_and_texts(tmp_path: Path) -> None:
    first = spec_of(tmp_path, {"a": 0.5, "bb": 0.5})
    assert load(first)[0].corpus.fingerprint == load(first)[0].corpus.fingerprint
    renamed = replace(first, mix=(replace(first.mix[0], name="c"), first.mix[1]))
    heavier = spec_of(tmp_path, {"a": 0.6, "bb": 0.4})
    other_text = spec_of(tmp_path, {"a": 0.5, "ccc": 0.5})
    seen = {load(spec)[0].corpus.fingerprint for spec in (first, renamed, heavier, other_text)}
    assert len(seen) == 4


def test_a_source_that_was_prepared_alone_is_found_again(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"a": 0.5, "bb": 0.5})
    for each in spec.mix:
        assert prepare(each.spec, progress=False, log=lambda line: None).fresh
    assert not load(spec)[0].fresh


def test_a_mix_has_one_tokenizer_trained_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [f"lalala lalala {i}" for i in range(200)])
    write_jsonl(tmp_path / "bb.jsonl", [f"momomo momomo {i}" for i in range(200)])
    spec = spec_of(tmp_path, {"a": 0.5, "bb": 0.5}, tokenizer="bpe-300")
    loaded, said = load(spec)
    assert sum(line.startswith("training bpe-300") for line in said) == 1
    tokenizer = loaded.corpus.tokenizer
    assert len(tokenizer.encode(" lalala")) < 7, "merges of the first source"
    assert len(tokenizer.encode(" momomo")) < 7, "and of the second"
    for part, text in zip(loaded.corpus.train.shards, ("lalala", "momomo"), strict=True):
        assert text in tokenizer.decode(part[:100])
    again, said = load(spec)
    assert (again.fresh, again.corpus.fingerprint, said) == (False, loaded.corpus.fingerprint, [])
    # Neither alone nor in another mix does a source have these tokens.
    folder = make(tmp_path, tmp_path / "a.jsonl", tokenizer="bpe-300").folder
    assert len(list((tmp_path / "prepared").glob("text-bpe-300-*/"))) == 3
    assert folder.name.startswith("text-bpe-300-")
    assert load(spec_of(tmp_path, {"a": 0.9, "bb": 0.1}, tokenizer="bpe-300"))[0].fresh


def test_the_sample_of_the_tokenizer_follows_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short source is repeated, as in training, and a long one is cut."""
    write_jsonl(tmp_path / "long.jsonl", ["l" * 1000 + f" {i}" for i in range(400)])
    write_jsonl(tmp_path / "short.jsonl", ["s" * 1000 + f" {i}" for i in range(30)])
    monkeypatch.setattr(tokenizer_sample, "SAMPLE_BYTES", 100_000)
    sampled: list[str] = []

    def train_bpe(name: str, pieces: Any) -> Any:
        sampled.extend(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr("data.tokenizers.tokenizer.train_bpe", train_bpe)
    with pytest.raises(KeyboardInterrupt):
        load(spec_of(tmp_path, {"long": 0.25, "short": 0.75}, tokenizer="bpe-300"))
    size = {letter: sum(len(piece) for piece in sampled if piece[0] == letter) for letter in "ls"}
    assert size["s"] / sum(size.values()) == pytest.approx(0.75, abs=0.03)
    assert sum(size.values()) < 110_000
    assert len({piece for piece in sampled if piece[0] == "s"}) <= 30


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-300"])
def test_a_prepared_mix_is_known_without_preparing_it(tmp_path: Path, tokenizer: str) -> None:
    spec = spec_of(tmp_path, {"a": 0.5, "bb": 0.5}, tokenizer=tokenizer)
    assert prepared_mix(spec) is None
    assert not (tmp_path / "prepared").exists()
    corpus = load(spec)[0].corpus
    known = prepared_mix(spec)
    assert known is not None
    assert known.fingerprint == corpus.fingerprint
    assert [(c.name, c.tokens) for c in known.components] == [(c.name, c.tokens) for c in corpus.train.mix]


def test_sources_with_different_tokenizers_are_refused(tmp_path: Path) -> None:
    one, other = spec_of(tmp_path, {"a": 0.5, "bb": 0.5}), spec_of(tmp_path, {"bb": 1.0}, tokenizer="bpe-300")
    corpora = [load(one.mix[0].spec)[0].corpus, load(other.mix[0].spec)[0].corpus]
    refused(lambda: join(one, corpora), "the tokens of bb are of bpe-300, those of a of bytes")


def test_notes_and_errors_name_the_source(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"a": 0.5, "bb": 0.5})
    notes = load(spec)[0].notes
    assert any(note.startswith("a: documents left out") for note in notes), notes
    missing = replace(spec.mix[0], spec=replace(spec.mix[0].spec, path=str(tmp_path / "gone.jsonl")))
    refused(lambda: load(replace(spec, mix=(missing, spec.mix[1]))), "gone.jsonl")
