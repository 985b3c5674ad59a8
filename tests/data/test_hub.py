"""Data sets of the Hub, read from a fake one: configurations, splits, repositories that cannot be used, and a bad network."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cli.validate import find_problems
from common.errors import MachineError, UserError
from config import CONF, Config
from data import prepare as preparing
from data.prepare import PreparedInfo
from data.record import corpus_record
from data.shards import open_corpus
from data.sources import hub as hub_source
from data.sources import hub_files
from data.sources.base import DataSpec
from data.sources.registry import make_source
from tests.conftest import TINY
from tests.data.fake_hub import FakeHub, Fault, environment, running_hub
from tests.data.helpers import added_documents, make, refused, texts
from training.corpus_text import spec_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub(tmp_path / "hf", monkeypatch) as server:
        yield server


def parquet(lines: list[str], rows: int = 10, **columns: list[Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": lines, **columns}), file, row_group_size=rows, compression="none")
    return file.getvalue()


def jsonl(lines: list[str]) -> bytes:
    return "".join(json.dumps({"text": line}) + "\n" for line in lines).encode()


def card(configs: dict[str, dict[str, str]], default: str = "") -> bytes:
    """A README that names the files of each split of each configuration."""
    entries = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
            **({"default": True} if name == default else {}),
        }
        for name, splits in configs.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': entries})}---\n# A data set\n".encode()


def text_of(info: PreparedInfo, split: str) -> set[str]:
    """The documents of a split, without the end-of-text tokens of the tokenizer "bytes"."""
    corpus = open_corpus(info.folder)
    shards = (corpus.train if split == "train" else corpus.val).shards
    return {text for shard in shards for text in corpus.tokenizer.decode(shard).split("<|endoftext|>") if text}


def get(tmp_path: Path, repo: str, **options: Any) -> PreparedInfo:
    return make(tmp_path, source="hub", repo=repo, **options)


def wikitext(hub: FakeHub) -> dict[str, list[str]]:
    """Add a data set with the layout of Salesforce/wikitext. Returns its texts by file."""
    names = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    files = {
        f"{name}/{split}-0.parquet": [f"{name} {split} {line}" for line in texts(30, seed=seed)]
        for name in names
        for seed, split in enumerate(("test", "train", "validation"))
    }
    readme = card({n: {s: f"{n}/{s}-*" for s in ("test", "train", "validation")} for n in names})
    hub.add("Salesforce/wikitext", {"README.md": readme, **{name: parquet(lines) for name, lines in files.items()}})
    return files


def test_a_configuration_is_chosen_by_name(tmp_path: Path, hub: FakeHub) -> None:
    files = wikitext(hub)
    info = get(tmp_path, "Salesforce/wikitext", config="wikitext-2-raw-v1")
    assert text_of(info, "train") == set(files["wikitext-2-raw-v1/train-0.parquet"])
    assert text_of(info, "val") == set(files["wikitext-2-raw-v1/validation-0.parquet"])
    assert not any("103" in path for path in hub.downloads())
    assert info.manifest["origin"]["revision"] == hub.repos["Salesforce/wikitext"].sha
    recorded = corpus_record(info.manifest)
    assert (recorded["repo"], recorded["revision"]) == ("Salesforce/wikitext", hub.repos["Salesforce/wikitext"].sha)
    other = get(tmp_path, "Salesforce/wikitext", config="wikitext-103-raw-v1")
    assert other.folder != info.folder
    assert not text_of(other, "train") & text_of(info, "train")


def test_a_missing_or_unknown_configuration_lists_them(tmp_path: Path, hub: FakeHub) -> None:
    wikitext(hub)
    both = "wikitext-103-raw-v1, wikitext-2-raw-v1"
    refused(lambda: get(tmp_path, "Salesforce/wikitext"), "2 configurations", "data.config=", both)
    message = refused(lambda: get(tmp_path, "Salesforce/wikitext", config="wikitext-2-raw"), "data.config=", both)
    assert "did you mean wikitext-2-raw-v1?" in message
    assert hub.downloads() == []
    many = {f"lang{number:03}": {"train": f"{number}.jsonl"} for number in range(300)}
    hub.add("a/many", {"README.md": card(many), **{f"{number}.jsonl": jsonl(["x"]) for number in range(300)}})
    message = refused(lambda: get(tmp_path, "a/many"), "300 configurations", "lang000, lang001", "... (300 in all)")
    assert len(message) < 400


def test_a_sample_of_a_large_data_set(tmp_path: Path, hub: FakeHub) -> None:
    """The layout of HuggingFaceFW/fineweb-edu: a default configuration with all of it, train split only, many columns."""
    sample, rest = texts(60, seed=1), texts(60, seed=2)
    readme = card(
        {"default": {"train": "data/*/*"}, "sample-10BT": {"train": "sample/10BT/*"}, "CC-1": {"train": "data/1/*"}},
        default="default",
    )
    columns = {"url": [f"https://example.org/{i}" for i in range(60)], "score": [0.5] * 60}
    files = {"sample/10BT/000.parquet": parquet(sample, **columns), "data/1/000.parquet": parquet(rest, **columns)}
    hub.add("HuggingFaceFW/fineweb-edu", {"README.md": readme, **files})
    info = get(tmp_path, "HuggingFaceFW/fineweb-edu", config="sample-10BT")
    assert text_of(info, "train") | text_of(info, "val") == set(sample)
    assert text_of(info, "val")
    assert text_of(get(tmp_path, "HuggingFaceFW/fineweb-edu"), "train") <= set(rest)
    refused(
        lambda: get(tmp_path, "HuggingFaceFW/fineweb-edu/sample/10BT"),
        "OWNER/NAME",
        "data.repo=HuggingFaceFW/fineweb-edu",
        "data.config=",
    )


@pytest.mark.parametrize(
    ("splits", "chosen", "held_out"),
    [
        ({"train": 1, "val": 2}, "train", "val"),
        ({"train": 1, "dev": 2, "test": 3}, "train", "dev"),
        ({"train": 1, "test": 2}, "train", "test"),
        ({"train_sft": 1, "test_sft": 2, "test": 3}, "train_sft", "test"),
        ({"test": 1, "validation": 2}, "test", "validation"),
        ({"validation": 1, "test": 2}, "validation", "test"),
        ({"test": 1}, "test", None),
    ],
)
def test_the_validation_split_has_one_of_the_usual_names(
    tmp_path: Path, hub: FakeHub, splits: dict[str, int], chosen: str, held_out: str | None
) -> None:
    lines = {split: [f"{split} {line}" for line in texts(40, seed=seed)] for split, seed in splits.items()}
    readme = card({"default": {split: f"{split}.jsonl" for split in splits}})
    hub.add("a/b", {"README.md": readme, **{f"{split}.jsonl": jsonl(texts) for split, texts in lines.items()}})
    info = get(tmp_path, "a/b", split=chosen)
    expected = set(lines[chosen])
    if held_out is None:
        assert text_of(info, "train") | text_of(info, "val") == expected
        assert text_of(info, "val")
    else:
        assert text_of(info, "train") == expected
        assert text_of(info, "val") == set(lines[held_out])


def test_an_unknown_split_lists_them(tmp_path: Path, hub: FakeHub) -> None:
    readme = card({"default": {"train_sft": "a.jsonl", "test_sft": "b.jsonl"}})
    hub.add("a/b", {"README.md": readme, "a.jsonl": jsonl(["x"]), "b.jsonl": jsonl(["y"])})
    refused(lambda: get(tmp_path, "a/b"), "data.split=train ", "data.split=: train_sft, test_sft")
    refused(lambda: get(tmp_path, "a/b", split="train_stf"), "did you mean train_sft?")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.txt"])
def test_formats(tmp_path: Path, hub: FakeHub, name: str) -> None:
    lines = [f"line {number} of {name}" for number in range(60)]
    content = {
        "a.jsonl": jsonl(lines),
        "a.jsonl.gz": gzip.compress(jsonl(lines)),
        "a.json": json.dumps([{"text": line} for line in lines]).encode(),
        "a.csv": "\n".join(["text", *lines]).encode(),
        "a.parquet": parquet(lines),
        "a.txt": "\n".join(lines).encode(),
    }[name]
    hub.add("a/b", {name: content})
    info = get(tmp_path, "a/b")
    assert text_of(info, "train") | text_of(info, "val") == set(lines)
    assert info.manifest["splits"]["train"]["documents"] + info.manifest["splits"]["val"]["documents"] == 60


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/datasets/a/b/",
        "https://huggingface.co/datasets/a/b/tree/main",
        "https://huggingface.co/datasets/a/b?row=3",
        "hf://datasets/a/b",
        "datasets/a/b",
    ],
)
def test_the_address_of_a_page_is_its_data_set(address: str) -> None:
    def identity(repo: str) -> Any:
        return make_source(DataSpec(source="hub", tokenizer="bytes", repo=repo)).identity

    assert identity(address) == identity("a/b")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wikitext", ("OWNER/NAME",)),
        ("a/b/c", ("OWNER/NAME", "data.config=")),
        ("./a/b", ("folder",)),
        ("/nowhere/at/all", ("folder",)),
        ("https://huggingface.co/datasets/a/b/viewer/c/train", ("OWNER/NAME",)),
        ("https://huggingface.co/openai-community/gpt2", ("not the address of a data set",)),
        ("https://github.com/a/b", ("not the address of a data set",)),
        ("a//b", ("OWNER/NAME",)),
        ("a/b c", ("OWNER/NAME",)),
        ("../../no/such", ("folder",)),
    ],
)
def test_a_name_that_is_none_is_refused_without_the_network(name: str, words: tuple[str, ...]) -> None:
    refused(lambda: make_source(DataSpec(source="hub", tokenizer="bytes", repo=name)), f"data.repo={name}", *words)


def image_table() -> bytes:
    """A parquet file whose column "text" is declared to be an image at a path of this machine."""
    features = {"info": {"features": {"text": {"_type": "Image"}}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"text": pa.array([{"bytes": None, "path": "/etc/passwd"}], image)})
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), file)
    return file.getvalue()


ODD: dict[str, tuple[dict[str, bytes], tuple[str, ...]]] = {
    "script": ({"b.py": b"import os", "README.md": b""}, ("scripts are no longer supported", "b.py")),
    "empty": ({}, ("a/b",)),
    "card alone": ({"README.md": b"# Hello"}, ("a/b",)),
    "weights": ({"model.safetensors": b"x"}, ("a/b",)),
    "sound": ({"train/a.wav": b"RIFF"}, ("audiofolder", "parquet")),
    "no parquet": ({"train.parquet": b"this is no parquet file"}, ("parquet",)),
    "cut parquet": ({"train.parquet": parquet(texts(90))[:-2000]}, ("a/b",)),
    "no JSON": ({"train.jsonl": b"{'text': nothing}\n" * 9}, ("a/b",)),
    "cut gzip": ({"train.jsonl.gz": gzip.compress(jsonl(texts(900)))[:-3000]}, ("a/b",)),
    "no gzip": ({"train.jsonl.gz": b"plain"}, ("a/b",)),
    "not UTF-8": ({"train.txt": b"\xff\xfe\xff\xff" * 99}, ("a/b: train.txt",)),
    "odd CSV": ({"train.csv": b'text\n"a\nb,c,d\n1,2,3,4\n'}, ("a/b",)),
    "no text column": ({"train.jsonl": b'{"story": "x"}\n'}, ("'text'", "data.text_key", "story")),
    "an image": ({"train.parquet": image_table()}, ("'text'", "data.text_key")),
    "other columns": (
        {"train-0.jsonl": jsonl(["x"]), "train-1.jsonl": b'{"text": {"deep": [1]}, "more": {"a": 2}}\n'},
        ("train-1.jsonl",),
    ),
    "bad YAML": ({"README.md": b"---\nconfigs: [}\n---\n", "a.jsonl": jsonl(["x"])}, ("a/b",)),
    "odd configs": ({"README.md": b"---\nconfigs: 7\n---\n", "a.jsonl": jsonl(["x"])}, ("a/b",)),
    "odd config": ({"README.md": b"---\nconfigs:\n- 7\n---\n", "a.jsonl": jsonl(["x"])}, ("a/b",)),
    "missing files": ({"README.md": card({"x": {"train": "gone/*.jsonl"}}), "a.jsonl": jsonl(["x"])}, ("a/b",)),
    "odd information": (
        {"README.md": b"---\ndataset_info:\n  features: 3\n---\n", "a.jsonl": jsonl(["x"])},
        ("a/b",),
    ),
    "other features": (
        {
            "README.md": b"---\ndataset_info:\n  features:\n  - name: other\n    dtype: int64\n---\n",
            "a.parquet": parquet(["x"]),
        },
        ("other",),
    ),
    "mixed formats": (
        {
            "README.md": card({"x": {"train": "a.parquet"}, "default": {"train": "b.jsonl"}}),
            "a.parquet": parquet(["x"]),
            "b.jsonl": jsonl(["x"]),
        },
        ("a/b",),
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_repository_that_cannot_be_used_is_one_line(tmp_path: Path, hub: FakeHub, kind: str) -> None:
    files, words = ODD[kind]
    hub.add("a/b", files)
    refused(lambda: get(tmp_path, "a/b"), *words)


def test_the_advice_to_skip_bad_rows_is_given_where_good_ones_follow(tmp_path: Path, hub: FakeHub) -> None:
    hub.add("a/none", {"train.parquet": parquet([None] * 30)})  # type: ignore[list-item]
    assert "bad_documents" not in refused(lambda: get(tmp_path, "a/none"), "row 1: ", "it holds null", "no record at")
    hub.add("a/one", {"train.parquet": parquet([None, *texts(30)])})  # type: ignore[list-item]
    refused(lambda: get(tmp_path, "a/one"), "row 1: ", "data.bad_documents=skip")


def test_repositories_that_may_not_be_read(tmp_path: Path, hub: FakeHub) -> None:
    hub.add("a/gated", {"README.md": b"", "a.jsonl": jsonl(["x"])}, access="gated")
    hub.add("a/private", {"a.jsonl": jsonl(["x"])}, access="private")
    hub.models.add("a/model")
    for name in ("a/gated", "a/private", "a/missing"):
        refused(lambda name=name: get(tmp_path, name), name, "hf auth login", "HF_TOKEN")
    refused(lambda: get(tmp_path, "a/model"), "a model, not a data set")
    refused(lambda: get(tmp_path, "a/gated", revision="v7"), "a/gated@v7", "no revision v7")
    hub.faults = [Fault("/api/datasets/a/gone", status=410)]
    refused(lambda: get(tmp_path, "a/gone"), "a/gone")
    assert hub.downloads() == []


# The preset slimpajama.


def preset(**options: Any) -> DataSpec:
    """The corpus of data=slimpajama with these options."""
    config = Config()
    for name, value in {**yaml.safe_load((CONF / "data" / "slimpajama.yaml").read_text()), **options}.items():
        setattr(config.data, name, value)
    return spec_of(config)


def test_the_preset_is_the_one_that_the_code_knows() -> None:
    spec = preset()
    assert (spec.repo, spec.revision) == hub_source.DEFAULT
    assert spec.fallbacks == (hub_source.SLIMPAJAMA_627B_COPY,)
    assert spec.max_bytes == hub_source.PRESET_MAX_BYTES


@pytest.mark.parametrize(
    "options",
    [
        {"repo": "roneneldan/TinyStories"},
        {"repo": "roneneldan/TinyStory", "revision": None},
        {"repo": "roneneldan/TinyStories", "revision": "0123"},
        {"revision": "0123"},
        {"config": "nothing"},
        {"split": "nothing"},
        {"source": "hub", "repo": "roneneldan/TinyStory", "revision": None, "fallbacks": [], "max_bytes": None},
    ],
)
def test_no_other_corpus_is_read_than_the_one_that_is_named(
    tmp_path: Path, hub: FakeHub, options: dict[str, Any]
) -> None:
    """The preset's revision does not exist in other repositories, and its fallback has another text."""
    hub.add("DKYoon/SlimPajama-6B", {"train.jsonl": jsonl(texts(50))})
    hub.add("gmongaras/SlimPajama-627B_Reupload", {"train.jsonl": jsonl(texts(50))})
    spec = preset(**options, tokenizer="bytes", cache_dir=str(tmp_path / "prepared"))
    with pytest.raises(UserError) as caught:
        preparing.prepare(spec, progress=False, log=lambda line: None)
    assert "\n" not in str(caught.value)
    assert options.get("repo", hub_source.DEFAULT[0]) in str(caught.value)
    assert hub.downloads() == []


def test_another_repository_is_read_as_data_hub_reads_it(tmp_path: Path, hub: FakeHub) -> None:
    hub.add("roneneldan/TinyStories", {"train.jsonl": jsonl(texts(50))})
    spec = preset(repo="roneneldan/TinyStories", tokenizer="bytes", cache_dir=str(tmp_path), validation_fraction=0.1)
    info = preparing.prepare(spec, progress=False, log=lambda line: None)
    assert info.manifest["options"]["max_bytes"] is None
    as_hub = get(tmp_path, "roneneldan/TinyStories", tokenizer="bytes")
    assert info.manifest["fingerprint"] == as_hub.manifest["fingerprint"]


def test_values_of_the_user_hold_for_any_repository() -> None:
    spec = preset(repo="a/b", revision="v2", max_bytes=7, fallbacks=["c/d"])
    assert (spec.revision, spec.max_bytes, spec.fallbacks) == ("v2", 7, ("c/d",))


def test_corpora_of_earlier_versions_keep_their_identity(tmp_path: Path) -> None:
    fallback = ["gmongaras/SlimPajama-627B_Reupload", None]
    assert make_source(preset()).identity == {"candidates": [list(hub_source.DEFAULT), fallback]}
    original = preset(repo=hub_source.SLIMPAJAMA_627B, revision=None)
    assert make_source(original).identity == {"candidates": [[hub_source.SLIMPAJAMA_627B, None], fallback]}
    assert original.max_bytes == hub_source.PRESET_MAX_BYTES
    plain = make_source(DataSpec(source="slimpajama", tokenizer="bytes"))
    assert plain.identity == {"candidates": [list(hub_source.DEFAULT)]}


def test_a_gone_preset_falls_back_and_says_so(tmp_path: Path, hub: FakeHub) -> None:
    hub.add("gmongaras/SlimPajama-627B_Reupload", {"train.jsonl": jsonl(texts(50))})
    messages: list[str] = []
    source = make_source(preset())
    origin = source.open(None, messages.append)
    assert origin["repo"] == "gmongaras/SlimPajama-627B_Reupload"
    assert len(messages) == 1
    assert messages[0].startswith("warning: DKYoon/SlimPajama-6B@b5f90f4")
    assert source.open(json.loads(json.dumps(origin)), messages.append) == origin
    assert len(messages) == 1


# The network.


def stories(hub: FakeHub) -> FakeHub:
    """Add a data set of three parquet files and one of JSON lines, each of several requests."""
    files = {f"train-{number}.parquet": parquet(texts(60, seed=number)) for number in range(3)}
    hub.add("a/stories", {**files, "validation.parquet": parquet(texts(20, seed=9))})
    hub.add("a/lines", {"train.jsonl.gz": gzip.compress(jsonl(texts(200)))})
    return hub


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several requests for each file, and several batches for each request."""
    for owner, name in ((hub_files, "LEAST_PIECE"), (hub_files, "MOST_PIECE"), (hub_files.Downloaded, "piece")):
        monkeypatch.setattr(owner, name, 8192)
    monkeypatch.setattr(preparing, "BATCH_BYTES", 1000)


FAULTS = {
    "too many requests": Fault("/cdn/", status=429, headers={"Retry-After": "0"}),
    "redirect fails": Fault("/resolve/", status=503),
    "server fails": Fault("/cdn/", status=502),
    "cut after 5000 bytes": Fault("/cdn/", after=5000),
    "cut at once": Fault("/cdn/", after=0),
}


@pytest.mark.parametrize("repo", ["a/stories", "a/lines"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_retried(
    tmp_path: Path, hub: FakeHub, small_pieces: None, repo: str, fault: str
) -> None:
    stories(hub)
    whole = get(tmp_path, repo, cache_dir=str(tmp_path / "whole"))
    hub.faults = [replace(FAULTS[fault])]
    assert get(tmp_path, repo).manifest == whole.manifest
    assert hub.faults[0].times == 0


@pytest.mark.parametrize("repo", ["a/stories", "a/lines"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_the_preparation_and_the_same_call_continues(
    tmp_path: Path, hub: FakeHub, small_pieces: None, monkeypatch: pytest.MonkeyPatch, repo: str, fault: str
) -> None:
    stories(hub)
    whole = get(tmp_path, repo, cache_dir=str(tmp_path / "whole"))
    if repo == "a/stories":
        where = FAULTS[fault].where
        hub.faults = [replace(FAULTS[fault], where="train-1" if where == "/cdn/" else where, times=10**6)]
    else:
        hub.faults = [replace(FAULTS[fault], times=10**6)]
    with pytest.raises(MachineError, match="run the same command again to continue") as caught:
        get(tmp_path, repo)
    assert "\n" not in str(caught.value)
    assert repo in str(caught.value)
    hub.faults = []
    added = added_documents(monkeypatch)
    assert get(tmp_path, repo).manifest == whole.manifest
    if repo == "a/stories" and FAULTS[fault].where == "/cdn/":
        assert sum(added) < 0.8 * sum(split["documents"] for split in whole.manifest["splits"].values())


CHILD = """
import sys
from pathlib import Path
from data import prepare
from data.sources import hub_files
from tests.data.helpers import make
hub_files.LEAST_PIECE = hub_files.MOST_PIECE = hub_files.Downloaded.piece = 8192
prepare.BATCH_BYTES, prepare.COMMIT_TOKENS = 1000, 500
make(Path(sys.argv[1]), source="hub", repo="a/stories")
"""


def test_a_preparation_killed_during_a_slow_download_continues(
    tmp_path: Path, hub: FakeHub, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories(hub)
    whole = get(tmp_path, "a/stories", cache_dir=str(tmp_path / "whole"))
    size = sum(len(content) for content in hub.repos["a/stories"].files.values())
    hub.sent, hub.bytes_per_s = 0, 60_000
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path
    )
    while hub.sent < 0.6 * size:
        assert child.poll() is None
        threading.Event().wait(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    hub.bytes_per_s = 0
    added = added_documents(monkeypatch)
    resumed = get(tmp_path, "a/stories")
    assert resumed.manifest == whole.manifest
    assert sum(added) < sum(split["documents"] for split in whole.manifest["splits"].values())


def test_requests_take_about_a_second_at_any_rate() -> None:
    for bytes_per_s in (50e3, 3e6, 20e6, 1e9):
        piece = hub_files.LEAST_PIECE
        for _ in range(20):
            piece = hub_files._next_piece(piece, piece / bytes_per_s)
        assert 0.5 <= piece / bytes_per_s <= 2 or piece in (hub_files.LEAST_PIECE, hub_files.MOST_PIECE)


def test_a_server_that_ignores_the_range_is_an_error(
    tmp_path: Path, hub: FakeHub, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories(hub)
    monkeypatch.setattr(hub, "ranges", False)
    with pytest.raises(MachineError, match="instead of 8,192"):
        get(tmp_path, "a/stories")


def test_the_size_of_each_file_is_known_without_a_request_for_it(tmp_path: Path, hub: FakeHub) -> None:
    stories(hub)
    source = make_source(DataSpec(source="hub", tokenizer="bytes", repo="a/stories"))
    source.open(None, print)
    files = hub.repos["a/stories"].files
    expected = [("validation/0", "val", "validation.parquet")]
    expected += [(f"train/{number}", "train", f"train-{number}.parquet") for number in range(3)]
    assert [(p.name, p.split, p.size) for p in source.parts()] == [(n, s, len(files[f])) for n, s, f in expected]
    assert not any("paths-info" in path for path in hub.requests)
    assert sum("/tree/" in path for path in hub.requests) <= 2


def test_bytes_are_counted_within_a_file(tmp_path: Path, hub: FakeHub, small_pieces: None) -> None:
    stories(hub)
    for repo in ("a/stories", "a/lines"):
        source = make_source(DataSpec(source="hub", tokenizer="bytes", repo=repo))
        source.open(None, print)
        for part in source.parts():
            seen = [source.consumed for _ in source.documents(part)]
            assert seen == sorted(seen)
            assert seen[-1] >= part.size / 2, part


# The command line.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "hub"}, ("data.repo is missing", "OWNER/NAME")),
        ({"source": "hub", "path": "texts"}, ("data.path=texts", "data=text")),
        ({"source": "hub", "repo": "a/b", "path": "texts"}, ("data.path=texts", "data=text")),
        ({"repo": "a/b"}, ("data.repo=a/b is ignored by data=stdlib", "data=hub")),
        ({"repo": "a/b", "config": "en"}, ("data.repo=a/b and data.config=en are ignored by data=stdlib",)),
        ({"source": "text", "path": "x.txt", "config": "en"}, ("data.config=en is ignored by data=text", "data=hub")),
        ({"source": "text", "path": "x.txt", "split": "test"}, ("data.split=test is ignored",)),
        ({"source": "slimpajama", "path": "x", "repo": "a/b"}, ("data.repo=a/b is ignored", "data.path=x")),
    ],
)
def test_options_that_nothing_would_read_are_refused(options: dict[str, Any], words: tuple[str, ...]) -> None:
    config = Config()
    config.budget.steps = 1
    for name, value in options.items():
        setattr(config.data, name, value)
    (problem,) = find_problems(config)
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    "options",
    [
        {"source": "hub", "repo": "a/b", "config": "en", "split": "test", "revision": "v1"},
        {"source": "slimpajama", "repo": "a/b", "config": "en", "split": "test"},
        {"source": "slimpajama", "repo": hub_source.DEFAULT[0], "revision": hub_source.DEFAULT[1], "path": "x"},
    ],
)
def test_options_that_are_read_are_allowed(options: dict[str, Any]) -> None:
    config = Config()
    config.budget.steps = 1
    for name, value in options.items():
        setattr(config.data, name, value)
    assert find_problems(config) == []


@pytest.mark.slow
def test_a_run_on_the_hub_over_a_slow_link_is_killed_and_continues(tmp_path: Path, hub: FakeHub) -> None:
    """What `make train DATA=hub ARGS="data.repo=... data.config=..."` runs."""
    files = {f"big/train-{number}.parquet": parquet(texts(3000, seed=number), rows=300) for number in range(9)}
    files["big/test.parquet"] = parquet(texts(100, seed=99))
    readme = card({"big": {"train": "big/train-*", "test": "big/test.parquet"}, "small": {"train": "big/test.parquet"}})
    hub.add("a/stories", {"README.md": readme, **files})
    whole = get(tmp_path, "a/stories", config="big", cache_dir=str(tmp_path / "whole"))
    tiny = [argument for argument in TINY if not argument.startswith("data")]
    options = ["data.repo=a/stories", "data.config=big", "data.tokenizer=bytes", "data.workers=1", "budget.steps=3"]
    command = [sys.executable, str(ROOT / "train.py"), "data=hub", *tiny, *options]
    setting: dict[str, Any] = {
        "cwd": tmp_path,
        "env": {**os.environ, **environment(hub, tmp_path / "other")},
        "stdout": subprocess.PIPE,
        "text": True,
    }
    hub.bytes_per_s = 300_000
    killed = subprocess.Popen(command, **setting)
    assert killed.stdout
    line = next(line for line in killed.stdout if "preparing" in line)
    killed.kill()
    killed.wait()
    assert re.search(r"\d+ %, \d+\.\d/1\d\.\d MB, \d+\.\d kB/s, .* left, [\d,]+ tokens", line), line
    hub.bytes_per_s = 0
    continued = subprocess.run(command, **setting, check=True)
    assert "continuing the preparation" in continued.stdout
    manifest = json.loads(next((tmp_path / "prepared").glob("hub-*/manifest.json")).read_text())
    assert manifest["fingerprint"] == whole.manifest["fingerprint"]
    result = json.loads(next((tmp_path / "outputs").glob("run-*/result.json")).read_text())
    assert result["spent"]["steps"] == 3
