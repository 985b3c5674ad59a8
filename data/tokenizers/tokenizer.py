"""Tokenizers: those of tiktoken, plain bytes, BPE trained on the corpus, and files of Hugging Face's `tokenizers`.

A tokenizer is saved with the corpus, so that training, evaluation and sampling need no network.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from common.errors import UserError
from common.json_io import write_text
from common.network import why_unreachable
from common.safe_read import load_json
from data.tokenizers import hf_tokenizer
from data.tokenizers.byte_bpe import END_OF_TEXT, MOST_IDS, ByteBpe
from data.tokenizers.hf_tokenizer import HfTokenizer

SMALLEST_BPE = 300
# Characters per call of the encoder. No pattern of GPT-2, cl100k and o200k matches a non-space character followed by a space, so
# a cut before such a space does not change the ids. Text without one is cut at MAX_PIECE: with more than about a million
# characters, the backtracking of the patterns overflows the stack (openai/tiktoken#15).
PIECE = 100_000
MAX_PIECE = 500_000
SAFE_CUT = re.compile(r"(?<=\S) ")
WORD_BREAK = re.compile(r"(?<=\S) (?=\S)")  # the same for tokenizers that put a space before the first word of a text
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
CONNECT_TIMEOUT_S = 3
LONGEST_TITLE = 40  # characters of a file's name in the name of its tokenizer
# What an unreadable tokenizer raises.
INVALID = (OSError, ValueError, LookupError, TypeError, AttributeError)

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


class Codec(Protocol):
    """Encodes pieces of text; the part of a tokenizer that differs between kinds. Attributes as in `Tokenizer`.

    Attributes:
        spaced: Whether the first word of a text is encoded as if a space preceded it.
    """

    n_vocab: int
    eot: int
    token_bytes: np.ndarray
    fingerprint: str

    @property
    def spaced(self) -> bool: ...

    @property
    def exact(self) -> bool: ...

    @property
    def unknown(self) -> int | None: ...

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a piece of text. Raises ValueError if it cannot be encoded."""
        ...

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str: ...

    def dropped(self, text: str) -> int: ...

    def content(self) -> dict[str, Any]:
        """Return the JSON of a saved tokenizer; `format` is its key in CODECS."""
        ...


# The kinds of saved tokenizers.
CODECS: dict[int, Callable[[dict[str, Any]], Codec]] = {1: ByteBpe.from_content, 2: HfTokenizer.from_content}


class Tokenizer:
    """Converts between text and token ids. The text of a special token is encoded as ordinary text.

    Attributes:
        name: Short name. Tokenizers from files end with the start of their fingerprint, so that names tell them apart.
        n_vocab: Number of ids, end-of-text included; an embedding needs at least this many rows.
        eot: Id of end-of-text, which ends every document.
        dtype: uint16 if all ids fit, else uint32.
        token_bytes: UTF-8 bytes of each id, int64 (n_vocab,); 0 for special tokens and unused ids.
        exact: Whether ids keep any text, and `token_bytes` add up to its bytes.
        unknown: Id of the token for text outside the vocabulary; None if any text can be encoded.
        fingerprint: SHA-256 of all that determines ids: equal for tokenizers that give the same ids for any text.
    """

    def __init__(self, name: str, codec: Codec) -> None:
        self.name, self._codec = name, codec
        self.eot, self.n_vocab = codec.eot, codec.n_vocab
        self.dtype = np.dtype(np.uint16 if self.n_vocab <= 1 << 16 else np.uint32)
        self.token_bytes, self.fingerprint = codec.token_bytes, codec.fingerprint
        self.exact, self.unknown = codec.exact, codec.unknown

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, (n,) of `self.dtype`, without end-of-text. Lone surrogates are encoded as U+FFFD."""
        pieces = [self._encode_piece(piece) for piece in split_text(valid_text(text), self._codec.spaced)]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=self.dtype)

    def _encode_piece(self, text: str) -> np.ndarray:
        try:
            return self._codec.encode(text).astype(self.dtype)
        except ValueError as error:
            # The pattern ran out of stack on a piece without spaces (half a million letters). Cut it anywhere rather than lose
            # the document.
            if len(text) < 1000:
                raise UserError(
                    f"data.tokenizer={self.name}: its pattern cannot split a text ({error}); choose another data.tokenizer="
                ) from error
            half = len(text) // 2
            return np.concatenate([self._encode_piece(text[:half]), self._encode_piece(text[half:])])

    def dropped(self, text: str) -> int:
        """Return the number of characters of `text` that are lost without a token for them (of bytes, in byte-level BPE).

        BPE without a token for unknown text drops characters outside its alphabet.
        """
        return sum(self._codec.dropped(piece) for piece in split_text(valid_text(text), self._codec.spaced))

    def decode(self, ids: Sequence[int] | np.ndarray, after: Sequence[int] = ()) -> str:
        """Return the text that `ids` add to that of the ids `after`.

        Invalid UTF-8 becomes U+FFFD, and unused ids become an empty string.
        """
        return self._codec.decode([int(i) for i in ids], after)

    def save(self, path: Path) -> None:
        """Write the tokenizer to a JSON file, atomically."""
        # Without indentation: a million ids take 30 MB.
        write_text(path, json.dumps({"name": self.name, **self._codec.content()}))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Return the tokenizer that `save` wrote. Raises UserError if the file is missing or invalid."""
        try:
            return _from_content(load_json(path))
        except INVALID as error:
            raise UserError(
                f"{path}: not a readable tokenizer ({error}); delete its folder and prepare again"
            ) from error


def _from_content(content: dict[str, Any]) -> Tokenizer:
    name, codec = content["name"], CODECS[content.get("format", 1)](content)
    if not isinstance(name, str):
        raise ValueError("its name is not a string")
    return Tokenizer(name, codec)


def valid_text(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD, as tiktoken does."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def split_text(text: str, spaced: bool = False) -> Iterator[str]:
    """Yield pieces of about PIECE characters whose ids are, one after the other, the ids of the whole text (see SAFE_CUT).

    With `spaced`, a piece begins after the space, because its first word is encoded as if a space preceded it.
    """
    cut, start = WORD_BREAK if spaced else SAFE_CUT, 0
    while len(text) - start > PIECE:
        found = cut.search(text, start + PIECE, start + MAX_PIECE)
        stop = found.start() if found else min(len(text), start + MAX_PIECE)
        yield text[start:stop]
        start = found.end() if found and spaced else stop
    if start < len(text):
        yield text[start:]


def vocab_size_of(name: str) -> int | None:
    """Return the vocabulary size of the tokenizer `name`, end-of-text included; None if it is unknown.

    A tokenizer of tiktoken is not downloaded; one of the Hub is. Raises UserError for an invalid bpe-N or file.
    """
    if own := _own_or_none(name):
        return own.n_vocab
    if name == "bytes":
        return 257
    if is_trained(name):
        return _bpe_size(name)
    return PUBLISHED[name][0] if name in PUBLISHED else None


def short_name(name: str) -> str:
    """Return the `name` of the tokenizer that `get_tokenizer` returns for `name`; `name` itself if its file is not there.

    Raises UserError for an invalid file.
    """
    own = _own_or_none(name)
    return own.name if own else name


def tokenizer_key(name: str) -> str:
    """Return what identifies the tokenizer `name` in the key of a prepared corpus: its name, or the fingerprint of its file.

    Raises UserError for a file that is missing or invalid.
    """
    return own_tokenizer(name).fingerprint if is_own(name) else name


def is_own(name: str) -> bool:
    """Return whether `name` is a file, a folder or a name on the Hub, as opposed to "gpt2", "bytes" or "bpe-N"."""
    return "/" in name or name.endswith(".json")


def is_trained(name: str) -> bool:
    """Return whether `name` is "bpe-N", a tokenizer that is trained on a text."""
    return name.startswith("bpe-") and not is_own(name)


def _is_on_hub(name: str) -> bool:
    is_file = name.endswith(".json") or Path(name).expanduser().exists()
    return HUB_NAME.fullmatch(name) is not None and not is_file


def own_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a file, of a folder with a tokenizer.json, or of a repository on the Hub.

    The file is one of Hugging Face's `tokenizers`, or one that `Tokenizer.save` wrote. Raises UserError if there is no such
    file, or it is invalid.
    """
    path = Path(_downloaded(name) if _is_on_hub(name) else name).expanduser()
    path = path / hf_tokenizer.FILE if path.is_dir() else path
    try:
        stat = path.stat()
    except OSError:
        raise UserError(f"data.tokenizer={name}: {_missing(path)}") from None
    folder = path.absolute().parent.name if path.name == hf_tokenizer.FILE else path.stem
    return _read(name, path, name.split("/")[1] if _is_on_hub(name) else folder, stat.st_size, stat.st_mtime_ns)


def _missing(path: Path) -> str:
    """Return why there is no tokenizer at `path`, and what to give instead."""
    hint = "give a tokenizer.json, a folder that holds one, or OWNER/NAME on the Hugging Face Hub"
    others = [name for name in ("tokenizer.model", "vocab.json", "merges.txt") if (path.parent / name).exists()]
    if path.name == hf_tokenizer.FILE and others:
        return (
            f"{path.parent} holds {others[0]} but no {path.name}; write one with transformers:"
            f" AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return f"there is no file {path}; {hint}"


@lru_cache(maxsize=4)
def _read(given: str, path: Path, title: str, size: int, mtime_ns: int) -> Tokenizer:
    """Return the tokenizer in a file. A large one takes a second, and a run asks for it several times."""
    try:
        content = load_json(path)
        if isinstance(content, dict) and "model" in content:
            codec: Codec = hf_tokenizer.read_with_config(content, path.parent)
        else:
            saved = _from_content(content)
            title, codec = saved.name, saved._codec
    except INVALID as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"data.tokenizer={given}: {path} is not a usable tokenizer.json ({reason})") from error
    mark = f"-{codec.fingerprint[:8]}"
    title = re.sub(r"[^A-Za-z0-9._-]+", "_", title)[:LONGEST_TITLE].strip(".") or "tokenizer"
    return Tokenizer(title.removesuffix(mark) + mark, codec)


def _own_or_none(name: str) -> Tokenizer | None:
    """Return the tokenizer of a file or the Hub; None for other names, and for one on the Hub that is not available."""
    if not is_own(name):
        return None
    try:
        return own_tokenizer(name)
    except UserError:
        if _is_on_hub(name):
            return None
        raise


def _downloaded(repo: str) -> str:
    """Return the local copy of a repository's tokenizer, downloaded to the Hub's cache unless it is there."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError

    known = try_to_load_from_cache(repo, hf_tokenizer.FILE)
    if isinstance(known, str):
        return known
    hint = "give another OWNER/NAME, or the path of a tokenizer.json"
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"data.tokenizer={repo}: not in the Hub's cache, and HF_HUB_OFFLINE is set; unset it, or {hint}"
        )
    if reason := why_unreachable(constants.ENDPOINT, CONNECT_TIMEOUT_S):
        raise UserError(
            f"data.tokenizer={repo}: no such file, and no network to look for it on the Hub ({reason}); {hint}"
        )
    try:
        # Without a revision: two JSON files, which are checked when they are read. The cache keeps them as they are.
        with suppress(RemoteEntryNotFoundError):  # without it, usual names of end-of-text are tried
            hf_hub_download(repo, hf_tokenizer.CONFIG)  # nosec B615
        return hf_hub_download(repo, hf_tokenizer.FILE)  # nosec B615
    except GatedRepoError as error:
        raise UserError(
            f"data.tokenizer={repo}: access to it is restricted; accept its terms on {constants.ENDPOINT}/{repo} and set"
            f" HF_TOKEN, or {hint}"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise UserError(f"data.tokenizer={repo}: the repository has no {hf_tokenizer.FILE}; {hint}") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = "there is no such file, and no such repository on the Hub" if status in (401, 404) else str(error)
        raise UserError(f"data.tokenizer={repo}: {reason.splitlines()[0]}; {hint}") from error


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
    """Raise UserError, with close matches, if `name` is not a tokenizer. A name on the Hub is not looked up."""
    known = ["bytes", *tiktoken.list_encoding_names()]
    if name in known or (is_trained(name) and _bpe_size(name)):
        return
    if is_own(name):
        if not _is_on_hub(name):
            own_tokenizer(name)
        return
    close = difflib.get_close_matches(name, [*known, "bpe-4096"], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    hint = f"did you mean ./{name}? " if (Path(name) / hf_tokenizer.FILE).is_file() else hint
    raise UserError(
        f"unknown data.tokenizer={name!r}; {hint}allowed: {', '.join(sorted(known))}, bpe-N, a path such as"
        " ./tokenizer.json, or OWNER/NAME on the Hugging Face Hub"
    )


def get_tokenizer(
    name: str, train_texts: Callable[[], Iterator[str]] | None, cache_dir: Path, cache_key: str
) -> Tokenizer:
    """Return the tokenizer `name`: "bytes", one of tiktoken's, "bpe-N", a file, or a name on the Hub.

    "bpe-N" is loaded from `cache_dir` if it was saved there under `cache_key`; else it is trained on `train_texts()` and
    saved. Raises UserError for an unknown name, and for a tokenizer that cannot be downloaded.
    """
    check_name(name)
    if name == "bytes":
        return Tokenizer(name, ByteBpe({bytes([i]): i for i in range(256)}, r"[\s\S]", {END_OF_TEXT: 256}))
    if is_own(name):
        return own_tokenizer(name)
    if not is_trained(name):
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
    return Tokenizer(name, ByteBpe(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens))


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
    ranks = {bytes(hf_tokenizer.BYTE_OF[c] for c in token): rank for token, rank in trained.get_vocab().items()}
    return Tokenizer(name, ByteBpe(ranks, r50k_pat_str, {END_OF_TEXT: size - 1}))


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
