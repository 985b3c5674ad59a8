"""Tests of token files, written as nanoGPT, modded-nanogpt, llm.c and build-nanogpt write them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import Config
from data import token_files as module
from data.corpus import LoadedCorpus, corpus_fingerprint_of, load_corpus
from data.eval_windows import EvalRange
from data.loader import Loader
from data.shards import Corpus
from data.sources.base import DataSpec
from data.tokenizers.tokenizer import Tokenizer, get_tokenizer
from tests.conftest import run_here
from tests.data.helpers import make, refused, texts, write_jsonl
from tests.data.test_hostile import HEADERS

BYTES = get_tokenizer("bytes", None, Path(), "")


def tokens_of(n: int, seed: int = 0) -> np.ndarray:
    """`n` documents as nanoGPT has them: every document ends with end-of-text."""
    ids = [np.append(BYTES.encode(text), BYTES.eot) for text in texts(n, seed, longest=30)]
    return np.concatenate(ids).astype(np.uint16)


def nanogpt(path: Path, tokens: np.ndarray) -> Path:
    """As data/openwebtext/prepare.py of nanoGPT: a memory-mapped array, filled in batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.memmap(path, dtype=np.uint16, mode="w+", shape=(len(tokens),))
    array[:] = tokens
    array.flush()
    return path


def modded(path: Path, tokens: np.ndarray, magic: int = 20240520, version: int = 1, **header: int) -> Path:
    """As write_datafile of data/fineweb.py in modded-nanogpt, and of llm.c for Llama 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = np.zeros(256, dtype=np.int32)
    head[0], head[1], head[2] = magic, version, header.get("count", len(tokens))
    with path.open("wb") as file:
        file.write(head.tobytes())
        file.write(tokens.astype(np.uint16 if magic == 20240520 else np.uint32).tobytes())
    return path


def npy(path: Path, tokens: np.ndarray) -> Path:
    """As fineweb.py of build-nanogpt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, tokens)
    return path


def spec(path: Path, **options: Any) -> DataSpec:
    place = path if path.is_dir() else path.parent
    given = {"tokenizer": "bytes", "cache_dir": str(place.parent / "prepared"), "workers": 2, **options}
    return DataSpec(source="tokens", path=str(path), **given)


def load(path: Path, **options: Any) -> LoadedCorpus:
    return load_corpus(spec(path, **options), log=lambda line: None)


def opened(path: Path, **options: Any) -> Corpus:
    return load(path, **options).corpus


def joined(corpus: Corpus, split: str) -> list[int]:
    return [int(token) for shard in getattr(corpus, split).shards for token in shard]


def test_files_of_nanogpt_are_read_where_they_lie(tmp_path: Path) -> None:
    train, val = tokens_of(100), tokens_of(20, seed=1)
    nanogpt(tmp_path / "data" / "train.bin", train)
    nanogpt(tmp_path / "data" / "val.bin", val)
    corpus = opened(tmp_path / "data")
    assert joined(corpus, "train") == train.tolist()
    assert joined(corpus, "val") == val.tolist()
    assert all(isinstance(shard, np.memmap) for shard in corpus.train.shards)
    assert sum(file.stat().st_size for file in corpus.folder.glob("*")) < 20_000
    # The windows of an epoch are the slices of the array.
    loader = Loader(corpus.train, 16, 4, 7)
    steps = -(-loader.n_windows // 4)
    rows = [row for step in range(steps) for row in loader.batch(step).inputs.tolist()][: loader.n_windows]
    assert sorted(rows) == sorted(train[i * 16 : i * 16 + 16].tolist() for i in range((len(train) - 1) // 16))
    x, y, _ = EvalRange(corpus.val, 16, eot=corpus.tokenizer.eot).windows(0, 2)
    assert x.tolist() == np.append(BYTES.eot, val)[:32].reshape(2, 16).tolist()
    assert y.tolist() == val[:32].reshape(2, 16).tolist()


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (modded, ("fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin")),
        (npy, ("edufineweb_train_000001.npy", "edufineweb_train_000002.npy", "edufineweb_val_000000.npy")),
        (nanogpt, ("train/a.bin", "train/b.bin", "validation/a.bin")),
        (lambda path, tokens: modded(path, tokens, 20240801, 7), ("t_train.bin", "t_train_2.bin", "t_dev.bin")),
    ],
)
def test_shards_of_other_trainers(tmp_path: Path, write: Any, names: tuple[str, ...]) -> None:
    parts = [np.roll(tokens_of(40, seed), 1) for seed in range(3)]  # llm.c begins documents with end-of-text
    for name, tokens in zip(names, parts, strict=True):
        write(tmp_path / "data" / name, tokens)
    corpus = opened(tmp_path / "data")
    assert [shard.tolist() for shard in corpus.train.shards] == [tokens.tolist() for tokens in parts[:2]]
    assert joined(corpus, "val") == parts[2].tolist()
    x, _, _ = EvalRange(corpus.val, 8, eot=corpus.tokenizer.eot).windows(0, 1)
    assert x[0].tolist() == [BYTES.eot, *parts[2][:7]]


def test_the_record_counts_documents_and_bytes_of_text(tmp_path: Path) -> None:
    """The same text prepared by stint is the oracle."""
    rows = list(dict.fromkeys(texts(100)))
    manifest = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=1e-9 + 0.2).manifest
    ids = [np.append(BYTES.encode(text), BYTES.eot) for text in rows]
    nanogpt(tmp_path / "data" / "train.bin", np.concatenate(ids))
    splits = opened(tmp_path / "data", validation_fraction=0.2).manifest["splits"]
    for key in ("documents", "bytes", "tokens"):
        assert sum(split[key] for split in splits.values()) == sum(s[key] for s in manifest["splits"].values())


@pytest.mark.parametrize("sizes", [[1000], [300, 300, 400], [900, 50, 50], [100] * 10])
def test_without_a_validation_file_the_end_is_held_out(tmp_path: Path, sizes: list[int]) -> None:
    tokens = (np.arange(1000) % 256).astype(np.uint16)
    for number, part in enumerate(np.split(tokens, np.cumsum(sizes)[:-1])):
        nanogpt(tmp_path / "data" / f"{number}.bin", part)
    loaded = load(tmp_path / "data", validation_fraction=0.15)
    assert joined(loaded.corpus, "train") == tokens[:850].tolist()
    assert joined(loaded.corpus, "val") == tokens[850:].tolist()
    assert any("the last 0.15" in note for note in loaded.notes)


def test_files_of_other_splits_and_names_are_reported_and_not_read(tmp_path: Path) -> None:
    for seed, name in enumerate(("train.bin", "val.bin", "test.bin", "extra.bin")):
        nanogpt(tmp_path / "data" / name, tokens_of(20, seed))
    for name in (".train.bin", ".old/train.bin"):  # hidden files and folders are not listed either
        nanogpt(tmp_path / "data" / name, tokens_of(20, 9))
    loaded = load(tmp_path / "data")
    assert joined(loaded.corpus, "train") == tokens_of(20, 0).tolist()
    assert joined(loaded.corpus, "val") == tokens_of(20, 1).tolist()
    assert "not read: 2 files (extra.bin, test.bin)" in loaded.notes
    assert loaded.corpus.manifest["read"] == {
        "validation_from": "val.bin",
        "files": 2,
        "not_read": ["extra.bin", "test.bin"],
        "files_not_read": 2,
    }
    alone = load(tmp_path / "data" / "val.bin").corpus  # one file is no split, whatever its name
    assert joined(alone, "train") + joined(alone, "val") == tokens_of(20, 1).tolist()


def test_files_of_the_tokenizer_of_another_run_need_only_that_run(tmp_path: Path) -> None:
    """As in init=run, where the options name a tokenizer that no file or table has."""
    other = Tokenizer("mine-1234", BYTES._codec)
    nanogpt(tmp_path / "data" / "train.bin", tokens_of(100))
    loaded = load_corpus(spec(tmp_path / "data", tokenizer="mine-1234"), lambda line: None, other)
    assert loaded.corpus.tokenizer.name == "mine-1234"
    refused(lambda: load(tmp_path / "data", tokenizer="mine-1234"), "unknown data.tokenizer='mine-1234'")


def test_a_second_start_reads_nothing_and_a_changed_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, lines = tmp_path / "data", list[str]()
    nanogpt(place / "train.bin", tokens_of(60))
    nanogpt(place / "val.bin", tokens_of(20, seed=1))
    assert corpus_fingerprint_of(spec(place)) is None
    first = load_corpus(spec(place), log=lines.append)
    monkeypatch.setattr(module.Section, "mapped", lambda self, base: np.zeros(self.tokens, np.uint16))
    second = load_corpus(spec(place), log=lines.append)
    monkeypatch.undo()
    assert (first.fresh, second.fresh, lines) == (True, False, [])
    assert first.corpus.fingerprint == second.corpus.fingerprint == corpus_fingerprint_of(spec(place))
    with (place / "train.bin").open("r+b") as file:
        file.write(b"\1\0")
    os.utime(place / "train.bin", ns=(1, 1))
    assert corpus_fingerprint_of(spec(place)) is None
    third = load_corpus(spec(place), log=lines.append)
    assert third.fresh
    assert third.corpus.fingerprint != first.corpus.fingerprint
    assert "train.bin is new or has changed; 1 of 2" in lines[0]


def test_a_damaged_record_is_written_again(tmp_path: Path) -> None:
    nanogpt(tmp_path / "data" / "train.bin", tokens_of(60))
    first = opened(tmp_path / "data")
    for text in ("", "[]", '{"shards": [{"section": {"file": 3}}]}', '{"shards": 7}'):
        (first.folder / "token_files.json").write_text(text)
        assert opened(tmp_path / "data").fingerprint == first.fingerprint
    assert json.loads((first.folder / "token_files.json").read_text())["fingerprint"] == first.fingerprint


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a" / "data", tmp_path / "b" / "data", tmp_path / "c" / "data"
    for place in (a, b, c):
        nanogpt(place / "train.bin", tokens_of(60))
        nanogpt(place / "val.bin", tokens_of(20, seed=2 if place == c else 1))
    assert opened(a).fingerprint == opened(b).fingerprint != opened(c).fingerprint


@pytest.mark.parametrize("segment", [64, 4 << 20])
def test_an_id_beyond_the_vocabulary_is_refused_wherever_it_is(
    tmp_path: Path, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", segment)
    tokens = tokens_of(60)
    tokens[-40] = 50256
    nanogpt(tmp_path / "data" / "train.bin", tokens)
    message = refused(lambda: load(tmp_path / "data"), "train.bin", "50256", "last id of bytes is 256")
    assert "data.tokenizer=" in message


def test_a_large_check_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 100)
    monkeypatch.setattr(module, "BYTES_PER_LINE", 1)
    nanogpt(tmp_path / "data" / "train.bin", tokens_of(60))
    lines = list[str]()
    load_corpus(spec(tmp_path / "data"), log=lines.append)
    assert 9 <= len(lines) <= 11
    assert "10 %" in lines[0]


def bad_files(place: Path) -> dict[str, tuple[str, ...]]:
    """Write files that are refused. Returns the words of each message."""
    tokens = tokens_of(20)
    (place / "odd.bin").write_bytes(b"\0" * 101)
    (place / "empty.bin").write_bytes(b"")
    modded(place / "short.bin", tokens, count=len(tokens) + 1)
    modded(place / "negative.bin", tokens, count=-1)
    modded(place / "new.bin", tokens, version=2)
    (place / "head.bin").write_bytes(np.array([20240520, 1], dtype=np.int32).tobytes())
    npy(place / "floats.npy", tokens.astype(np.float32))
    npy(place / "matrix.npy", tokens[:10].reshape(2, 5))
    for name in ("objects", "code"):
        (place / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00\x80\x00" + HEADERS[name].ljust(128))
    return {
        "odd.bin": ("101 bytes", "uint16"),
        "empty.bin": ("no tokens",),
        "short.bin": ("its header counts", "copy it again"),
        "negative.bin": ("its header counts -1",),
        "new.bin": ("version 2", "allowed: 1"),
        "head.bin": ("its header counts",),
        "floats.npy": ("uint16 or uint32",),
        "matrix.npy": ("one-dimensional",),
        "objects.npy": ("cannot be read as .npy",),
        "code.npy": ("cannot be read as .npy",),
    }


def test_a_file_in_another_format_is_one_line(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    for name, words in bad_files(place).items():
        refused(lambda name=name: load(place / name), name, *words)


def test_a_folder_without_token_files_is_one_line(tmp_path: Path) -> None:
    refused(lambda: load(tmp_path / "nothing"), "nothing there", "data=text")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("text")
    refused(lambda: load(tmp_path / "data"), "a.txt", ".bin and .npy")


def test_a_shard_of_stint_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts(60))).folder
    refused(lambda: load(folder / "train-00000.bin"), "shard that stint prepared")


def test_character_level_data_of_nanogpt_is_not_unpickled(tmp_path: Path) -> None:
    nanogpt(tmp_path / "data" / "train.bin", tokens_of(20))
    (tmp_path / "data" / "meta.pkl").write_bytes(b"\x80\x04}\x94\x8c\nvocab_size\x94KAs.")
    refused(lambda: load(tmp_path / "data"), "meta.pkl", "pickle", "data=text", "input.txt", "data.tokenizer=bytes")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    nanogpt(tmp_path / "secret.bin", tokens_of(20))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.bin").symlink_to(tmp_path / "secret.bin")
    refused(lambda: load(tmp_path / "data"), "leads out", "secret.bin")
    assert joined(opened(tmp_path / "data" / "train.bin", validation_fraction=0.5), "train")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "data.path=FOLDER"),
        ({"path": "x", "tokenizer": "bpe-4096"}, "data.tokenizer=bpe-4096"),
        ({"path": "x", "max_bytes": 5}, "data.max_bytes=5"),
    ],
)
def test_options_that_cannot_hold_for_token_files(options: dict[str, Any], word: str) -> None:
    from cli.validate import find_problems

    config = Config()
    config.budget.steps, config.data.source, config.data.tokenizer = 1, "tokens", "gpt2"
    for name, value in options.items():
        setattr(config.data, name, value)
    assert [problem for problem in find_problems(config) if word in problem]


def test_a_run_on_files_of_nanogpt(tmp_path: Path) -> None:
    nanogpt(tmp_path / "texts" / "train.bin", tokens_of(300))
    nanogpt(tmp_path / "texts" / "val.bin", tokens_of(60, seed=1))
    run = run_here(tmp_path, "data=tokens", "data.tokenizer=bytes", "budget.steps=3")
    result = json.loads((run / "result.json").read_text())
    assert result["data"]["source"] == "tokens"
    assert result["data"]["tokenizer"] == "bytes"
    assert result["data"]["train_tokens"] == len(tokens_of(300))
    assert result["eval"]["bits_per_byte"] > 0
    assert "read train.bin for training" in (run / "log.txt").read_text()
