"""Byte-level tokenizers: tiktoken's, one of plain bytes, and BPE trained on the corpus itself.

All of them run through `tiktoken.Encoding`, which is fast and releases the GIL. A tokenizer is saved beside the
tokens it made, so that training, evaluation and sampling need no network.
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
# Characters per call of the encoder. No alternative of the GPT-2, cl100k and o200k patterns goes from a non-space
# character to a space, so a cut before a ' ' that follows one cannot change the ids. Text without such a place is cut
# at MAX_PIECE all the same: beyond about a million, the patterns' backtracking overflows (openai/tiktoken#15).
PIECE = 100_000
MAX_PIECE = 500_000
SAFE_CUT = re.compile(r"(?<=\S) ")
MOST_IDS = 1 << 24  # 80 times the largest published vocabulary
LONGEST_PATTERN = 4096  # characters; published ones have 500

# Ids incl. end-of-text, known without a download: tiktoken_ext.openai_public.
PUBLISHED_SIZES = {
    "gpt2": 50257,
    "r50k_base": 50257,
    "p50k_base": 50281,
    "p50k_edit": 50284,
    "cl100k_base": 100277,
    "o200k_base": 200019,
    "o200k_harmony": 201088,
}
_BLOBS = "https://openaipublic.blob.core.windows.net/"
_FILES = {
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    "r50k_base": ("encodings/r50k_base.tiktoken",),
    "p50k_base": ("encodings/p50k_base.tiktoken",),
    "p50k_edit": ("encodings/p50k_base.tiktoken",),
    "cl100k_base": ("encodings/cl100k_base.tiktoken",),
    "o200k_base": ("encodings/o200k_base.tiktoken",),
    "o200k_harmony": ("encodings/o200k_base.tiktoken",),
}


class Tokenizer:
    """Text to ids and back; text that spells a special token is ordinary text.

    Attributes:
        name: As given to `get_tokenizer`.
        n_vocab: Number of ids, end-of-text included; an embedding needs that many rows.
        eot: The id of end-of-text, which ends every document.
        dtype: uint16 where all ids fit, else uint32.
        token_bytes: (n_vocab,) int64, UTF-8 bytes that each id stands for; 0 for end-of-text, other specials and ids
            that no text uses.
        fingerprint: SHA-256 over ranks, pattern and specials: equal means the same ids for any text.
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
        """This thread's own encoder, made when it first encodes (5 to 100 ms): threads that share one contend for the
        pools inside its regular expressions, which costs two threads 15 % and more of them more."""
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
        """Ids of `text`, shape (n,), dtype `self.dtype`, without end-of-text. Total: lone surrogates become U+FFFD."""
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
            # The pattern ran out of stack on a piece without structure (a run of half a million letters): a cut
            # somewhere is better than a document lost.
            if len(text) < 1000:
                raise UserError(f"data.tokenizer={self.name}: its pattern cannot split a text ({error})") from error
            half = len(text) // 2
            return np.concatenate([self._encode_piece(text[:half]), self._encode_piece(text[half:])])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids that no text uses become nothing."""
        return b"".join(self._tokens.get(int(i), b"") for i in ids).decode("utf-8", errors="replace")

    def save(self, path: Path) -> None:
        """Writes all there is to know to a JSON file, atomically."""
        in_order = sorted(self._ranks.items(), key=lambda item: item[1])
        content = {
            "format": 1,
            "name": self.name,
            "pattern": self._pattern,
            "specials": self._specials,
            "ranks": {base64.b64encode(token).decode(): rank for token, rank in in_order},
        }
        write_text(path, json.dumps(content))  # without indentation: a million ids take 30 MB

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer that `save` wrote. Raises UserError for a file that is missing or no such file."""
        try:
            content: dict[str, Any] = load_json(path)
            ranks = {base64.b64decode(token, validate=True): rank for token, rank in content["ranks"].items()}
            _check(ranks, content["pattern"], content["specials"])
            return cls(content["name"], ranks, content["pattern"], content["specials"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no readable tokenizer ({error}); delete its folder and prepare again") from error


def _check(ranks: dict[bytes, Any], pattern: Any, specials: dict[str, Any]) -> None:
    """Raises ValueError where the parts of a saved tokenizer would take the memory or end the process: an array of as many
    entries as the largest id says, and an encoder that gives up on a byte without an id."""
    ids = [*ranks.values(), *specials.values()]
    if not all(is_count(number, MOST_IDS) for number in ids) or len(set(ranks.values())) < len(ranks):
        raise ValueError("its ids are not whole numbers, each used once")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("there are bytes without an id")
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
        raise ValueError("its pattern is no text, or too long")


def valid_text(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD; as tiktoken itself does."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def split_text(text: str) -> Iterator[str]:
    """Pieces of about PIECE characters that give the same ids apart as together (see SAFE_CUT)."""
    start = 0
    while len(text) - start > PIECE:
        found = SAFE_CUT.search(text, start + PIECE, start + MAX_PIECE)
        stop = found.start() if found else min(len(text), start + MAX_PIECE)
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def vocab_size_of(name: str) -> int | None:
    """Ids of the tokenizer `name`, end-of-text included, without a download; None where that is not known.

    Raises UserError for a bpe-N that cannot be.
    """
    if name == "bytes":
        return 257
    return _bpe_size(name) if name.startswith("bpe-") else PUBLISHED_SIZES.get(name)


def _bpe_size(name: str) -> int:
    digits = name.removeprefix("bpe-")
    known = digits.isascii() and digits.isdigit() and len(digits) < 12
    if not (known and SMALLEST_BPE <= int(digits) <= MOST_IDS):
        raise UserError(
            f"data.tokenizer={name[:80]}: bpe-N needs a whole number N of ids, {SMALLEST_BPE} to {MOST_IDS} "
            "(256 bytes, merges, end-of-text), e.g. bpe-4096"
        )
    return int(digits)


def check_name(name: str) -> None:
    """Raises UserError, with close matches, for a tokenizer that does not exist."""
    known = ["bytes", *tiktoken.list_encoding_names()]
    if name in known or (name.startswith("bpe-") and _bpe_size(name)):
        return
    close = difflib.get_close_matches(name, [*known, "bpe-4096"], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(f"unknown data.tokenizer={name!r}; {hint}allowed: {', '.join(sorted(known))}, bpe-N")


def get_tokenizer(
    name: str, train_texts: Callable[[], Iterator[str]] | None, cache_dir: Path, cache_key: str
) -> Tokenizer:
    """The tokenizer `name`: "bytes", a name tiktoken knows, or "bpe-N", trained on `train_texts()` unless
    `cache_dir` holds the one trained before under `cache_key`.

    Raises UserError for an unknown name, and for one that needs a download where there is no network.
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
    """What tiktoken calls a file in its cache."""
    return hashlib.sha1((_BLOBS + file).encode(), usedforsecurity=False).hexdigest()


def cache_folder() -> Path | None:
    """Where tiktoken keeps the files that it has fetched; None where it is told to keep none (an empty variable)."""
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    given = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", str(default)))
    return Path(given) if given else None


def cached_names() -> list[str]:
    """The published tokenizers whose files are here, so that they need no network."""
    folder = cache_folder()
    if folder is None:
        return []
    return [name for name, files in _FILES.items() if all((folder / _cache_name(file)).is_file() for file in files)]


def _published(name: str) -> Tokenizer:
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors; ValueError is a wrong hash
        files = ", ".join(_cache_name(file) for file in _FILES.get(name, ()))
        raise UserError(
            f"data.tokenizer={name}: tiktoken cannot fetch its file ({type(error).__name__}); point "
            f"TIKTOKEN_CACHE_DIR at a folder that holds {files or 'it'}, or choose data.tokenizer=bpe-4096"
        ) from error
    return Tokenizer(name, encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)


def train_bpe(name: str, texts: Iterator[str]) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, with GPT-2's pattern) of as many ids as `name` says; id N-1 is end-of-text.

    A corpus too small for that many merges leaves ids below N-1 unused. The same texts give the same tokenizer.
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
    """Do `work` in a thread of its own. Python hears of a signal to stop only between two of its own instructions: not in
    the minute that a library takes for one call, but while it waits for a thread."""
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
    """GPT-2's printable stand-ins for bytes (openai/gpt-2, encoder.py), undone."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
