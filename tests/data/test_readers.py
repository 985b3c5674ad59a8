"""Tests of every file format, and of the one-line errors for broken files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data import readers
from data.readers import read_documents
from tests.data.helpers import make, refused, texts, write_jsonl

LINES = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(5)).encode()


def read(path: Path | str, **options: str) -> list[str]:
    return [document.text for document in read_documents(path, **options)]


FORMATS = {
    "a.jsonl": LINES,
    "a.jsonl.zst": zstandard.compress(LINES),
    "two frames.jsonl.zst": zstandard.compress(LINES[:30]) + zstandard.compress(LINES[30:]),
    "a.jsonl.gz": gzip.compress(LINES),
    "two members.jsonl.gz": gzip.compress(LINES[:30]) + gzip.compress(LINES[30:]),
    "array.json": json.dumps([{"text": f"text {i}"} for i in range(5)], indent=1).encode(),
    "lines.json.zst": zstandard.compress(LINES),
    "bom and blanks.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
    "no last newline.jsonl": LINES[:-1],
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    assert read(tmp_path / name) == [f"text {i}" for i in range(5)]


def test_parquet_with_a_dotted_key_and_a_source(tmp_path: Path) -> None:
    rows = [{"body": {"text": f"text {i}"}, "meta": {"redpajama_set_name": "Books"}} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    found = list(read_documents(tmp_path / "a.parquet", text_key="body.text"))
    assert [document.text for document in found] == [f"text {i}" for i in range(5)]
    assert {document.source for document in found} == {"Books"}


def test_a_folder_is_read_in_order_with_a_source_for_each_top_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b" / "x-01.jsonl", ["3"])
    write_jsonl(tmp_path / "a" / "deep" / "x.jsonl.zst", ["1"])
    (tmp_path / "a" / "note.md").write_text("2")
    write_jsonl(tmp_path / "c" / "0001.jsonl", ["4"])
    assert [document.source for document in read_documents(tmp_path / "c")] == ["c"]
    (tmp_path / "c" / "0001.jsonl").unlink()
    write_jsonl(tmp_path / "part-0001.jsonl", ["4"])
    write_jsonl(tmp_path / "part-0002.jsonl", ["5"])
    (tmp_path / "script.py").write_text("left alone")
    (tmp_path / ".hidden.txt").write_text("left alone")
    found = list(read_documents(tmp_path))
    assert [document.text for document in found] == ["1", "2", "3", "4", "5"]
    assert [document.source for document in found] == ["a", "a", "b", "part", "part"]
    assert read(str(tmp_path / "part-*.jsonl")) == ["4", "5"]
    assert read(tmp_path / "script.py") == ["left alone"]


def test_a_very_long_plain_file_is_cut_at_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PLAIN_DOCUMENT_BYTES", 100_000)
    text = "".join(texts(1000))
    (tmp_path / "a.txt").write_text(text)
    found = read(tmp_path / "a.txt")
    assert "".join(found) == text
    assert len(found) > 3
    assert all(document.endswith("\n") for document in found)


def test_a_line_of_fifty_megabytes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl.zst", ["x" * 50_000_000, "y"])
    assert [len(text) for text in read(tmp_path / "a.jsonl.zst")] == [50_000_000, 1]


WRONG = {
    "truncated.jsonl.zst": (zstandard.compress(LINES * 1000)[:-7], ("truncated",)),
    "corrupt.jsonl.zst": (b"not zstd at all", ("corrupt .zst",)),
    "truncated.jsonl.gz": (gzip.compress(LINES)[:-20], ("truncated",)),
    "json.jsonl": (LINES + b"{oops\n", (":6:", "not a line of JSON")),
    "textless.jsonl": (LINES + b'{"content": "x"}\n', (":6:", "'text'", "content", "text_key")),
    "null.jsonl": (LINES + b'{"text": null}\n', (":6:", "no text")),
    "number.jsonl": (LINES + b"12\n", (":6:", "no text")),
    "utf8.jsonl": (LINES + b'{"text": "\xff"}\n', (":6:", "UTF-8")),
    "utf8.txt": (b"first\nsecond \xff\n", ("byte 13", "line 2", "UTF-8")),
    "array.json": (b'[{"text": "x"},', ("not a JSON array",)),
    "bad.parquet": (b"PAR1 nonsense", ("not a readable parquet",)),
    "nothing.jsonl": (b"\n", ("no text",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    raw, words = WRONG[name]
    path = tmp_path / name
    path.write_bytes(raw)
    refused(lambda: read(path), name, *words)
    refused(lambda: make(tmp_path, path), *words[:1])


def test_truncated_zst_says_how_many_documents_were_read(tmp_path: Path) -> None:
    engine = zstandard.ZstdCompressor().compressobj()
    raw = engine.compress(LINES * 1000) + engine.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    (tmp_path / "a.jsonl.zst").write_bytes(raw)
    refused(lambda: read(tmp_path / "a.jsonl.zst"), "a.jsonl.zst", "after 5000 documents")


@pytest.mark.parametrize("name", ["json.jsonl", "textless.jsonl", "utf8.jsonl", "number.jsonl", "null.jsonl"])
def test_bad_records_can_be_skipped(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WRONG[name][0] + LINES)
    assert len(read(tmp_path / name, bad_documents="skip")) == 10
    info = make(tmp_path, tmp_path / name, bad_documents="skip", validation_fraction=0.5)
    assert info.manifest["bad_documents_skipped"] == 1


def test_parquet_without_the_column_lists_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "url": ["y"]}), tmp_path / "a.parquet")
    refused(lambda: read(tmp_path / "a.parquet"), "'text'", "body, url", "data.text_key")


def test_missing_and_empty_paths_are_refused(tmp_path: Path) -> None:
    refused(lambda: read(tmp_path / "absent.jsonl"), "absent.jsonl", "no such file")
    refused(lambda: read(str(tmp_path / "*.jsonl")), "no file matches")
    refused(lambda: read(tmp_path), "an empty folder")
    (tmp_path / "a.bin").write_bytes(b"x")
    refused(lambda: read(tmp_path), "no file of a known format", ".bin", ".parquet")
    refused(lambda: read(tmp_path / "a.bin"), "no file of a known format", ".bin")
