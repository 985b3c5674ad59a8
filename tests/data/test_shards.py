from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import prepare as module
from data.shards import HEADER, open_corpus, verify
from tests.data.helpers import contents, make, refused, texts, write_jsonl


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "SHARD_TOKENS", 20_000)
    monkeypatch.setattr(module, "BATCH_BYTES", 5000)
    return make(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts(200)), tokenizer="bpe-400").folder


def changed(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(bytes(raw))


def test_opens_read_only_and_holds_what_the_manifest_says(folder: Path) -> None:
    corpus = open_corpus(folder)
    verify(folder)
    assert len(corpus.train.shards) > 1
    for split, name in ((corpus.train, "train"), (corpus.val, "val")):
        facts = corpus.manifest["splits"][name]
        assert split.n_tokens == sum(map(len, split.shards)) == facts["tokens"]
        assert sum(map(len, split.starts)) == facts["documents"]
        lengths = sum(int(corpus.tokenizer.token_bytes[shard].sum()) for shard in split.shards)
        assert lengths == facts["bytes"]
        for shard, starts in zip(split.shards, split.starts, strict=True):
            assert starts[0] == 0
            assert (shard[starts[1:] - 1] == corpus.tokenizer.eot).all()
            assert int((shard == corpus.tokenizer.eot).sum()) == len(starts)
            assert not shard.flags.writeable


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("train-00001.bin", HEADER.size),
        ("train-00001.bin", HEADER.size + 1001),
        ("train-00001.bin", -1),
        ("val-00000.docs.npy", -3),
    ],
)
def test_a_flipped_bit_is_found(folder: Path, name: str, offset: int) -> None:
    changed(folder / name, offset)
    refused(lambda: verify(folder), f"{name.split('.')[0]}.bin", "changed", "delete", "prepare again")


def test_a_signal_does_not_wait_for_shards_that_are_still_to_be_verified(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verifying the rest of a large corpus would take minutes."""
    shards = len(open_corpus(folder).manifest["shards"])
    read, calls = module.shards.read_shard, list[Path]()

    def stopped(shard: Path, itemsize: int) -> object:
        calls.append(shard)
        if len(calls) == 1:
            raise KeyboardInterrupt
        time.sleep(0.2)
        return read(shard, itemsize)

    monkeypatch.setattr(module.shards, "read_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        verify(folder, workers=1)
    assert len(calls) < shards - 1


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("train-00000.bin", None, "train-00000.bin"),
        ("train-00000.bin", lambda raw: raw[:-2], "train-00000.bin"),
        ("train-00000.bin", lambda raw: raw[: HEADER.size - 1] + b"?" + raw[HEADER.size :], "header"),
        ("train-00000.docs.npy", None, "train-00000"),
        ("manifest.json", lambda raw: b"{", "damaged"),
        ("manifest.json", None, "not finished"),
        ("manifest.json", lambda raw: raw.replace(b'"format": 1', b'"format": 9'), "format 9"),
        ("tokenizer.json", lambda raw: b"", "tokenizer.json"),
    ],
)
def test_damage_is_detected_on_opening(
    folder: Path, name: str, change: Callable[[bytes], bytes] | None, word: str
) -> None:
    """A change of None deletes the file."""
    path = folder / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    refused(lambda: open_corpus(folder), word, "prepare")


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path, tmp_path / "a.jsonl", tokenizer="bpe-401")
    (folder / "tokenizer.json").write_bytes((other.folder / "tokenizer.json").read_bytes())
    with pytest.raises(Exception, match="header is not that of"):
        open_corpus(folder)


def test_an_id_beyond_the_vocabulary_is_refused(folder: Path) -> None:
    path = folder / "val-00000.bin"
    raw = path.read_bytes()
    path.write_bytes(raw[: HEADER.size] + np.array([400], "<u2").tobytes() + raw[HEADER.size + 2 :])
    refused(lambda: verify(folder), "val-00000.bin", "id 400", "is 399")


def test_the_fingerprint_depends_on_the_content(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path, tmp_path / "a.jsonl", tokenizer="bpe-400", cache_dir=str(tmp_path / "second"))
    assert other.manifest["fingerprint"] == open_corpus(folder).fingerprint
    assert contents(other.folder) == contents(folder)
    third = make(tmp_path, tmp_path / "a.jsonl", tokenizer="bpe-400", validation_fraction=0.2)
    assert third.manifest["fingerprint"] != open_corpus(folder).fingerprint


def test_a_damaged_corpus_is_not_reused(folder: Path, tmp_path: Path) -> None:
    changed(folder / "train-00000.bin", -1)
    refused(lambda: make(tmp_path, tmp_path / "a.jsonl", tokenizer="bpe-400"), "train-00000.bin")
