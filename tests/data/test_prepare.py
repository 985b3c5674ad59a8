from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checksum import add_checksum
from common.errors import MachineError
from data import prepare as module
from data.shard_writer import State, Writer, load_state
from data.shards import open_corpus, validation_text
from data.sources import by_place
from data.sources.base import DataSpec
from data.splits import digest_of, split_of
from data.tokenizers.sample import sample_texts
from data.tokenizers.tokenizer import get_tokenizer
from tests.data.helpers import (
    CORPUS,
    TIKTOKEN,
    added_documents,
    contents,
    make,
    needs_corpus,
    needs_gpt2,
    refused,
    texts,
    write_jsonl,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits, so that little text gives many batches, commits and shards."""
    monkeypatch.setattr(module, "BATCH_BYTES", 3000)
    monkeypatch.setattr(module, "COMMIT_TOKENS", 4000)
    monkeypatch.setattr(module, "SHARD_TOKENS", 8_000)


def corpus_of(tmp_path: Path) -> Path:
    """Write four files, with some texts that are in two of them."""
    for number in range(4):
        write_jsonl(tmp_path / "corpus" / f"{number}.jsonl.zst", texts(80, seed=number // 2) + texts(20, seed=number))
    return tmp_path / "corpus"


def naive(paths: list[str], tokenizer: Any, fraction: float) -> dict[str, list[int]]:
    """Prepare in a plain loop, for comparison."""
    seen: set[str] = set()
    out: dict[str, list[int]] = {"train": [], "val": []}
    for text in paths:
        if text not in seen:
            seen.add(text)
            out[split_of(digest_of(text.encode()), fraction)] += [*tokenizer.encode(text).tolist(), tokenizer.eot]
    return out


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-500"])
def test_shards_equal_a_naive_loop(tmp_path: Path, small: None, workers: int, tokenizer: str) -> None:
    everything = [t for n in range(4) for t in texts(80, seed=n // 2) + texts(20, seed=n)]
    info = make(tmp_path, corpus_of(tmp_path), tokenizer=tokenizer, workers=workers)
    corpus = open_corpus(info.folder)
    expected = naive(everything, corpus.tokenizer, 0.1)
    for split in (corpus.train, corpus.val):
        assert np.concatenate(split.shards).tolist() == expected[split.name]
    assert len(corpus.train.shards) > 2
    assert info.manifest["duplicates_dropped"] == len(everything) - len(set(everything))
    sizes = info.manifest["splits"]
    assert sizes["train"]["bytes"] + sizes["val"]["bytes"] == sum(len(t.encode()) for t in set(everything))


def test_a_finished_corpus_is_reused_and_options_separate_corpora(tmp_path: Path) -> None:
    path = corpus_of(tmp_path)
    first = make(tmp_path, path)
    again = make(tmp_path, path)
    assert (first.fresh, again.fresh) == (True, False)
    assert again.manifest == first.manifest
    assert make(tmp_path, path, workers=1).folder == first.folder
    others = [{"tokenizer": "bpe-300"}, {"validation_fraction": 0.2}, {"bad_documents": "skip"}, {"max_bytes": 9999}]
    assert len({make(tmp_path, path, **options).folder for options in others} | {first.folder}) == 5
    write_jsonl(path / "0.jsonl.zst", ["changed"])
    assert make(tmp_path, path).folder != first.folder


def test_the_fingerprint_of_a_text_is_the_same_for_every_tokenizer(tmp_path: Path, small: None) -> None:
    path = corpus_of(tmp_path)
    held_out = [t for n in range(4) for t in texts(80, seed=n // 2) + texts(20, seed=n)]
    expected = ""
    for text in dict.fromkeys(held_out):
        if split_of(digest_of(text.encode()), 0.1) == "val":
            expected = hashlib.sha256(expected.encode() + digest_of(text.encode())).hexdigest()
    records = [
        validation_text(make(tmp_path, path, **options).manifest)
        for options in ({"tokenizer": "bytes"}, {"tokenizer": "bpe-300", "workers": 1}, {"validation_fraction": 0.2})
    ]
    assert [record["text_fingerprint"] == expected for record in records] == [True, True, False]
    assert [record["text_source"] == records[0]["text_source"] for record in records] == [True, True, False]
    assert records[0]["validation_bytes"] == records[1]["validation_bytes"]


def test_a_corpus_of_an_earlier_version_has_no_fingerprint_of_its_text(tmp_path: Path) -> None:
    manifest = make(tmp_path, corpus_of(tmp_path)).manifest
    now = validation_text(manifest)
    del manifest["text_fingerprints"]
    assert validation_text(manifest) == now | {"text_fingerprint": None}


def test_a_preparation_that_an_earlier_version_began_has_no_fingerprint_of_its_text(tmp_path: Path) -> None:
    """It would be of the rest of the documents."""
    db = sqlite3.connect(tmp_path / "state.sqlite")
    db.execute("CREATE TABLE state (id INTEGER PRIMARY KEY, content TEXT)")
    content = {key: value for key, value in vars(State()).items() if key != "texts"}
    db.execute("INSERT INTO state VALUES (0, ?)", (json.dumps(add_checksum(content)),))
    assert load_state(db).texts == {}


def test_no_temporary_files_are_left(tmp_path: Path, small: None) -> None:
    folder = make(tmp_path, corpus_of(tmp_path)).folder
    listed = {shard["file"] for shard in json.loads((folder / "manifest.json").read_text())["shards"]}
    tables = {name.replace(".bin", ".docs.npy") for name in listed}
    assert {path.name for path in folder.iterdir()} == listed | tables | {"manifest.json", "tokenizer.json"}


# ------------------------------------------------------------------------------------------------ killed and resumed


def survives(event: int, tmp_path: Path, path: Path, cache: str, **options: Any) -> bool:
    """Prepare in a forked process that is killed at the `event`-th operation; return whether it ended before that."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at(event)
            make(tmp_path, path, cache_dir=cache, **options)
        finally:
            os._exit(0)
    return os.WIFEXITED(os.waitpid(pid, 0)[1])


def die_at(event: int) -> None:
    """Send SIGKILL before or after the `event`-th operation on the disk."""
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            tick()
            result = call(*arguments, **options)
            tick()
            return result

        return wrapper

    os.fsync = watched(os.fsync)
    for owner, names in (
        (Path, ("rename", "replace", "unlink")),
        (Writer, ("add", "remember", "commit", "finish_shard")),
    ):
        for name in names:
            setattr(owner, name, watched(getattr(owner, name)))


def test_killed_at_any_moment_and_resumed_it_is_the_same_to_the_byte(tmp_path: Path, small: None) -> None:
    path = corpus_of(tmp_path)
    whole = contents(make(tmp_path, path, cache_dir=str(tmp_path / "whole")).folder)
    rng = random.Random(0)
    for trial in range(12):
        cache = str(tmp_path / f"cut{trial}")
        kills = 0
        for _ in range(200):
            if survives(rng.randint(1, 150), tmp_path, path, cache):
                break
            kills += 1
        info = make(tmp_path, path, cache_dir=cache)
        assert contents(info.folder) == whole
        assert kills > 1


def test_a_kill_at_any_operation_of_the_end_is_survived(tmp_path: Path, small: None) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", texts(12))
    whole = contents(make(tmp_path, path, cache_dir=str(tmp_path / "whole")).folder)
    for event in range(1, 400):
        cache = str(tmp_path / f"cut{event}")
        survived = survives(event, tmp_path, path, cache)
        assert contents(make(tmp_path, path, cache_dir=cache).folder) == whole
        if survived:
            break
    assert 20 < event < 399


def test_killed_from_outside(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", texts(20_000, longest=150))
    whole = contents(make(tmp_path, path, cache_dir=str(tmp_path / "whole")).folder)
    code = (
        "from data import prepare as m; from tests.data.helpers import *; from pathlib import Path; import sys\n"
        "m.COMMIT_TOKENS = 50_000; print('go', flush=True)\n"
        "make(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    for delay in (0.05, 0.15, 0.3):
        child = subprocess.Popen([sys.executable, "-c", code, tmp_path, path], cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
    assert contents(make(tmp_path, path).folder) == whole


def test_resuming_does_not_encode_again(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus_of(tmp_path)
    splits = make(tmp_path, path, cache_dir=str(tmp_path / "whole")).manifest["splits"].values()
    total = sum(split["documents"] for split in splits)
    real = Writer.commit

    def breaking(self: Writer) -> None:
        real(self)
        if self.state.total("train", 0) > 150:
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "commit", breaking)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, path)
    monkeypatch.setattr(Writer, "commit", real)
    added = added_documents(monkeypatch)
    make(tmp_path, path)
    assert 0 < sum(added) <= total - 150


# -------------------------------------------------------------------------------------------------- faults and limits


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_what_was_committed(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = corpus_of(tmp_path)
    whole = contents(make(tmp_path, path, cache_dir=str(tmp_path / "whole")).folder)
    real, calls = Writer._append, 0

    def full(self: Writer, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise OSError(code, os.strerror(code))
        real(self, *arguments)

    monkeypatch.setattr(Writer, "_append", full)
    with pytest.raises(MachineError, match="run the same command again") as caught:
        make(tmp_path, path)
    assert "\n" not in str(caught.value)
    assert contents(make(tmp_path, path).folder) == whole


def test_a_full_database_is_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Writer, digests: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Writer, "remember", full)
    with pytest.raises(MachineError, match="is full"):
        make(tmp_path, corpus_of(tmp_path))


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/there")

    path = write_jsonl(tmp_path / "a.jsonl", texts(9))
    monkeypatch.setattr(Path, "mkdir", denied)
    refused(lambda: make(tmp_path, path), "/there", "data.cache_dir")


def test_two_processes_prepare_one_corpus(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus_of(tmp_path)
    messages: list[str] = []
    infos: list[module.PreparedInfo] = []
    spec = DataSpec(
        source="text", path=str(path), tokenizer="bytes", validation_fraction=0.1, cache_dir=str(tmp_path / "p")
    )
    inside, go = threading.Event(), threading.Event()
    real = Writer.commit

    def slow(self: Writer) -> None:
        inside.set()
        go.wait(20)
        real(self)

    def waits(line: str) -> None:
        messages.append(line)
        go.set()

    monkeypatch.setattr(Writer, "commit", slow)
    first = threading.Thread(target=lambda: infos.append(module.prepare(spec, False, lambda line: None)))
    first.start()
    assert inside.wait(20)
    infos.append(module.prepare(spec, False, waits))
    first.join()
    assert sorted(info.fresh for info in infos) == [False, True]
    assert len(messages) == 1
    assert "waiting" in messages[0]


def test_a_bad_line_keeps_what_was_read_before(tmp_path: Path, small: None) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", texts(100))
    path.write_bytes(path.read_bytes() + b"oops\n")
    refused(lambda: make(tmp_path, path), "a.jsonl:101")
    db = sqlite3.connect(next((tmp_path / "prepared").glob("text-*/state.sqlite")))
    assert json.loads(db.execute("SELECT content FROM state").fetchone()[0])["record"] > 80


@pytest.mark.parametrize(
    ("lines", "fraction", "words"),
    [
        ([], 0.5, ("no text",)),
        (["", ""], 0.5, ("no text",)),
        (["a"], 1e-9, ("is in train", "give more text")),  # a single character
    ],
)
def test_empty_splits_are_refused(tmp_path: Path, lines: list[str], fraction: float, words: tuple[str, ...]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    for _ in range(2):
        refused(lambda: make(tmp_path, path, validation_fraction=fraction), *words)
    assert not list((tmp_path / "prepared").glob("text-*/"))


# ------------------------------------------------------------------------------------- too few documents for the hash


def split_texts(info: module.PreparedInfo) -> tuple[str, str]:
    """Return the training and the validation text without separators."""
    corpus = open_corpus(info.folder)
    train, val = (
        corpus.tokenizer.decode(np.concatenate(split.shards)).replace("<|endoftext|>", "")
        for split in (corpus.train, corpus.val)
    )
    return train, val


def books(folder: Path, number: int = 5) -> list[str]:
    """Write some long texts as files, and return them."""
    written = ["".join(texts(40, seed)) for seed in range(number)]
    for seed, text in enumerate(written):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{seed}.txt").write_text(text)
    return written


@pytest.mark.parametrize("fraction", [0.01, 0.02, 0.3])
@pytest.mark.parametrize("form", ["gz", "jsonl", "books"])
def test_few_documents_are_split_by_place(tmp_path: Path, form: str, fraction: float) -> None:
    text = "".join(texts(200))
    path = tmp_path / f"a.{form}"
    if form == "gz":
        path = tmp_path / "a.txt.gz"
        path.write_bytes(gzip.compress(text.encode()))
    elif form == "jsonl":
        write_jsonl(path, [text])
    else:
        text = "".join(books(path, 3))
        fraction = min(fraction, 0.02)  # a larger one may give the hash a book
    info = make(tmp_path, path, validation_fraction=fraction)
    train, val = split_texts(info)
    assert train + val == text
    assert train.endswith("\n") or "\n" not in val[:-1]
    longest = max(len(line.encode()) for line in text.splitlines(True))
    assert fraction * len(text.encode()) - longest <= len(val.encode()) <= round(fraction * len(text.encode()))
    assert info.manifest["read"]["validation_from"] == "end of the text"


def test_a_split_by_place_may_hold_out_whole_documents(tmp_path: Path) -> None:
    rows = [f"{n:02} document\n" for n in range(20)]
    fraction = 0.2
    assert {split_of(digest_of(row.encode()), fraction) for row in rows} == {"train", "val"}
    assert make(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=fraction).left_out == {}
    few = [row for row in rows if split_of(digest_of(row.encode()), fraction) == "train"][:10]
    # 10 equal sizes: the last two are held out; repeated and empty documents count for nothing, also at the end
    rows = [*few[:9], "", few[0], few[9], few[1], ""]
    info = make(tmp_path, write_jsonl(tmp_path / "b.jsonl", rows), validation_fraction=fraction)
    corpus = open_corpus(info.folder)
    assert corpus.tokenizer.decode(np.concatenate(corpus.val.shards)) == "<|endoftext|>".join([*few[8:], ""])
    assert info.left_out == {"duplicate": 2, "empty": 2}


def test_a_document_that_is_cut_and_comes_again_is_not_in_both_splits(tmp_path: Path) -> None:
    book, end = "".join(f"line {n}\n" for n in range(1000)), "the end\n"
    info = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", [book, "short\n", book, end]), validation_fraction=0.01)
    train, val = split_texts(info)
    assert train + val == book + "short\n" + end
    assert info.left_out == {"duplicate": 1}


def test_max_bytes_that_leaves_few_documents_splits_them_by_place(tmp_path: Path) -> None:
    rows = texts(300)
    size, first = 0, []
    for row in dict.fromkeys(rows):
        first.append(row)
        size += len(row.encode())
        if size >= 5000:
            break
    assert {split_of(digest_of(row.encode()), 0.01) for row in first} == {"train"}
    info = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=0.01, max_bytes=5000)
    train, val = split_texts(info)
    assert train + val == "".join(first)
    assert val
    assert info.cut


def test_many_documents_are_not_split_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_place, "MOST_DOCUMENTS", 5)
    path = write_jsonl(tmp_path / "a.jsonl", texts(20))
    for fraction, words in ((1e-9, "a larger data.validation_fraction"), (1 - 1e-9, "a smaller data.validation_")):
        refused(lambda: make(tmp_path, path, validation_fraction=fraction), "none of 19 documents", words)  # noqa: B023
    assert not list((tmp_path / "prepared").glob("text-*/"))


def test_a_tokenizer_of_few_documents_sees_training_text_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[str] = []
    real = module.sample_texts

    def watched(*arguments: Any) -> Any:
        for piece in real(*arguments):
            sampled.append(piece)
            yield piece

    monkeypatch.setattr(module, "sample_texts", watched)
    rows = [f"{'the same words ' * 300}{n}\n" * 3 for n in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, "never read"])
    limit = sum(len(row) for row in rows)
    info = make(tmp_path, path, tokenizer="bpe-300", validation_fraction=0.2, max_bytes=limit)
    train, val = split_texts(info)
    assert (train + val, "".join(sampled)) == ("".join(rows), train)
    sampled.clear()  # less text has a tokenizer of its own
    train, _ = split_texts(make(tmp_path, path, tokenizer="bpe-300", validation_fraction=0.2, max_bytes=limit // 3))
    assert "".join(sampled) == train


def test_killed_while_splitting_by_place_and_resumed_it_is_the_same_to_the_byte(tmp_path: Path, small: None) -> None:
    books(tmp_path / "books", 6)
    (tmp_path / "books" / "7.txt").write_text("".join(texts(40, 0)))  # a duplicate
    whole = contents(make(tmp_path, tmp_path / "books", validation_fraction=0.02, cache_dir=str(tmp_path / "w")).folder)
    assert json.loads(whole["manifest.json"])["read"]["validation_from"] == "end of the text"
    rng = random.Random(0)
    for trial in range(6):
        cache, kills = str(tmp_path / f"cut{trial}"), 0
        while not survives(rng.randint(1, 60), tmp_path, tmp_path / "books", cache, validation_fraction=0.02):
            kills += 1
            assert kills < 200
        assert contents(make(tmp_path, tmp_path / "books", validation_fraction=0.02, cache_dir=cache).folder) == whole
        assert kills


def test_a_split_by_place_holds_for_any_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    text = "".join(texts(100))
    write_jsonl(tmp_path / "repo" / "train.jsonl", [text])
    train, val = split_texts(make(tmp_path, source="slimpajama", repo=str(tmp_path / "repo"), validation_fraction=0.01))
    assert train + val == text
    assert val


def test_max_bytes(tmp_path: Path) -> None:
    limited = make(tmp_path, corpus_of(tmp_path), max_bytes=20_000).manifest["splits"]
    total = limited["train"]["bytes"] + limited["val"]["bytes"]
    assert 20_000 <= total < 23_000
    assert make(tmp_path, corpus_of(tmp_path), max_bytes=20_000).cut
    assert not make(tmp_path, corpus_of(tmp_path), max_bytes=10**9).cut
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "pajama" / split / "a.jsonl", texts(100, seed=len(split)))
    own = make(tmp_path, tmp_path / "pajama", source="slimpajama", max_bytes=20_000).manifest["splits"]
    assert 2000 <= own["val"]["bytes"] < 5000
    assert 20_000 <= own["train"]["bytes"] + own["val"]["bytes"] < 23_000


def test_the_tokenizer_is_trained_on_training_text_only(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", texts(300))
    source = module.make_source(DataSpec(source="text", path=str(path), tokenizer="bytes"))
    sampled = list(sample_texts(source, source.parts(), 0.3))
    assert sampled == list(sample_texts(source, source.parts(), 0.3))
    assert sampled == [t for t in texts(300) if split_of(digest_of(t.encode()), 0.3) == "train"]


def test_the_sample_is_bounded_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.tokenizers.sample.SAMPLE_BYTES", 60_000)
    monkeypatch.setattr("data.tokenizers.sample.PIECE_CHARACTERS", 100)
    for number in range(6):
        write_jsonl(tmp_path / "c" / f"{number}.jsonl", [f"{number} {t}" * 20 for t in texts(60, seed=number)])
    source = module.make_source(DataSpec(source="text", path=str(tmp_path / "c"), tokenizer="bytes"))
    sampled = list(sample_texts(source, source.parts(), 0.01))
    size = sum(len(piece.encode()) for piece in sampled)
    assert 5000 < size <= 60_000
    for part in source.parts():
        text = "".join(document.text for document in source.documents(part) if document)
        assert any(piece in text for piece in sampled)


def test_progress_is_logged_without_a_terminal(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.progress.BYTES_PER_LINE", 1000)
    messages: list[str] = []
    spec = DataSpec(source="text", path=str(corpus_of(tmp_path)), tokenizer="bytes", cache_dir=str(tmp_path / "p"))
    module.prepare(spec, True, messages.append)
    assert 2 < len(messages) < 12
    assert "100 %" in messages[-1]
    assert all("tokens" in line for line in messages)


# ------------------------------------------------------------------------------------------------------- real corpora


@needs_corpus
@needs_gpt2
def test_gpt2_shards_of_real_text_equal_a_naive_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN))
    corpus = open_corpus(make(tmp_path, CORPUS / "validation", tokenizer="gpt2").folder)
    from data.files.readers import read_documents

    tokenizer = get_tokenizer("gpt2", None, tmp_path, "")
    expected = naive([d.text for d in read_documents(CORPUS / "validation")], tokenizer, 0.1)
    for split in (corpus.train, corpus.val):
        assert np.array_equal(np.concatenate(split.shards), np.array(expected[split.name]))


@needs_corpus
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    code = (
        "from tests.data.helpers import *; from pathlib import Path; import sys, resource\n"
        "make(Path(sys.argv[1]), Path(sys.argv[2]), source='slimpajama', validation_fraction=0.01, "
        "max_bytes=int(sys.argv[3]) or None)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for limit in (20_000_000, 0):
        command = [sys.executable, "-c", code, tmp_path, CORPUS, str(limit)]
        peaks.append(int(subprocess.check_output(command, cwd=ROOT)) / 1024)
    assert peaks[1] - peaks[0] < 300, peaks
