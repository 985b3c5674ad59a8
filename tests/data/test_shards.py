from __future__ import annotations

import json
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


@pytest.mark.parametrize("offset", [HEADER.size, HEADER.size + 1001, -1])
def test_a_flipped_bit_in_a_shard_is_found(folder: Path, offset: int) -> None:
    changed(folder / "train-00001.bin", offset)
    refused(lambda: verify(folder), "train-00001.bin", "delete", "prepare again")


def test_a_flipped_bit_in_a_document_table_is_found(folder: Path) -> None:
    changed(folder / "val-00000.docs.npy", -3)
    refused(lambda: verify(folder), "val-00000.bin", "changed")


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


def drop_shard(folder: Path) -> None:
    (folder / "train-00000.bin").unlink()


def cut_shard(folder: Path) -> None:
    raw = (folder / "train-00000.bin").read_bytes()
    (folder / "train-00000.bin").write_bytes(raw[:-2])


def change_header(folder: Path) -> None:
    changed(folder / "train-00000.bin", HEADER.size - 1)


def drop_table(folder: Path) -> None:
    (folder / "train-00000.docs.npy").unlink()


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def drop_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def later_format(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 9}))


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (drop_shard, "train-00000.bin"),
    (cut_shard, "train-00000.bin"),
    (change_header, "header"),
    (drop_table, "train-00000"),
    (break_manifest, "damaged"),
    (drop_manifest, "not finished"),
    (later_format, "format 9"),
    (break_tokenizer, "tokenizer.json"),
]


@pytest.mark.parametrize(("damage", "word"), DAMAGES)
def test_damage_is_detected_on_opening(folder: Path, damage: Callable[[Path], None], word: str) -> None:
    damage(folder)
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
