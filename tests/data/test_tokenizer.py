from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tiktoken.registry
import tiktoken_ext.openai_public as public
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data.corpus import load_corpus
from data.shards import open_corpus
from data.sources.base import DataSpec
from data.tokenizers import tokenizer as module
from data.tokenizers.byte_bpe import ByteBpe
from data.tokenizers.hf_tokenizer import BYTE_OF
from data.tokenizers.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    check_name,
    get_tokenizer,
    is_trained,
    split_text,
    tokenizer_key,
    train_bpe,
    vocab_size_of,
)
from tests.data.helpers import TIKTOKEN, make, needs_gpt2, refused, texts, write_jsonl

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
    ours = Tokenizer("x", ByteBpe(ranks, pattern, {END_OF_TEXT: 300}))
    text = "".join(t + " " * (i % 4) + "\n" * (i % 3) + "x;/ \r\n\t é" for i, t in enumerate(texts(60)))
    whole = ours._codec._encoding.encode_ordinary(text)
    for piece in (1, 7, 50):
        monkeypatch.setattr(module, "PIECE", piece)
        assert len(list(split_text(text))) > len(text) / (piece + 100)
        assert "".join(split_text(text)) == text
        assert ours.encode(text).tolist() == whole


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_texts_come_back_whole(text: str) -> None:
    for pattern in patterns():
        ours = Tokenizer("x", ByteBpe(BYTES | {b"ab": 256}, pattern, {END_OF_TEXT: 257}))
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
    ours = Tokenizer("x", ByteBpe(BYTES, public.r50k_pat_str, {END_OF_TEXT: 256}))
    text = " " * 1_000_000 + "a"
    with pytest.raises(ValueError, match="stack"):
        ours._codec._encoding.encode_to_numpy(text, disallowed_special=())
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


# Tokenizers of Hugging Face's library.

SPECIALS = ["<|endoftext|>", "<|im_start|>"]


def byte_level(**options: Any) -> Trained:
    """A tokenizer.json like GPT-2's, trained on a little text."""
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})
    trained.decoder = decoders.ByteLevel()
    trained.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    trained.train_from_iterator(iter(texts(300)), trainer)
    trained.enable_truncation(4)
    return trained


def sentencepiece() -> Trained:
    """A tokenizer.json like Llama's: U+2581 for spaces, and bytes for characters without a token."""
    characters = sorted({c for text in texts(300) for c in text if c.isalnum() and c.isascii()} | set("▁-'()>_."))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *characters, "▁t", "▁th", "▁the", "es"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("e", "s")]
    trained = Trained(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    trained.decoder = decoders.Sequence(parts)
    trained.add_special_tokens(["<unk>", "<s>", "</s>"])
    return trained


def word_piece() -> Trained:
    """A tokenizer.json like BERT's: lower case, no spaces, [UNK]."""
    trained = Trained(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trained.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    trained.train_from_iterator(iter(texts(300)), trainer)
    return trained


def unigram() -> Trained:
    """A tokenizer.json like XLM-RoBERTa's: Unigram, and spaces put in by the pre-tokenizer."""
    trained = Trained(models.Unigram())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(iter(texts(300)), trainer)
    return trained


def write_tokenizer(folder: Path, trained: Trained, **config: Any) -> str:
    """Write tokenizer.json and, with options, tokenizer_config.json. Returns the value of data.tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def read(name: str) -> Tokenizer:
    return get_tokenizer(name, None, Path("unused"), "")


SAMPLE = "".join(texts(300, seed=5)) + "\t x  y\r\n\r\n don't   \x00 ﬁ <|endoftext|> Zürich "


@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram, word_piece])
def test_ids_and_text_are_those_of_transformers(tmp_path: Path, make: Callable[[], Trained]) -> None:
    name = write_tokenizer(tmp_path / "mine", make())
    theirs = PreTrainedTokenizerFast(tokenizer_file=f"{name}/tokenizer.json")
    ours, text = read(name), "".join(texts(40, seed=4))
    ids = theirs.encode(text, add_special_tokens=False, truncation=False)
    assert ours.encode(text).tolist() == ids
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.decode(ids[5:9], after=ids[:5]) == ours.decode(ids[:9]).removeprefix(ours.decode(ids[:5]))


def test_a_byte_level_file_gives_the_ids_of_tiktoken(tmp_path: Path) -> None:
    trained = byte_level()
    ours = read(write_tokenizer(tmp_path / "mine", trained))
    ranks = {
        bytes(BYTE_OF[c] for c in token): rank for token, rank in trained.get_vocab().items() if token not in SPECIALS
    }
    theirs = tiktoken.Encoding("mine", pat_str=public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    assert ours.encode(SAMPLE).tolist() == theirs.encode_ordinary(SAMPLE)
    assert ours.token_bytes.tolist() == [len(theirs.decode_bytes([i])) if i > 1 else 0 for i in range(600)]
    assert (ours.n_vocab, ours.eot, ours.dtype, ours.exact) == (600, 0, np.uint16, True)


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_texts_come_back_whole_from_a_byte_level_file(tmp_path: Path, text: str) -> None:
    ours = read(write_tokenizer(tmp_path / "mine", byte_level()))
    ids = ours.encode(text[:300_000])
    assert ours.decode(ids) == text[:300_000]
    assert ours.token_bytes[ids].sum() == len(text[:300_000].encode())
    assert ours.eot not in ids


def test_a_model_without_an_unknown_token_has_no_token_of_0_bytes(tmp_path: Path) -> None:
    """The name of no token is None, which is a word of Python and of GPT-2's vocabulary."""
    (tmp_path / "t.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": {"None": 0, "</s>": 1}, "merges": []}})
    )
    assert read(f"{tmp_path}/t.json").token_bytes.tolist() == [4, 0]


def test_bytes_of_sentencepiece_are_those_of_the_text_and_one_space(tmp_path: Path) -> None:
    ours = read(write_tokenizer(tmp_path / "mine", sentencepiece()))
    ids = ours.encode(SAMPLE)
    assert ours.exact
    assert ours.token_bytes[ids].sum() == len(SAMPLE.encode()) + 1
    assert ours.decode(ids) == SAMPLE
    assert ours.encode("a</s>b").tolist().count(ours.eot) == 0


def test_bytes_of_word_pieces_are_nearly_those_of_the_text(tmp_path: Path) -> None:
    ours = read(write_tokenizer(tmp_path / "mine", word_piece()))
    text = "The stone walks. A river sings a mountain, and it's 345 of the stone."
    assert abs(ours.token_bytes[ours.encode(text)].sum() - len(text.encode())) <= 2
    assert not ours.exact


@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram, word_piece])
def test_cutting_a_long_text_does_not_change_the_ids_of_a_file(
    tmp_path: Path, make: Callable[[], Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = read(write_tokenizer(tmp_path / "mine", make()))
    whole = ours.encode(SAMPLE).tolist()
    monkeypatch.setattr(module, "PIECE", 50)
    assert ours.encode(SAMPLE).tolist() == whole


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_a_file_saved_and_loaded_is_the_same(tmp_path: Path, make: Callable[[], Trained]) -> None:
    ours = read(write_tokenizer(tmp_path / "My model (v2)", make()))
    assert re.fullmatch(r"My_model_v2_-[0-9a-f]{8}", ours.name)
    ours.save(tmp_path / "saved.json")
    for again in (Tokenizer.load(tmp_path / "saved.json"), read(str(tmp_path / "saved.json"))):
        assert (again.name, again.fingerprint, again.eot) == (ours.name, ours.fingerprint, ours.eot)
        assert again.encode(SAMPLE).tolist() == ours.encode(SAMPLE).tolist()
        assert again.token_bytes.tolist() == ours.token_bytes.tolist()


def test_stints_own_file_is_a_tokenizer_too(tmp_path: Path) -> None:
    bpe(600).save(tmp_path / "tokenizer.json")
    again = read(str(tmp_path))
    assert re.fullmatch(r"bpe-600-[0-9a-f]{8}", again.name)
    assert again.encode(SAMPLE).tolist() == bpe(600).encode(SAMPLE).tolist()
    assert vocab_size_of(str(tmp_path / "tokenizer.json")) == 600


def test_names_and_fingerprints_tell_files_apart_but_not_folders(tmp_path: Path) -> None:
    first, copy = (write_tokenizer(tmp_path / place / "mine", byte_level()) for place in "ab")
    other = write_tokenizer(tmp_path / "c" / "mine", byte_level(use_regex=False))
    assert read(first).name == read(copy).name != read(other).name
    assert tokenizer_key(first) == tokenizer_key(copy) != tokenizer_key(other)
    assert tokenizer_key("gpt2") == "gpt2"


@pytest.mark.parametrize(
    ("config", "eot"),
    [
        ({}, "<|endoftext|>"),
        ({"eos_token": "<|im_start|>"}, "<|im_start|>"),
        ({"eos_token": {"content": "<|im_start|>", "special": True}}, "<|im_start|>"),
        ({"eos_token": None}, "<|endoftext|>"),
    ],
)
def test_end_of_text_is_that_of_the_config(tmp_path: Path, config: dict[str, Any], eot: str) -> None:
    ours = read(write_tokenizer(tmp_path / "mine", byte_level(), **config))
    assert ours.decode([ours.eot]) == eot


def test_a_file_without_end_of_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    Trained(models.BPE({"a": 0}, [])).save(str(path))
    refused(lambda: read(str(path)), "mine.json", "no end-of-text token", "eos_token", "tokenizer_config.json")
    name = write_tokenizer(tmp_path / "b", byte_level(), eos_token="<eos>")
    refused(lambda: read(name), "'<eos>' is not in its vocabulary")


def test_a_path_that_is_no_tokenizer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: read(f"{tmp_path}/nothing.json"), "no file", "nothing.json", "OWNER/NAME")
    refused(lambda: check_name(f"{tmp_path}/a/b"), "no file")
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    refused(lambda: read(str(tmp_path)), "tokenizer.model", "save_pretrained")
    (tmp_path / "list.json").write_text("[1]")
    refused(lambda: read(f"{tmp_path}/list.json"), "list.json", "not a usable tokenizer.json")
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "mine", byte_level())
    refused(lambda: check_name("mine"), "did you mean ./mine")
    assert read("./mine").name == read("mine/").name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hub on 127.0.0.1 that serves the files of a folder, with an empty cache."""
    folder = tmp_path / "hub"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            repo, _, file = self.path.strip("/").partition("/resolve/main/")
            path = folder / repo / file
            if repo == "me/gated":
                self.send_response(403)
                self.send_header("X-Error-Code", "GatedRepo")
            elif path.is_file():
                body = path.read_bytes()
                self.send_response(200)
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
                return
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if (folder / repo).is_dir() else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    url = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield folder
    server.shutdown()
    server.server_close()


def test_a_name_on_the_hub_is_downloaded_once(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(hub / "me/my-model", byte_level(), eos_token="<|im_start|>")
    write_tokenizer(hub / "me/plain", byte_level())
    ours = read("me/my-model")
    assert re.fullmatch(r"my-model-[0-9a-f]{8}", ours.name)
    assert ours.decode([ours.eot]) == "<|im_start|>"
    assert read("me/plain").eot == 0
    assert vocab_size_of("me/plain") == 600
    monkeypatch.setattr(socket, "socket", None)
    assert read("me/my-model").fingerprint == ours.fingerprint


def test_a_name_on_the_hub_that_cannot_be_had_is_one_line(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub / "me/weights").mkdir(parents=True)
    refused(lambda: read("me/nothing"), "me/nothing", "no such file, and no such repository")
    refused(lambda: read("me/weights"), "me/weights", "has no tokenizer.json")
    refused(lambda: read("me/gated"), "me/gated", "accept its terms", "HF_TOKEN")
    assert vocab_size_of("me/nothing") is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(lambda: read("me/plain"), "me/plain", "HF_HUB_OFFLINE")


def test_a_corpus_is_keyed_by_the_content_of_its_tokenizer(tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "a.jsonl", texts(60))
    name = write_tokenizer(tmp_path / "mine", byte_level())
    first = make(tmp_path, text, tokenizer=name)
    assert re.fullmatch(r"text-mine-[0-9a-f]{8}-[0-9a-f]{12}", first.folder.name)
    assert not make(tmp_path, text, tokenizer=f"{name}/tokenizer.json").fresh
    counted = first.manifest["splits"]["train"]
    corpus = open_corpus(first.folder)
    assert sum(int(corpus.tokenizer.token_bytes[shard].sum()) for shard in corpus.train.shards) == counted["bytes"]
    write_tokenizer(tmp_path / "mine", byte_level(use_regex=False))
    assert make(tmp_path, text, tokenizer=name).fresh


def test_a_corpus_whose_tokenizer_loses_text_says_so(tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "a.jsonl", texts(60))
    for build, lossy in ((word_piece, True), (byte_level, False)):
        name = write_tokenizer(tmp_path / build.__name__, build())
        spec = DataSpec(
            source="text", path=str(text), tokenizer=name, validation_fraction=0.2, cache_dir=str(tmp_path / "p")
        )
        notes = load_corpus(spec, log=lambda line: None).notes
        assert any("does not keep all text" in note for note in notes) == lossy


def test_only_bpe_n_is_trained_on_the_text() -> None:
    assert is_trained("bpe-4096")
    assert not any(map(is_trained, ("gpt2", "bytes", "bpe-mine/tokenizer.json", "bpe-mine.json", "owner/bpe-512")))


@pytest.mark.parametrize("byte_level", [False, True])
def test_characters_that_a_tokenizer_drops_are_counted(tmp_path: Path, byte_level: bool) -> None:
    trained = Trained(models.BPE())  # without a token for unknown text, and without the alphabet of all bytes
    if byte_level:
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        ["the cat sat on a mat"] * 9, trainers.BpeTrainer(special_tokens=["<|endoftext|>"], show_progress=False)
    )
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = get_tokenizer(str(tmp_path / "tokenizer.json"), None, tmp_path, "")
    assert not tokenizer.exact
    assert tokenizer.dropped("the cat sat") == 0
    assert tokenizer.dropped("the cät sat!") == (3 if byte_level else 2)
    tokenizer.save(tmp_path / "saved.json")
    assert Tokenizer.load(tmp_path / "saved.json").dropped("東") == (3 if byte_level else 1)


def test_a_tokenizer_of_all_bytes_drops_nothing() -> None:
    assert bpe().dropped("the cät 東京 \x00 🙂") == 0
