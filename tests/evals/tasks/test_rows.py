"""Tests of the files of benchmarks: formats, compression, and what is wrong with a file, by name and line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from common.errors import UserError
from evals.tasks import rows as rows_module
from evals.tasks.rows import Row, item_files, read_each, read_rows

ROWS = [{"question": "Où ?\n", "n": 1}, {"question": 'a "b", c', "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
CSV = 'question,n\r\n"Où ?\n",1\r\n\r\n"a ""b"", c",2\r\n'
GOOD = {
    ".jsonl": LINES,
    ".ndjson": LINES.replace(b"\n", b"\r\n\r\n"),
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": CSV.encode(),
    ".tsv": b'question\tn\na "b", c\t2\n\n"\t3\n',
}


def values(path: Path) -> list[dict]:
    return [row.values for row in read_rows(path)]


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_all_formats_give_the_same_rows(tmp_path: Path, compression: str, mark: bytes) -> None:
    for suffix, content in GOOD.items():
        path = tmp_path / f"a{suffix}{compression}"
        path.write_bytes(COMPRESSED[compression](mark + content))
        found = values(path)
        if suffix == ".tsv":  # quotes are ordinary characters
            assert found == [{"question": 'a "b", c', "n": "2"}, {"question": '"', "n": "3"}]
        else:
            assert [{**row, "n": int(row["n"])} for row in found] == ROWS, suffix


def test_json_lines_in_a_file_named_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\n" + LINES)
    assert values(tmp_path / "a.json") == ROWS


def test_parquet_keeps_nested_values(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    nested = [{"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}] * 3
    parquet.write_table(pyarrow.Table.from_pylist(nested), tmp_path / "a.parquet", row_group_size=2)
    found = list(read_rows(tmp_path / "a.parquet"))
    assert [row.values for row in found] == nested
    assert found[-1].place.endswith("a.parquet: row 3")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable parquet file"):
        list(read_rows(tmp_path / "a.parquet"))


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"n": 1}\n\n{"n": 2}')
    (tmp_path / "b.csv").write_text('n,m\n1,"x\ny"\n2,z\n')
    assert [row.place.rpartition(":")[2] for row in read_rows(tmp_path / "a.jsonl")] == ["2", "4"]
    assert [row.place.rpartition(":")[2] for row in read_rows(tmp_path / "b.csv")] == ["3", "4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"n": 1}\n{"n": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"n": 1}\n[1, 2]\n', r"a\.jsonl:2: \[1, 2\] is not an object"),
        ("a.jsonl", b'{"n": "\\ud800"}\n', r"a\.jsonl:1: not valid JSON .*surrogates"),
        ("a.jsonl", b'{"n": ' + b"[" * 100_000 + b"}\n", r"a\.jsonl:1: not valid JSON .*nested too deep"),
        ("a.jsonl", b'{"n": 1}\n{"n": "\xff"}\n', r"a\.jsonl:2: not valid UTF-8 at byte 7"),
        ("a.jsonl", '{"n": 1}\n'.encode("utf-16"), r"a\.jsonl:1: not valid UTF-8"),
        ("a.json", b'{"data": [{"n": 1}]}', r"a\.json: not a list of objects"),
        ("a.json", b"17", r"a\.json: not a list of objects"),
        ("a.json", b"", r"a\.json: not valid JSON"),
        ("a.json", b'[{"n": 1}, "x"]', r"a\.json: entry 2: 'x' is not an object"),
        ("a.json", b'[{"n": 1}', r"a\.json: not valid JSON"),
        ("a.csv", b"n,m\n1,2\n3\n", r"a\.csv:3: 1 fields, but the header has 2"),
        ("a.csv", b"n,m\n1,2,3\n", r"a\.csv:2: 3 fields, but the header has 2"),
        ("a.csv", b"n,n\n1,2\n", r"a\.csv: the header names a field twice: n, n"),
        ("a.csv", b'n,m\n1,"2\n', r"a\.csv: not valid \.csv \(unexpected end of data\)"),
        ("a.jsonl.gz", b"plain text", r"a\.jsonl\.gz: corrupt \.gz file"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], r"a\.jsonl\.gz: the \.gz file is truncated"),
        ("a.txt", b"text", r"a\.txt: \.txt is not a format of task\.path; allowed: \.jsonl, .*\.parquet"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_rows(tmp_path / name))
    assert len(caught.value.messages) == 1


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")  # reading it would wait forever
    for path in (tmp_path / "a.jsonl", tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"is not a file; give task\.path"):
            list(read_rows(path))


def test_a_file_is_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "LARGEST_FILE", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n' * 1000))
    found = []
    with pytest.raises(UserError, match=r"larger than .* split the file"):
        found.extend(read_rows(tmp_path / "a.jsonl.gz"))
    assert len(found) == 1000 // 9


def test_invalid_rows_are_listed_or_skipped_and_counted() -> None:
    def even(row: Row) -> int:
        if row.values["n"] % 2:
            raise UserError(f"{row.place}: {row.values['n']} is odd")
        return int(row.values["n"])

    numbers = [Row(f"a:{n}", {"n": n}) for n in range(1, 41)]
    assert read_each(numbers, even, "skip") == (list(range(2, 41, 2)), 20)
    with pytest.raises(UserError) as caught:
        read_each(numbers, even, "refuse")
    assert len(caught.value.messages) == 12
    assert caught.value.messages[0] == "a:1: 1 is odd"
    assert caught.value.messages[10] == "... and 10 more invalid items"
    assert "20 of 40 items are invalid" in caught.value.messages[11]
    assert "task.bad_items=skip" in caught.value.messages[11]
    with pytest.raises(UserError, match="a:1: 1 is odd"):
        read_each(numbers[::2], even, "skip")  # none would be left


def test_the_text_of_a_field_is_a_text() -> None:
    row = Row("a:1", {"text": "x", "n": 1})
    assert row.text("text") == "x"
    with pytest.raises(UserError, match="a:1: n is 1, not a text"):
        row.text("n")
    with pytest.raises(UserError, match="a:1: no field 'm'; its fields are text, n"):
        row.text("m")


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv.gz", "readme.md", ".hidden.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    assert [path.name for path in item_files(tmp_path)] == ["a.csv.gz", "b.jsonl"]
    assert item_files(tmp_path, ["c.jsonl", "b.jsonl"]) == [tmp_path / "b.jsonl"]
    assert item_files(tmp_path / "b.jsonl") == [tmp_path / "b.jsonl"]
    with pytest.raises(UserError, match=r"does not exist; correct task\.path"):
        item_files(tmp_path / "c")
    with pytest.raises(UserError, match=r"holds no file with items \(\.jsonl"):
        item_files(tmp_path / "folder.jsonl")
