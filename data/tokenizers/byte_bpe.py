"""Byte-level BPE as tiktoken encodes it: a rank for every token, and a pattern that splits text into words.

`tiktoken.Encoding` is fast and releases the GIL.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tiktoken

from common.safe_read import is_count

END_OF_TEXT = "<|endoftext|>"
MOST_IDS = 1 << 24  # 80 times the largest published vocabulary
LONGEST_PATTERN = 4096  # characters; published patterns have up to 500


class ByteBpe:
    """The `data.tokenizers.tokenizer.Codec` of ranks, a pattern and special tokens."""

    spaced = False
    exact = True
    unknown = None  # any byte has a token

    def __init__(self, ranks: dict[bytes, int], pattern: str, specials: dict[str, int]) -> None:
        self.eot = specials[END_OF_TEXT]
        self.n_vocab = max(*ranks.values(), *specials.values()) + 1
        self.token_bytes = np.zeros(self.n_vocab, dtype=np.int64)
        for token, rank in ranks.items():
            self.token_bytes[rank] = len(token)
        self._ranks, self._pattern, self._specials = ranks, pattern, specials
        self._tokens = {rank: token for token, rank in ranks.items()} | {i: s.encode() for s, i in specials.items()}
        self._is_bytes = all(ranks.get(bytes([i])) == i for i in range(256)) and len(ranks) == 256
        self._threads = threading.local()
        self.fingerprint = self._hash()

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> ByteBpe:
        """Return what `content` wrote. Raises ValueError, KeyError, TypeError or AttributeError if it is invalid."""
        ranks = {base64.b64decode(token, validate=True): rank for token, rank in content["ranks"].items()}
        _check(ranks, content["pattern"], content["specials"])
        return cls(ranks, content["pattern"], content["specials"])

    def content(self) -> dict[str, Any]:
        """Return the JSON of a saved tokenizer."""
        in_order = sorted(self._ranks.items(), key=lambda item: item[1])
        return {
            "format": 1,
            "pattern": self._pattern,
            "specials": self._specials,
            "ranks": {base64.b64encode(token).decode(): rank for token, rank in in_order},
        }

    @property
    def _encoding(self) -> tiktoken.Encoding:
        """Return this thread's encoder, created at its first use (5 to 100 ms).

        Threads that share an encoder contend for the memory pools of its regular expressions.
        """
        if not hasattr(self._threads, "encoding"):
            self._threads.encoding = tiktoken.Encoding(
                "stint", pat_str=self._pattern, mergeable_ranks=self._ranks, special_tokens=self._specials
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
        """Return the ids of a piece of text. Raises ValueError where the pattern runs out of stack."""
        if self._is_bytes:
            return np.frombuffer(text.encode(), dtype=np.uint8)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def dropped(self, text: str) -> int:
        """Return 0: every byte has a token."""
        return 0

    def decode(self, ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """Return the text of `ids`, which does not depend on the ids before them."""
        return b"".join(self._tokens.get(i, b"") for i in ids).decode("utf-8", errors="replace")


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
