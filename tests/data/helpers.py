"""Small corpora and helpers for the tests of data/."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from common.errors import UserError
from data.prepare import PreparedInfo, prepare
from data.shard_writer import Encoded, Writer
from data.sources.base import DataSpec

SHARED = Path(__file__).parents[2].parent / "shared"
CORPUS = SHARED / "corpus" / "slimpajama"
TIKTOKEN = SHARED / "tiktoken"

needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
needs_gpt2 = pytest.mark.skipif(not TIKTOKEN.is_dir(), reason=f"no tiktoken cache at {TIKTOKEN}")

WORDS = ["the", "a", "of", "stone", "river", "mountain", "ünïcödé", "東京", "walks", "sings", "12", "345", "don't"]
WORDS += ["it's", "code()", "->", "x_1", "😀", "and"]


def texts(n: int, seed: int = 0, longest: int = 200) -> list[str]:
    """Return `n` texts of up to `longest` words, a few of which are equal."""
    rng = random.Random(seed)
    out = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) + f" {i}\n" for i in range(n)]
    for _ in range(n // 20):
        out[rng.randrange(n)] = out[rng.randrange(n)]
    return out


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    """Write JSON lines, compressed if the name ends with .zst. A str is the text of a record."""
    rows = [{"text": record} if isinstance(record, str) else record for record in records]
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(raw) if path.suffix == ".zst" else raw)
    return path


def make(tmp_path: Path, path: Path | None = None, **options: Any) -> PreparedInfo:
    """Prepare a corpus in tmp_path/prepared, without output."""
    defaults: dict[str, Any] = {"source": "text", "tokenizer": "bytes", "validation_fraction": 0.1, "workers": 2}
    given = {"path": str(path) if path else None, "cache_dir": str(tmp_path / "prepared"), **options}
    return prepare(DataSpec(**{**defaults, **given}), progress=False, log=lambda line: None)


def refused(call: Any, *words: str) -> str:
    """Return the one-line UserError of `call`, which must hold all of `words`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def added_documents(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of documents of each `Writer.add` from now on."""
    added: list[int] = []
    add = Writer.add

    def counted(self: Writer, split: str, encoded: Encoded) -> None:
        added.append(len(encoded.lengths))
        add(self, split, encoded)

    monkeypatch.setattr(Writer, "add", counted)
    return added


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a folder by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
