"""Tokenizers given as a tokenizer.json of Hugging Face's library `tokenizers`.

Text is encoded without the tokens that a post-processor adds (such as [CLS]), without truncation, and without BPE dropout.
The text of a special token is encoded as ordinary text. An exception is a Unigram model whose vocabulary holds its special
tokens: the library finds "</s>" in text like any other piece.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.json_io import mapping
from common.safe_read import is_count, load_json
from data.tokenizers.byte_bpe import LONGEST_PATTERN, MOST_IDS

if TYPE_CHECKING:
    import tokenizers

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
# The parts of a tokenizer.json that determine ids and their text.
PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")
# Usual end-of-text tokens, for a tokenizer.json without tokenizer_config.json, in order of preference.
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "<|eot_id|>", "[SEP]")
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # byte fallback of sentencepiece
SPACE = "▁"  # sentencepiece writes a space as U+2581
IDEOGRAPHS = "\u2e80"  # the first of the scripts that are written without spaces between words
# Replacements of all normalizers and decoders together may lengthen a text by this factor at most.
MOST_EXPANSION = 64
PROBE = "The quick  brown\n\tfox's 1234 naïve Cafés; code(x_1) -> {0} 東京 😀\x00\x7f\r\n ends"


class HfTokenizer:
    """The `data.tokenizers.tokenizer.Codec` of a tokenizer.json.

    Attributes:
        spaced: Whether a space is put before the first word of a text, or lost there. A long text is then cut in place of a
            space.
        exact: Whether decoding gives back any text, except for a space before its first word, and `token_bytes` counts its
            bytes.
        unknown: Id of the token for text outside the vocabulary, or None.

    `token_bytes` follows from the model. Byte-level BPE: the bytes of a token. Sentencepiece: the bytes of its text with
    U+2581 as a space; 1 for byte fallback. WordPiece and WordLevel, which drop spaces: the bytes of its text, and one for
    the space before a token that begins a word. Unknown-word and special tokens: 0.
    """

    def __init__(self, content: dict[str, Any], eot: str | None) -> None:
        """Build the tokenizer from the content of a tokenizer.json.

        `eot` is the end-of-text token; None: the first of END_TOKENS that it has. Raises ValueError, LookupError, TypeError or
        AttributeError if the content is invalid, or could exhaust the memory.
        """
        _check(content)
        self._content: dict[str, Any] = {part: content.get(part) for part in PARTS}
        self._content["added_tokens"] = content.get("added_tokens") or []
        self._content["model"] = {**content["model"], "dropout": None}
        self._library = _library_tokenizer({"version": "1.0", **self._content})
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        ids = [*vocabulary.values()]
        if not ids or not all(is_count(number, MOST_IDS) for number in ids):
            raise ValueError("its ids are not whole numbers below 2^24")
        self._eot_token, self.eot = _end_of_text(vocabulary, eot)
        self.n_vocab = max(ids) + 1
        self.token_bytes = self._sizes(vocabulary)
        canonical = json.dumps([self._content, self.eot], sort_keys=True)
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        first, second, joined = (self._probe(text) for text in ("a", "b", "a b"))
        self.spaced = joined == first + second and joined != first + self._probe(" b")
        # BPE drops characters outside its alphabet, unless it has a token for unknown text or one for each byte.
        every_byte = content["model"].get("byte_fallback") or (
            _is_byte_level(content) and vocabulary.keys() >= BYTE_OF.keys()
        )
        self._drops = content["model"].get("type") == "BPE" and self.unknown is None and not every_byte
        self.exact = not self._drops and self._is_exact()

    def _sizes(self, vocabulary: dict[str, int]) -> np.ndarray:
        """Return the UTF-8 bytes of text that each id stands for, int64 (n_vocab,)."""
        sizes = np.zeros(self.n_vocab, dtype=np.int64)
        size_of = _size_rule(self._content)
        for token, number in vocabulary.items():
            sizes[number] = size_of(token)
        for number, added in self._library.get_added_tokens_decoder().items():
            sizes[number] = 0 if added.special else len(added.content.encode())
        model = self._content["model"]
        self.unknown: int | None = model.get("unk_id") if "unk_id" in model else vocabulary.get(model.get("unk_token"))
        if self.unknown is not None:
            sizes[self.unknown] = 0
        sizes[self.eot] = 0
        return sizes

    def _probe(self, text: str) -> list[int]:
        try:
            return [*map(int, self.encode(text))]
        except ValueError:  # no token for some character, and none for unknown words
            return []

    def _is_exact(self) -> bool:
        ids = self._probe(PROBE)
        spaces = self.token_bytes[ids].sum() - len(PROBE.encode())
        return self.decode(ids).removeprefix(" ") == PROBE and spaces in (0, 1)

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> HfTokenizer:
        """Return what `content` wrote. Raises like the constructor."""
        return cls(content["tokenizer"], content["end_of_text"])

    def content(self) -> dict[str, Any]:
        """Return the JSON of a saved tokenizer."""
        return {"format": 2, "end_of_text": self._eot_token, "tokenizer": {"version": "1.0", **self._content}}

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a piece of text. Raises ValueError where the library fails."""
        # Unlike `encode`, the batched call releases the GIL.
        with_ids = _as_value_error(lambda: self._library.encode_batch_fast([text], add_special_tokens=False))
        return np.array(with_ids[0].ids, dtype=np.uint32)

    def dropped(self, text: str) -> int:
        """Return the number of characters of a piece of text that no token stands for; in byte-level BPE, of bytes."""
        if not self._drops:
            return 0
        normalizer, splitter, model = self._library.normalizer, self._library.pre_tokenizer, self._content["model"]
        text = normalizer.normalize_str(text) if normalizer else text
        words = [word for word, _ in splitter.pre_tokenize_str(text)] if splitter else [text]
        prefix, suffix = _affixes(model)
        kept = self._library.encode(text, add_special_tokens=False).tokens
        return sum(map(len, words)) - sum(len(token.removeprefix(prefix).removesuffix(suffix)) for token in kept)

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """Return the text that `ids` add to the text of the ids `after`.

        The decoders of sentencepiece and WordPiece treat the first token of a text in their own way, so the text of a
        continuation is not that of its ids alone.
        """
        text: str = self._library.decode([*after, *ids], skip_special_tokens=False)
        before: str = self._library.decode([*after], skip_special_tokens=False) if after else ""
        return text.removeprefix(before)


def read_with_config(content: dict[str, Any], folder: Path) -> HfTokenizer:
    """Return the tokenizer of a tokenizer.json; its end-of-text token is `eos_token` of a tokenizer_config.json in `folder`.

    Raises OSError, ValueError, LookupError, TypeError or AttributeError if one of them is invalid.
    """
    eot = None
    if (folder / CONFIG).exists():
        eot = mapping(load_json(folder / CONFIG)).get("eos_token")
        eot = eot.get("content") if isinstance(eot, dict) else eot  # an AddedToken as JSON
    return HfTokenizer(content, eot if isinstance(eot, str) else None)


def _library_tokenizer(content: dict[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    library = _as_value_error(lambda: Tokenizer.from_str(json.dumps(content)))
    library.encode_special_tokens = True  # encode the text of special tokens as ordinary text
    return library


def _as_value_error(call: Callable[[], Any]) -> Any:
    """Return the result of a call of the library. Its errors are plain Exceptions, and panics of Rust BaseExceptions."""
    try:
        return call()
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(" ".join(str(error).split())[:200]) from error
        raise


def _end_of_text(vocabulary: dict[str, int], given: str | None) -> tuple[str, int]:
    for token in (given,) if given else END_TOKENS:
        if token in vocabulary:
            return token, vocabulary[token]
    problem = f"its end-of-text token {given!r} is not in its vocabulary" if given else "it has no end-of-text token"
    raise ValueError(f"{problem}; name one of its tokens as eos_token in {CONFIG} beside it")


def _components(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in the normalizer, pre-tokenizer and decoder."""
    waiting = [content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []


def _check(content: Any) -> None:
    """Raise ValueError if a tokenizer.json could exhaust the memory: by its ids, or by replacements that lengthen a text."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError("it is not a tokenizer.json of Hugging Face's tokenizers")
    vocabulary = content["model"]["vocab"]
    added = [token["id"] for token in content.get("added_tokens") or []]
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []  # a list (Unigram) has ids 0, 1, ...
    if not all(is_count(number, MOST_IDS) for number in ids + added):
        raise ValueError("its ids are not whole numbers below 2^24")
    strings = [value for node in _components(content) for key, value in node.items() if key != "precompiled_charsmap"]
    if any(isinstance(value, str) and len(value) > LONGEST_PATTERN for value in strings):
        raise ValueError(f"a pattern or replacement is longer than {LONGEST_PATTERN} characters")
    replacements = [str(node.get("content", "")) for node in _components(content) if node.get("type") == "Replace"]
    if math.prod(max(1, len(text)) for text in replacements) > MOST_EXPANSION:
        raise ValueError(f"its replacements lengthen a text by more than {MOST_EXPANSION} times")


def _is_byte_level(content: dict[str, Any]) -> bool:
    """Return whether the tokens are written in the characters of BYTE_OF."""
    return any(node.get("type") == "ByteLevel" for node in _components(content))


def _affixes(model: dict[str, Any]) -> tuple[str, str]:
    """Return what the tokens inside a word begin with, and what the last one of a word ends with."""
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def _size_rule(content: dict[str, Any]) -> Callable[[str], int]:
    """Return the function from a token of the vocabulary to the bytes of text that it stands for."""
    model = content["model"]
    prefix, suffix = _affixes(model)

    def byte_level(token: str) -> int:
        return sum(1 if c in BYTE_OF else len(c.encode()) for c in token)

    def word(token: str) -> int:
        if prefix and token.startswith(prefix):
            return len(token.removeprefix(prefix).encode())
        spaced = token[:1].isalnum() and token < IDEOGRAPHS
        return len(token.encode()) + spaced

    def sentencepiece(token: str) -> int:
        if model.get("byte_fallback") and BYTE_TOKEN.fullmatch(token):
            return 1
        token = token.removesuffix(suffix) + " " if suffix and token.endswith(suffix) else token
        return len(token.replace(SPACE, " ").encode())

    if _is_byte_level(content):
        return byte_level
    return word if model.get("type") in ("WordPiece", "WordLevel") else sentencepiece


def _byte_of_character() -> dict[str, int]:
    """Return the byte of each printable character that GPT-2 uses in place of it (the inverse of `bytes_to_unicode` in
    openai/gpt-2, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_of_character()
