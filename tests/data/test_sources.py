from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus import load_corpus
from data.prepare import PreparedInfo
from data.record import corpus_record, read_notes
from data.shards import open_corpus
from data.sources import stdlib
from data.sources.base import DataSpec
from data.sources.registry import make_source
from tests.data.helpers import make, refused, texts, write_jsonl

LISTING = """
import hashlib, json
from data.sources.base import DataSpec
from data.sources.registry import make_source
source = make_source(DataSpec(source="stdlib", tokenizer="bytes"))
digest, counts = hashlib.sha256(), {}
for part in source.parts():
    for document in source.documents(part):
        digest.update(document.text.encode("utf-8", "surrogatepass"))
        counts[document.source] = counts.get(document.source, 0) + 1
print(json.dumps([source.identity, digest.hexdigest(), counts]))
"""


def listing(seed: int) -> Any:
    run = subprocess.run(
        [sys.executable, "-c", LISTING], env={"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def slimpajama(folder: Path) -> Path:
    """Write a corpus in SlimPajama's layout whose training split repeats some validation texts."""
    for split, lines in (("train", texts(100)), ("validation", texts(20, seed=5)), ("test", ["never read"])):
        records = [{"text": t, "meta": {"redpajama_set_name": f"RedPajama{i % 2}"}} for i, t in enumerate(lines)]
        if split == "train":
            records[7:9] = [{"text": t, "meta": {"redpajama_set_name": "x"}} for t in texts(20, seed=5)[:2]]
        write_jsonl(folder / split / "chunk1" / f"example_{split}_0.jsonl.zst", records)
    return folder


def test_stdlib_is_the_same_in_every_process() -> None:
    first, second = listing(1), listing(2)
    assert first == second
    counts = first[2]
    assert counts["source"] > 500
    assert counts["topic"] > 50
    assert counts["docstring"] > 30


def test_stdlib_has_no_installed_packages_and_no_addresses() -> None:
    assert not [path for path in stdlib.source_files() if "site-packages" in path.parts]
    found = "".join(stdlib.docstrings())
    assert "math.sqrt" in found
    assert not stdlib.ADDRESS.search(found)


def test_slimpajama_layout_keeps_its_own_split(tmp_path: Path) -> None:
    folder = slimpajama(tmp_path / "pajama")
    info = make(tmp_path, folder, source="slimpajama")
    assert info.manifest["splits"]["val"]["documents"] == len(set(texts(20, seed=5)))
    assert info.manifest["sources"] == ["RedPajama0", "RedPajama1"]
    corpus = open_corpus(info.folder)
    sides = [
        set(corpus.tokenizer.decode(np.concatenate(s.shards)).split("<|endoftext|>"))
        for s in (corpus.train, corpus.val)
    ]
    assert not sides[0] & sides[1] - {""}
    assert "never read" not in sides[0] | sides[1]


def test_slimpajama_folders_of_other_depths(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    write_jsonl(folder / "chunk1" / "example.jsonl.zst", texts(100))
    assert make(tmp_path, folder, source="slimpajama").manifest["sources"] == ["chunk1"]
    write_jsonl(folder / "train" / "a.jsonl", texts(100))  # without validation text beside it, all is split by hash
    assert make(tmp_path, folder, source="slimpajama").manifest["read"]["validation_from"] == "hash of documents"


def test_one_plain_file_is_split_by_position(tmp_path: Path) -> None:
    text = "".join(texts(200))
    (tmp_path / "input.txt").write_text(text)
    corpus = open_corpus(make(tmp_path, tmp_path / "input.txt").folder)
    train, val = (corpus.tokenizer.decode(split.shards[0][:-1]) for split in (corpus.train, corpus.val))
    assert train + val == text
    assert train.endswith("\n")
    assert 0.05 < len(val) / len(text) < 0.11


@pytest.mark.parametrize("text", ["é" * 5000, "é\n" * 3, "ab", "eé"])
def test_one_plain_file_without_good_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(text)
    corpus = open_corpus(make(tmp_path, tmp_path / "input.txt").folder)
    train, val = (corpus.tokenizer.decode(split.shards[0][:-1]) for split in (corpus.train, corpus.val))
    assert train + val == text


def documents_of(info: PreparedInfo) -> dict[str, list[str]]:
    """Return the documents of both splits, decoded from the shards."""
    corpus = open_corpus(info.folder)
    return {
        split.name: corpus.tokenizer.decode(np.concatenate(split.shards)).split("<|endoftext|>")[:-1]
        for split in (corpus.train, corpus.val)
    }


def distinct(seed: int, *others: int) -> list[str]:
    """Return the distinct texts of a seed that are not among those of the others."""
    seen = {text for other in others for text in texts(20, other)}
    return [text for text in dict.fromkeys(texts(20, seed)) if text not in seen]


@pytest.mark.parametrize("source", ["text", "slimpajama"])
@pytest.mark.parametrize(
    ("files", "origin"),
    [
        (("train/a.jsonl", "validation/a.jsonl", "test/a.jsonl"), "validation/"),
        (("train/b/a.jsonl.zst", "Val/a.jsonl", "test/a.jsonl"), "Val/"),
        (("data/train-00000-of-00001.jsonl", "data/dev-0.jsonl", "data/test-0.jsonl"), "data/dev-0.jsonl"),
        (("wiki.train.jsonl", "wiki.valid.jsonl", "wiki.test.jsonl"), "wiki.valid.jsonl"),
        (("wiki.jsonl", "wiki.valid.jsonl", "wiki.test.jsonl"), "wiki.valid.jsonl"),
    ],
)
def test_the_corpus_own_split_is_kept(tmp_path: Path, source: str, files: tuple[str, ...], origin: str) -> None:
    folder = tmp_path / "corpus"
    for seed, name in enumerate(files):
        write_jsonl(folder / name, texts(20, seed) + texts(20, 1)[:2])  # training repeats validation texts
    info = make(tmp_path, folder, source=source)
    assert documents_of(info) == {"train": distinct(0, 1), "val": distinct(1)}
    left_out = files[2].replace("test/a.jsonl", "test/ (1 file)")
    assert info.manifest["read"] == {
        "validation_from": origin, "files": 2, "not_read": [left_out], "files_not_read": 1,
    }  # fmt: skip
    labels = {"slimpajama"} if source == "slimpajama" else set(info.manifest["sources"])
    assert set(info.manifest["sources"]) == labels
    assert not {label.lower() for label in labels} & {"train", "val", "validation", "dev", "valid"}


def test_files_without_a_split_beside_one_are_named(tmp_path: Path) -> None:
    for seed, name in enumerate(("train.txt", "validation.txt", "notes.txt", "dev/a.txt", "dev/b.txt")):
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_text(f"text {seed}")
    info = make(tmp_path, tmp_path / "c")
    assert documents_of(info) == {"train": ["text 0"], "val": ["text 1"]}
    assert info.manifest["read"]["not_read"] == ["notes.txt", "dev/ (2 files)"]
    assert info.manifest["read"]["files_not_read"] == 3
    assert read_notes(info.manifest["read"]) == [
        "validation split: validation.txt",
        "not read: 3 files (notes.txt, dev/ (2 files))",
    ]


@pytest.mark.parametrize("source", ["text", "slimpajama"])
def test_validation_path_is_the_validation_text(tmp_path: Path, source: str) -> None:
    for seed, name in enumerate(("train/a.jsonl", "validation/b.jsonl", "mine.jsonl")):
        write_jsonl(tmp_path / "c" / name, texts(20, seed))
    options = {"source": source, "tokenizer": "bytes", "validation_path": str(tmp_path / "c" / "mine.jsonl")}
    info = make(tmp_path, tmp_path / "c", **options)  # the file lies within data.path, and is not trained on
    assert documents_of(info) == {"train": distinct(0, 2) + distinct(1, 0, 2), "val": distinct(2)}
    assert info.manifest["read"]["validation_from"] == "data.validation_path"
    assert info.manifest["read"]["files"] == 3
    assert info.manifest["duplicates_dropped"] == 60 - len(distinct(0, 2) + distinct(1, 0, 2) + distinct(2))
    assert make(tmp_path, tmp_path / "c", source=source).folder != info.folder
    write_jsonl(tmp_path / "c" / "mine.jsonl", texts(20, 4))
    assert make(tmp_path, tmp_path / "c", **options).folder != info.folder


def test_a_plain_file_with_a_validation_file_is_all_training_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("all of this\nis for training\n")
    (tmp_path / "b.txt").write_text("and this is not\n")
    info = make(tmp_path, tmp_path / "a.txt", validation_path=str(tmp_path / "*b.txt"))
    assert documents_of(info) == {"train": ["all of this\nis for training\n"], "val": ["and this is not\n"]}


def test_a_split_without_text_is_one_error_that_names_it(tmp_path: Path) -> None:
    full, empty = write_jsonl(tmp_path / "full.jsonl", texts(9)), write_jsonl(tmp_path / "empty.jsonl", ["", ""])
    refused(lambda: make(tmp_path, full, validation_path=str(empty)), f"data.validation_path={empty}: no text")
    refused(lambda: make(tmp_path, full, validation_path="nowhere"), "data.validation_path=nowhere: no such file")
    refused(lambda: make(tmp_path, full, validation_path=str(tmp_path)), "holds all files of data.path=")
    for training, held_out, words in (
        (texts(9), [""], "no text in the validation split, val.jsonl"),
        ([""], texts(9), "no training text besides the 9 documents of the validation split, val.jsonl"),
        (texts(9), texts(9), "no training text besides the 9 documents"),
    ):
        write_jsonl(tmp_path / "c" / "train.jsonl", training)
        write_jsonl(tmp_path / "c" / "val.jsonl", held_out)
        for tokenizer in ("bytes", "bpe-300"):
            for _ in range(2):
                refused(lambda: make(tmp_path, tmp_path / "c", tokenizer=tokenizer), words)  # noqa: B023


def test_a_validation_split_without_text_is_reported_before_the_training_text_is_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c" / "val.jsonl", [""])
    (tmp_path / "c" / "train.jsonl").write_text("oops\n")
    refused(lambda: make(tmp_path, tmp_path / "c"), "no text in the validation split, val.jsonl")
    assert not list((tmp_path / "prepared").glob("text-*/"))


def test_a_validation_document_that_takes_all_of_max_bytes_is_told(tmp_path: Path) -> None:
    full, long = write_jsonl(tmp_path / "full.jsonl", texts(9)), write_jsonl(tmp_path / "long.jsonl", ["x" * 2000])
    words = ("data.max_bytes=1kB is too little", "data.validation_path, take all of it")
    refused(lambda: make(tmp_path, full, validation_path=str(long), max_bytes=1000), *words)


def test_a_corpus_of_skipped_records_alone_says_how_many_they_are(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": null}\n' * 3)
    said = refused(lambda: make(tmp_path, bad, bad_documents="skip"), f"data.path={bad}: no text", "3 bad records were")
    assert "data.bad_documents=refuse" in said
    full = write_jsonl(tmp_path / "full.jsonl", texts(9))
    refused(
        lambda: make(tmp_path, full, validation_path=str(bad), bad_documents="skip"), "_path=", "3 bad records were"
    )


def test_corpora_whose_files_are_read_as_before_are_found_again(tmp_path: Path) -> None:
    """The names are those of the first version, and change only if the same files are read differently."""
    old = (1_000_000_000, 1_000_000_000)
    for split in ("train", "validation", "test"):
        os.utime(write_jsonl(tmp_path / "p" / split / "chunk1" / f"{split}_0.jsonl", [f"{split} text"]), old)
    plain = tmp_path / "input.txt"
    plain.write_text("a\nb\n" * 50)
    os.utime(plain, old)
    layout = make(tmp_path, tmp_path / "p", source="slimpajama", validation_fraction=0.01)
    assert layout.folder.name == "slimpajama-bytes-1b6c04a606c7"
    assert make(tmp_path, plain, validation_fraction=0.01).folder.name == "text-bytes-73536709bdf0"
    spec = DataSpec(source="text", path=str(plain), tokenizer="bytes")
    assert "rules" not in make_source(spec).identity
    plain.write_text("a\n<|endoftext|>b\n" * 50)
    assert make_source(spec).identity["rules"] == 1
    assert [part.split for part in make_source(spec).parts()] == [None]
    assert make_source(replace(spec, path=str(tmp_path / "p"))).identity["rules"] == 1


def test_a_linked_split_is_read_and_another_linked_folder_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c" / "v1" / "old" / "a.jsonl", texts(20, 1))
    write_jsonl(tmp_path / "c" / "train" / "a.jsonl", texts(20, 0))
    (tmp_path / "c" / "validation").symlink_to("v1/old")
    (tmp_path / "c" / "more").symlink_to(tmp_path)
    info = make(tmp_path, tmp_path / "c")
    assert documents_of(info) == {"train": distinct(0, 1), "val": distinct(1)}
    assert info.manifest["read"]["not_read"] == ["more", "v1/old/a.jsonl"]


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return slimpajama(tmp_path / "repo")


def test_a_hub_dataset_equals_its_folder(tmp_path: Path, local_hub: Path) -> None:
    streamed = make(tmp_path, source="slimpajama", repo=str(local_hub))
    read = make(tmp_path, local_hub, source="slimpajama")
    assert streamed.manifest["fingerprint"] == read.manifest["fingerprint"]
    assert streamed.manifest["origin"] == {"repo": str(local_hub), "revision": None, "gone": []}


def test_the_original_has_its_re_upload_as_fallback() -> None:
    source = make_source(DataSpec(source="slimpajama", tokenizer="bytes", repo="cerebras/SlimPajama-627B"))
    assert source.identity["candidates"][1][0] == "gmongaras/SlimPajama-627B_Reupload"
    default = make_source(DataSpec(source="slimpajama", tokenizer="bytes"))
    assert default.identity["candidates"] == [["DKYoon/SlimPajama-6B", "b5f90f419b7489cdba26fdbc8c022fcb5562f968"]]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, ("no network", "data.path=")),
        ({"HF_HUB_OFFLINE": "1"}, ("HF_HUB_OFFLINE",)),
    ],
)
def test_without_a_network_it_says_so_at_once(
    tmp_path: Path, environment: dict[str, str], words: tuple[str, ...]
) -> None:
    code = (
        "from tests.data.helpers import *; from pathlib import Path\n"
        "try: make(Path('.'), source='slimpajama')\n"
        "except UserError as error: print(error)"
    )
    env = {**environment, "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=15
    )
    assert all(word in run.stdout for word in words)
    assert run.stdout.count("\n") == 1


def test_a_file_that_is_added_to_a_prepared_corpus_and_not_read_is_recorded(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "docs" / "a.jsonl", [f"document {n}" for n in range(60)])
    options: dict[str, Any] = {
        "path": str(tmp_path / "docs"),
        "cache_dir": str(tmp_path / "prepared"),
        "validation_fraction": 0.2,
    }
    spec = DataSpec(source="text", tokenizer="bytes", **options)
    assert corpus_record(load_corpus(spec, log=lambda line: None).corpus.manifest)["not_read"] == []
    (tmp_path / "docs" / "b.pdf").write_bytes(b"%PDF-1")
    loaded = load_corpus(spec)
    assert not loaded.fresh
    assert loaded.notes == ("not read: 1 file (b.pdf)",)
    assert corpus_record(loaded.corpus.manifest)["not_read"] == ["b.pdf"]
    assert corpus_record(loaded.corpus.manifest)["files"] == 1
