"""Tests of generated broken files: refused in one line, or prepared with every document accounted for.

What must come out is worked out here again, in a few plain lines: which records a file holds, which of them have a text, and
which come twice. `make test-slow` tries thousands of files, and documents of 50 MB.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from data.files.readers import read_documents
from data.prepare import PreparedInfo
from data.shards import open_corpus
from tests.cli.test_bad_input import cases
from tests.data.helpers import make, texts, write_jsonl

GOOD = [{"text": text} for text in texts(30)]  # added so that both splits have text
MEGABYTE = 1_000_000
STRANGE_TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=5),  # lone surrogates
    st.sampled_from(
        ["", " ", "\0", "\0" * 500, "\n" * 300, "\ufeff", "😀" * 200, "<|endoftext|>", "\u2028", "a" * 3000]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), STRANGE_TEXTS, st.integers(10**20, 10**25)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(STRANGE_TEXTS, inner, max_size=3)),
    max_leaves=8,
)
RECORDS = st.one_of(
    VALUES,
    st.builds(lambda text: {"text": text}, STRANGE_TEXTS),
    st.builds(lambda text, meta: {"text": text, "meta": meta}, STRANGE_TEXTS, VALUES),
    st.builds(lambda text, name: {"text": text, "meta": {"redpajama_set_name": name}}, STRANGE_TEXTS, VALUES),
)
LINES = st.one_of(
    st.builds(lambda record, plain: json.dumps(record, ensure_ascii=plain), RECORDS, st.booleans()).map(
        lambda line: line.encode("utf-8", "surrogatepass")  # invalid UTF-8 if it holds a lone surrogate
    ),
    st.binary(max_size=30),
    st.sampled_from(
        [b"", b" ", b"\r", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 5000, b"1" * 5000, b'{"text":', b'{"text": "a"} x']
    ),
)


def whole(text: str) -> bytes:
    """Return a text as the corpus holds it: a lone surrogate is one U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def record_of(line: bytes) -> str | None:
    """Return the text of a line of JSON, None for a bad line."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    text = value.get("text") if isinstance(value, dict) else None
    return text if isinstance(text, str) else None


def accounted(info: PreparedInfo, found: list[str | None]) -> None:
    """Assert that the corpus holds each of these texts once (None: a bad record) and counts the others by reason."""
    kept = [whole(text) for text in found if text]
    manifest, unique = info.manifest, set(kept)
    totals = [manifest["splits"][split] for split in ("train", "val")]
    assert sum(split["documents"] for split in totals) == len(unique)
    assert sum(split["bytes"] for split in totals) == sum(map(len, unique))
    assert manifest["bad_documents_skipped"] == found.count(None)
    assert manifest["empty_documents_dropped"] == found.count("")
    assert manifest["duplicates_dropped"] == len(kept) - len(unique)
    assert sum(info.left_out.values()) == len(found) - len(unique)
    corpus = open_corpus(info.folder)
    documents = [
        corpus.tokenizer.decode(document[:-1]).encode()
        for split in (corpus.train, corpus.val)
        for shard, starts in zip(split.shards, split.starts, strict=True)
        for document in np.split(shard, starts[1:])
    ]
    assert sorted(documents) == sorted(unique)


def refusal(call: Callable[[], Any]) -> str | None:
    """Return the one-line UserError of `call`, None if it succeeds; any other exception fails the test."""
    try:
        call()
    except UserError as error:
        assert len(error.messages) == 1
        assert len(str(error)) > 20
        return str(error)
    return None


def folder_with(name: str, content: bytes) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / name
    path.write_bytes(content)
    return folder, path


@cases(20, 1000)
def test_lines_of_any_shape(number: int) -> None:
    @settings(max_examples=number)
    @given(st.lists(LINES, max_size=12), st.sampled_from(["a.jsonl", "a.jsonl.zst", "a.jsonl.gz"]))
    def holds(strange: list[bytes], name: str) -> None:
        lines = b"\n".join([*(json.dumps(record).encode() for record in GOOD), *strange]).split(b"\n")
        raw = b"\n".join(lines)
        packed = {"zst": zstandard.compress, "gz": gzip.compress}.get(name.split(".")[-1], bytes)(raw)
        found = [record_of(line) for line in lines if line.strip()]
        folder, path = folder_with(name, packed)
        with folder:
            out = Path(folder.name)
            accounted(make(out, path, bad_documents="skip", validation_fraction=0.3), found)
            if refusal(lambda: make(out, path, validation_fraction=0.3)) is None:
                assert None not in found
            left_out: dict[str, int] = {}
            read = list(read_documents(path, bad_documents="skip", left_out=left_out))
            assert len(read) + sum(left_out.values()) == len(found)

    holds()


@cases(15, 600)
@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "a.json",
        "a.jsonl.zst",
        "a.jsonl.gz",
        "a.parquet",
        "a.txt.gz",
        "a.md.zst",
        "a.ndjson.xz",
        "a.csv.bz2",
        "a.csv",
        "a.tsv",
        "a.zip",
        "stream.arrow",
        "file.arrow",
        "a.feather",
    ],
)
def test_files_of_any_bytes(name: str, number: int) -> None:
    """The bytes include truncated and changed frames and archives."""
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(GOOD), table)
    raw = b"".join(json.dumps(record).encode() + b"\n" for record in GOOD)
    good = {"zst": zstandard.compress(raw), "gz": gzip.compress(raw), "parquet": table.getvalue()}
    good |= {
        "xz": lzma.compress(raw),
        "bz2": bz2.compress(b'"text"\n' + raw),
        "csv": b"text\n" + raw,
        "zip": zip_of(raw),
    }
    good |= {"arrow": arrow_of(pa.Table.from_pylist(GOOD), name), "feather": feather_of(pa.Table.from_pylist(GOOD))}
    start = good.get(name.split(".")[-1], raw)

    @settings(max_examples=number // 7 + 1)
    @given(
        st.one_of(
            st.binary(max_size=300),
            st.integers(0, len(start)).map(lambda at: start[:at]),
            st.tuples(st.integers(0, len(start) - 1), st.integers(0, 255)).map(
                lambda change: start[: change[0]] + bytes([change[1]]) + start[change[0] + 1 :]
            ),
        )
    )
    def holds(content: bytes) -> None:
        folder, path = folder_with(name, content)
        with folder:
            out = Path(folder.name)
            for bad_documents in ("refuse", "skip"):
                refusal(lambda how=bad_documents: make(out, path, bad_documents=how, validation_fraction=0.3))  # type: ignore[misc]
                refusal(lambda how=bad_documents: list(read_documents(path, bad_documents=how)))  # type: ignore[misc]

    holds()


def zip_of(raw: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", raw)
        archive.writestr("b.txt", "text<|endoftext|>text")
    return content.getvalue()


def arrow_of(table: pa.Table, name: str) -> bytes:
    content = io.BytesIO()
    new = pa.ipc.new_file if name.startswith("file") else pa.ipc.new_stream
    with new(content, table.schema) as writer:
        writer.write_table(table)
    return content.getvalue()


def feather_of(table: pa.Table) -> bytes:
    content = io.BytesIO()
    pyarrow.feather.write_feather(table, content)
    return content.getvalue()


def parquet_of(table: pa.Table, name: str) -> bytes:
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


TYPES = (
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int64(), pa.float32(), pa.bool_(), pa.null(),
    pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.date64(), pa.time64("ns"), pa.duration("s"), pa.decimal128(30, 3),
    pa.list_(pa.string()), pa.struct([("text", pa.string())]), pa.map_(pa.string(), pa.string()),
    pa.dictionary(pa.int8(), pa.string()), pa.binary(4), pa.month_day_nano_interval(),
)  # fmt: skip


@cases(10, 400)
@pytest.mark.parametrize(
    ("name", "write"), [("a.parquet", parquet_of), ("stream.arrow", arrow_of), ("file.arrow", arrow_of)]
)
def test_columns_of_any_schema(name: str, write: Callable[[pa.Table, str], bytes], number: int) -> None:
    columns = st.dictionaries(st.sampled_from(["text", "meta", "a.b", "", "é"]), st.sampled_from(TYPES), max_size=3)

    @settings(max_examples=number)
    @given(columns, st.integers(0, 3), st.sampled_from(["text", "text.text", "meta.text", "a.b", "é"]), st.data())
    def holds(schema: dict[str, Any], rows: int, key: str, data: st.DataObject) -> None:
        made = {name: data.draw(st.sampled_from(columns_of(kind, rows)), name) for name, kind in schema.items()}
        table = pa.table(made) if made else pa.table({})
        try:
            content = write(table, name)
        except pa.ArrowException:  # not every type can be written
            return
        folder, path = folder_with(name, content)
        with folder:
            for how in ("refuse", "skip"):
                left_out: dict[str, int] = {}
                found: list[Any] = []
                call = lambda: found.extend(read_documents(path, key, how, left_out))  # noqa: B023, E731
                if refusal(call) is None:
                    assert len(found) + sum(left_out.values()) == rows

    holds()


def columns_of(kind: Any, rows: int) -> list[Any]:
    """Return columns of a type, with nulls and its most extreme values."""
    out = [pa.nulls(rows, kind)]
    if pa.types.is_integer(kind) or pa.types.is_temporal(kind):
        extreme = np.full(rows, np.iinfo(np.int64).max)
        try:
            out.append(pa.array(extreme).cast(kind, safe=False))
        except pa.ArrowException:
            out.append(pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(2 * extreme.tobytes())]))
    elif kind in (pa.string(), pa.large_string()):
        sizes = np.arange(rows + 1, dtype=np.int32 if kind == pa.string() else np.int64)
        out.append(
            pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(sizes.tobytes()), pa.py_buffer(b"\xff" * rows)])
        )
        out.append(pa.array([f"text {i}" for i in range(rows)], kind))
    return out


def test_a_folder_without_usable_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.txt", "c.json", "d.jsonl.zst", "e.parquet", "f.txt.gz"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "empty" / name).write_bytes(b"")
    message = refusal(lambda: make(tmp_path, tmp_path / "empty"))
    assert message is not None
    assert "e.parquet" in message or "no text" in message


# ----------------------------------------------------------------------------------------------- pathological documents

PATHOLOGICAL: dict[str, Callable[[int], str]] = {
    "one letter": lambda size: "a" * size,
    "letters without a break": lambda size: "acgt" * (size // 4),
    "blanks": lambda size: " " * size,
    "ends of lines": lambda size: "\n" * size,
    "digits": lambda size: "0123456789" * (size // 10),
    "signs": lambda size: "=" * size,
    "emoji": lambda size: "😀" * (size // 5),  # 12 bytes each as JSON escapes them; 128 MiB is the longest line
    "letters and marks": lambda size: "क़" * (size // 6),
    "NUL": lambda size: "\0" * (size // 3),  # 6 bytes each as JSON escapes them
    "half pairs": lambda size: "\ud800" * (size // 3),
    "digits and other numbers": lambda size: "1²" * (size // 3),
}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-400"])
@pytest.mark.parametrize(
    "size", [MEGABYTE // 3, pytest.param(50 * MEGABYTE, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_pathological_documents_neither_hang_nor_vanish(name: str, size: int, tokenizer: str, tmp_path: Path) -> None:
    """The tokenizer learns merges from other documents of the same kind, so that there is something to merge."""
    text = PATHOLOGICAL[name](size)
    others = [PATHOLOGICAL[name](2000 + 10 * i) + str(i) for i in range(20)]
    path = write_jsonl(tmp_path / "a.jsonl", [text, *others, *(record["text"] for record in GOOD)])
    began = time.process_time()
    info = make(tmp_path, path, tokenizer=tokenizer, validation_fraction=0.3)
    assert time.process_time() - began < 10 + size / MEGABYTE
    accounted(info, [text, *others, *(record["text"] for record in GOOD)])
