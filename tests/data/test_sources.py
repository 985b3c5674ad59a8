from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    write_jsonl(folder / "train" / "a.jsonl", texts(100))
    refused(lambda: make(tmp_path, folder, source="slimpajama"), "validation is missing")


def test_one_plain_file_is_split_by_position(tmp_path: Path) -> None:
    text = "".join(texts(200))
    (tmp_path / "input.txt").write_text(text)
    corpus = open_corpus(make(tmp_path, tmp_path / "input.txt").folder)
    train, val = (corpus.tokenizer.decode(split.shards[0][:-1]) for split in (corpus.train, corpus.val))
    assert train + val == text
    assert train.endswith("\n")
    assert 0.05 < len(val) / len(text) < 0.11


@pytest.mark.parametrize("text", ["é" * 5000, "é\n" * 3, "ab"])
def test_one_plain_file_without_good_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(text)
    corpus = open_corpus(make(tmp_path, tmp_path / "input.txt").folder)
    train, val = (corpus.tokenizer.decode(split.shards[0][:-1]) for split in (corpus.train, corpus.val))
    assert train + val == text


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
