"""Byte-level tokenizers: those of tiktoken, plain bytes, and BPE trained on the corpus.

All but plain bytes encode with `tiktoken.Encoding`, which is fast and releases the GIL. A tokenizer is saved with the corpus,
so that training, evaluation and sampling need no network.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from common.errors import UserError
from common.json_io import write_text
from common.safe_read import is_count, load_json

END_OF_TEXT = "<|endoftext|>"
SMALLEST_BPE = 300
# Characters per call of the encoder. No pattern of GPT-2, cl100k and o200k matches a non-space character followed by a space, so
# a cut before such a space does not change the ids. Text without one is cut at MAX_PIECE: with more than about a million
# characters, the backtracking of the patterns overflows the stack (openai/tiktoken#15).
PIECE = 100_000
MAX_PIECE = 500_000
SAFE_CUT = re.compile(r"(?<=\S) ")
MOST_IDS = 1 << 24  # 80 times the largest published vocabulary
LONGEST_PATTERN = 4096  # characters; published patterns have up to 500

_BLOBS = "https://openaipublic.blob.core.windows.net/"
# From tiktoken_ext.openai_public, so that no download is needed: vocabulary size, end-of-text included, and files in _BLOBS.
PUBLISHED: dict[str, tuple[int, tuple[str, ...]]] = {
    "gpt2": (50257, ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json")),
    "r50k_base": (50257, ("encodings/r50k_base.tiktoken",)),
    "p50k_base": (50281, ("encodings/p50k_base.tiktoken",)),
    "p50k_edit": (50284, ("encodings/p50k_base.tiktoken",)),
    "cl100k_base": (100277, ("encodings/cl100k_base.tiktoken",)),
    "o200k_base": (200019, ("encodings/o200k_base.tiktoken",)),
    "o200k_harmony": (201088, ("encodings/o200k_base.tiktoken",)),
}


class Tokenizer:
    """Converts between text and token ids. The text of a special token is encoded as ordinary text.

    Attributes:
        name: Name given to `get_tokenizer`.
        n_vocab: Number of ids, end-of-text included; an embedding needs at least this many rows.
        eot: Id of end-of-text, which ends every document.
        dtype: uint16 if all ids fit, else uint32.
        token_bytes: UTF-8 bytes of each id, int64 (n_vocab,); 0 for special tokens and unused ids.
        fingerprint: SHA-256 of ranks, pattern and special tokens: equal for tokenizers that give the same ids for any text.
    """

    def __init__(self, name: str, ranks: dict[bytes, int], pattern: str, specials: dict[str, int]) -> None:
        self.name = name
        self.eot = specials[END_OF_TEXT]
        self.n_vocab = max(*ranks.values(), *specials.values()) + 1
        self.dtype = np.dtype(np.uint16 if self.n_vocab <= 1 << 16 else np.uint32)
        self.token_bytes = np.zeros(self.n_vocab, dtype=np.int64)
        for token, rank in ranks.items():
            self.token_bytes[rank] = len(token)
        self._ranks, self._pattern, self._specials = ranks, pattern, specials
        self._tokens = {rank: token for token, rank in ranks.items()} | {i: s.encode() for s, i in specials.items()}
        self._is_bytes = all(ranks.get(bytes([i])) == i for i in range(256)) and len(ranks) == 256
        self._threads = threading.local()
        self.fingerprint = self._hash()

    @property
    def _encoding(self) -> tiktoken.Encoding:
        """Return this thread's encoder, created at its first use (5 to 100 ms).

        Threads that share an encoder contend for the memory pools of its regular expressions.
        """
        if not hasattr(self._threads, "encoding"):
            self._threads.encoding = tiktoken.Encoding(
                self.name, pat_str=self._pattern, mergeable_ranks=self._ranks, special_tokens=self._specials
            )
        encoding: tiktoken.Encoding = self._threads.encoding
        return encoding

    def _hash(self) -> str:
        digest = hashlib.sha256(self._pattern.encode() + b"\0")
        for token, rank in sorted(self._ranks.items(), key=lambda item: item[1]):
            digest.update(f"{rank} {token.hex()}\n".encode())
        digest.update(json.dumps(self._specials, sort_keys=True).encode())
        return digest.hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, (n,) of `self.dtype`, without end-of-text. Lone surrogates are encoded as U+FFFD."""
        raw = valid_text(text)
        if self._is_bytes:
            return np.frombuffer(raw.encode(), dtype=np.uint8).astype(self.dtype)
        pieces = [self._encode_piece(piece) for piece in split_text(raw)]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=self.dtype)

    def _encode_piece(self, text: str) -> np.ndarray:
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(self.dtype)
        except ValueError as error:
            # The pattern ran out of stack on a piece without spaces (half a million letters). Cut it anywhere rather than lose
            # the document.
            if len(text) < 1000:
                raise UserError(
                    f"data.tokenizer={self.name}: its pattern cannot split a text ({error}); choose another data.tokenizer="
                ) from error
            half = len(text) // 2
            return np.concatenate([self._encode_piece(text[:half]), self._encode_piece(text[half:])])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`. Invalid UTF-8 becomes U+FFFD, and unused ids become an empty string."""
        return b"".join(self._tokens.get(int(i), b"") for i in ids).decode("utf-8", errors="replace")

    def save(self, path: Path) -> None:
        """Write the tokenizer to a JSON file, atomically."""
        in_order = sorted(self._ranks.items(), key=lambda item: item[1])
        content = {
            "format": 1,
            "name": self.name,
            "pattern": self._pattern,
            "specials": self._specials,
            "ranks": {base64.b64encode(token).decode(): rank for token, rank in in_order},
        }
        write_text(path, json.dumps(content))  # no indentation: a million ids take 30 MB

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Return the tokenizer that `save` wrote. Raises UserError if the file is missing or invalid."""
        try:
            content: dict[str, Any] = load_json(path)
            ranks = {base64.b64decode(token, validate=True): rank for token, rank in content["ranks"].items()}
            _check(ranks, content["pattern"], content["specials"])
            return cls(content["name"], ranks, content["pattern"], content["specials"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a readable tokenizer ({error}); delete its folder and prepare again"
            ) from error


def _check(ranks: dict[bytes, Any], pattern: Any, specials: dict[str, Any]) -> None:
    """Raise ValueError if a saved tokenizer could exhaust the memory or crash the process.

    The largest id determines the size of an array, and the encoder aborts at a byte without an id.
    """
    ids = [*ranks.values(), *specials.values()]
    if not all(is_count(number, MOST_IDS) for number in ids) or len(set(ranks.values())) < len(ranks):
        raise ValueError("its ids are not whole numbers, each used once")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("some bytes have no id")
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
        raise ValueError("its pattern is not a string, or too long")


def valid_text(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD, as tiktoken does."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def split_text(text: str) -> Iterator[str]:
    """Yield pieces of about PIECE characters whose ids are, one after the other, the ids of the whole text (see SAFE_CUT)."""
    start = 0
    while len(text) - start > PIECE:
        found = SAFE_CUT.search(text, start + PIECE, start + MAX_PIECE)
        stop = found.start() if found else min(len(text), start + MAX_PIECE)
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def vocab_size_of(name: str) -> int | None:
    """Return the vocabulary size of the tokenizer `name`, end-of-text included, without a download; None if it is unknown.

    Raises UserError for an invalid bpe-N.
    """
    if name == "bytes":
        return 257
    if name.startswith("bpe-"):
        return _bpe_size(name)
    return PUBLISHED[name][0] if name in PUBLISHED else None


def _bpe_size(name: str) -> int:
    digits = name.removeprefix("bpe-")
    known = digits.isascii() and digits.isdigit() and len(digits) < 12
    if not (known and SMALLEST_BPE <= int(digits) <= MOST_IDS):
        raise UserError(
            f"data.tokenizer={name[:80]}: N in bpe-N is the vocabulary size (256 bytes, merges, end-of-text), a whole number "
            f"from {SMALLEST_BPE} to {MOST_IDS}, e.g. bpe-4096"
        )
    return int(digits)


def is_published(name: str) -> bool:
    """Return whether the name alone determines the tokenizer, so that it is not trained on a text."""
    return name == "bytes" or name in tiktoken.list_encoding_names()


def check_name(name: str) -> None:
    """Raise UserError, with close matches, if `name` is not a tokenizer."""
    known = ["bytes", *tiktoken.list_encoding_names()]
    if name in known or (name.startswith("bpe-") and _bpe_size(name)):
        return
    close = difflib.get_close_matches(name, [*known, "bpe-4096"], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(f"unknown data.tokenizer={name!r}; {hint}allowed: {', '.join(sorted(known))}, bpe-N")


def get_tokenizer(
    name: str, train_texts: Callable[[], Iterator[str]] | None, cache_dir: Path, cache_key: str
) -> Tokenizer:
    """Return the tokenizer `name`: "bytes", one of tiktoken's, or "bpe-N".

    "bpe-N" is loaded from `cache_dir` if it was saved there under `cache_key`; else it is trained on `train_texts()` and
    saved. Raises UserError for an unknown name, and for a tokenizer that cannot be downloaded.
    """
    check_name(name)
    if name == "bytes":
        return Tokenizer(name, {bytes([i]): i for i in range(256)}, r"[\s\S]", {END_OF_TEXT: 256})
    if not name.startswith("bpe-"):
        return _published(name)
    path = cache_dir / f"{name}-{cache_key}.json"
    if path.exists():
        return Tokenizer.load(path)
    if train_texts is None:
        raise UserError(f"data.tokenizer={name} has not been trained yet; prepare the corpus first")
    tokenizer = train_bpe(name, train_texts())
    cache_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    return tokenizer


def _cache_name(file: str) -> str:
    """Return the name of a file in tiktoken's cache."""
    return hashlib.sha1((_BLOBS + file).encode(), usedforsecurity=False).hexdigest()


def cache_folder() -> Path | None:
    """Return tiktoken's cache folder; None if caching is turned off by an empty TIKTOKEN_CACHE_DIR or DATA_GYM_CACHE_DIR."""
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    given = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", str(default)))
    return Path(given) if given else None


def cached_names() -> list[str]:
    """Return the names of the published tokenizers whose files are in tiktoken's cache."""
    folder = cache_folder()
    if folder is None:
        return []
    return [
        name for name, (_, files) in PUBLISHED.items() if all((folder / _cache_name(file)).is_file() for file in files)
    ]


def _published(name: str) -> Tokenizer:
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors; ValueError is a wrong hash
        files = ", ".join(_cache_name(file) for file in PUBLISHED.get(name, (0, ()))[1])
        raise UserError(
            f"data.tokenizer={name}: tiktoken cannot download its file ({type(error).__name__}); set "
            f"TIKTOKEN_CACHE_DIR to a folder that holds {files or 'it'}, or choose data.tokenizer=bpe-4096"
        ) from error
    return Tokenizer(name, encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)


def train_bpe(name: str, texts: Iterator[str]) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al. 2016) with GPT-2's pattern and N ids for the name "bpe-N".

    Id N - 1 is end-of-text. A corpus that is too small for N - 257 merges leaves ids unused. The same texts give the same
    tokenizer.
    """
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    size = _bpe_size(name)
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    _run_interruptibly(lambda: trained.train_from_iterator(texts, trainer=trainer))
    byte_of = _byte_of_character()
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in trained.get_vocab().items()}
    return Tokenizer(name, ranks, r50k_pat_str, {END_OF_TEXT: size - 1})


def _run_interruptibly(work: Callable[[], object]) -> None:
    """Run `work` in a separate thread and wait for it, so that signals are handled meanwhile.

    Python handles signals between two bytecode instructions of the main thread: not during a library call of a minute, but
    while it waits for a thread.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="tokenizer", daemon=True).start()
    done.result()


def _byte_of_character() -> dict[str, int]:
    """Return the byte of each printable character that GPT-2 uses in place of it (the inverse of `bytes_to_unicode` in
    openai/gpt-2, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
