from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken.registry
import tiktoken_ext.openai_public as public
from tokenizers import Tokenizer as Trained
from tokenizers import models, pre_tokenizers, trainers

from data import tokenizer as module
from data.tokenizer import END_OF_TEXT, Tokenizer, get_tokenizer, split_text, train_bpe, vocab_size_of
from tests.data.helpers import TIKTOKEN, needs_gpt2, refused, texts

BYTES = {bytes([i]): i for i in range(256)}
AWKWARD = {
    "empty": "",
    "blanks": " " * 1_000_000,
    "blanks, then a letter": " " * 1_000_000 + "a",
    "newlines, then a letter": "\n" * 1_000_000 + "a",
    "one long line": "lorem-ipsum," * 400_000,
    "only emoji": "😀" * 1_000_000,
    "zeros": "\0" * 1_000_000,
    "letters": "aA" * 500_000,
    "special": f"a{END_OF_TEXT}b" * 1000,
}


def bpe(size: int = 1000) -> Tokenizer:
    return train_bpe(f"bpe-{size}", iter(texts(500)))


def gpt2(monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN))
    return get_tokenizer("gpt2", None, Path("unused"), "")


def patterns() -> list[str]:
    """Return the patterns of GPT-2, cl100k and o200k, read from tiktoken without its vocabularies."""
    load, public.load_tiktoken_bpe = public.load_tiktoken_bpe, lambda *_, **__: dict(BYTES)
    try:
        return [public.r50k_pat_str, public.cl100k_base()["pat_str"], public.o200k_base()["pat_str"]]
    finally:
        public.load_tiktoken_bpe = load


def test_trained_bpe_gives_the_ids_of_the_tokenizers_library_on_a_megabyte() -> None:
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        iter(texts(500)), trainers.BpeTrainer(vocab_size=999, initial_alphabet=alphabet, show_progress=False)
    )
    text = "".join(texts(2000, seed=1)) + "\t x  y\r\n\r\n don't   \x00 ﬁ " * 3
    assert len(text.encode()) > 1_000_000
    ours = bpe()
    assert ours.encode(text).tolist() == trained.encode(text).ids
    assert (ours.n_vocab, ours.eot, ours.dtype) == (1000, 999, np.uint16)


@needs_gpt2
def test_gpt2_is_that_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = gpt2(monkeypatch)
    text = "".join(texts(3000, seed=2))
    assert ours.encode(text).tolist() == tiktoken.get_encoding("gpt2").encode_ordinary(text)
    assert (ours.n_vocab, ours.eot) == (50257, 50256)


@pytest.mark.parametrize("pattern", patterns(), ids=["gpt2", "cl100k", "o200k"])
def test_splitting_a_long_text_does_not_change_its_ids(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = BYTES | {pair.encode(): 256 + i for i, pair in enumerate(["th", "he", " t", "\n\n", "  ", "12"])}
    ours = Tokenizer("x", ranks, pattern, {END_OF_TEXT: 300})
    text = "".join(t + " " * (i % 4) + "\n" * (i % 3) + "x;/ \r\n\t é" for i, t in enumerate(texts(60)))
    whole = ours._encoding.encode_ordinary(text)
    for piece in (1, 7, 50):
        monkeypatch.setattr(module, "PIECE", piece)
        assert len(list(split_text(text))) > len(text) / (piece + 100)
        assert "".join(split_text(text)) == text
        assert ours.encode(text).tolist() == whole


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_texts_come_back_whole(text: str) -> None:
    for pattern in patterns():
        ours = Tokenizer("x", BYTES | {b"ab": 256}, pattern, {END_OF_TEXT: 257})
        ids = ours.encode(text)
        assert ours.decode(ids) == text
        assert ours.token_bytes[ids].sum() == len(text.encode())
        assert ours.eot not in ids


def test_lone_surrogates_become_replacement_characters() -> None:
    for ours in (bpe(), get_tokenizer("bytes", None, Path(), "")):
        assert ours.decode(ours.encode("a\ud800b")) == "a�b"


def test_bytes() -> None:
    ours = get_tokenizer("bytes", None, Path(), "")
    assert ours.encode("é\n").tolist() == [0xC3, 0xA9, 10]
    assert (ours.n_vocab, ours.eot) == (257, 256)
    assert ours.token_bytes.tolist() == [1] * 256 + [0]


def test_saved_and_loaded_is_the_same_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    for ours in (bpe(), get_tokenizer("bytes", None, Path(), "")):
        ours.save(tmp_path / "t.json")
        loaded = Tokenizer.load(tmp_path / "t.json")
        text = "".join(texts(50, seed=3))
        assert loaded.encode(text).tolist() == ours.encode(text).tolist()
        for attribute in ("fingerprint", "n_vocab", "eot", "name"):
            assert getattr(loaded, attribute) == getattr(ours, attribute)
    assert bpe(600).fingerprint != bpe(601).fingerprint


def test_training_is_deterministic_across_processes() -> None:
    code = "from tests.data.test_tokenizer import bpe; print(bpe().fingerprint)"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True
        ).stdout
        for seed in (1, 2)
    }
    assert runs == {bpe().fingerprint + "\n"}


def test_a_trained_tokenizer_is_kept(tmp_path: Path) -> None:
    calls = []

    def sample() -> object:
        calls.append(1)
        return iter(texts(100))

    first = get_tokenizer("bpe-400", sample, tmp_path, "key")  # type: ignore[arg-type]
    second = get_tokenizer("bpe-400", sample, tmp_path, "key")  # type: ignore[arg-type]
    assert first.fingerprint == second.fingerprint
    assert len(calls) == 1


def test_all_ids_below_the_last_are_used_and_the_last_is_end_of_text() -> None:
    ours = bpe(320)
    assert (ours.n_vocab, ours.eot) == (320, 319)
    assert (ours.token_bytes[:319] > 0).all()
    assert ours.token_bytes[319] == 0


def test_text_that_overflows_the_pattern_is_cut_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIECE", 10_000_000)
    ours = Tokenizer("x", BYTES, public.r50k_pat_str, {END_OF_TEXT: 256})
    text = " " * 1_000_000 + "a"
    with pytest.raises(ValueError, match="stack"):
        ours._encoding.encode_to_numpy(text, disallowed_special=())
    assert ours.decode(ours.encode(text)) == text


def test_a_tiny_corpus_still_gives_the_size_asked_for() -> None:
    ours = train_bpe("bpe-5000", iter(["ab ab ab"]))
    assert (ours.n_vocab, ours.eot, len(ours.token_bytes)) == (5000, 4999, 5000)
    assert ours.decode([4000, *ours.encode("ab")]) == "ab"


@pytest.mark.parametrize("name", ["bpe-299", "bpe-", "bpe-x", "bpe--5", "bpe-1e4"])
def test_impossible_bpe_sizes(name: str) -> None:
    refused(lambda: get_tokenizer(name, None, Path(), ""), name, "300")
    refused(lambda: vocab_size_of(name), name)


def test_unknown_name_suggests_close_ones() -> None:
    refused(lambda: get_tokenizer("gtp2", None, Path(), ""), "gtp2", "did you mean gpt2", "bpe-N")


def test_vocabulary_sizes_without_a_download() -> None:
    sizes = {"gpt2": 50257, "cl100k_base": 100277, "o200k_base": 200019, "bytes": 257, "bpe-777": 777, "else": None}
    assert {name: vocab_size_of(name) for name in sizes} == sizes


def test_missing_tiktoken_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", no_network)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    call = lambda: get_tokenizer("gpt2", None, tmp_path, "")  # noqa: E731
    message = refused(call, "TIKTOKEN_CACHE_DIR", "bpe-4096", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")
    if TIKTOKEN.is_dir():
        assert all(name in message or name.startswith("0ea1e9") for name in (path.name for path in TIKTOKEN.iterdir()))


def test_a_signal_is_handled_while_a_library_trains() -> None:
    """Python runs no signal handler during a library call, and training BPE is one call of a minute."""
    finished = list[bool]()

    def work() -> None:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)  # seconds in one call of C
        finished.append(True)

    def heard(number: int, frame: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGUSR1, heard)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(InterruptedError):
            module._run_interruptibly(work)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not finished
    with pytest.raises(ZeroDivisionError):
        module._run_interruptibly(lambda: 1 // 0)
