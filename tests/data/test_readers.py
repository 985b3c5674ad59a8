"""Tests of every file format, and of the one-line errors for broken files."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from data.documents import Reading
from data.files import readers
from data.files.find_files import describe_not_read, find_files
from data.files.formats import plain
from data.files.readers import read_documents
from tests.data.helpers import make, refused, texts, write_jsonl

TEXTS = [f"text {i}" for i in range(5)]
LINES = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(5)).encode()


def read(path: Path | str, **options: str) -> list[str]:
    return [document.text for document in read_documents(path, **options)]


def table_of(rows: list[list[str]], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue().encode()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    return content.getvalue()


def arrow_of(table: pa.Table, kind: str) -> bytes:
    content = io.BytesIO()
    with getattr(pa.ipc, f"new_{kind}")(content, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return content.getvalue()


def feather_of(table: pa.Table, compression: str) -> bytes:
    content = io.BytesIO()
    pyarrow.feather.write_feather(table, content, compression=compression)
    return content.getvalue()


ROWS = table_of([["id", "text"], *([str(i), text] for i, text in enumerate(TEXTS))])
TABLE = pa.table({"id": list(range(5)), "text": TEXTS})
STORIES = "\n<|endoftext|>\n".join(TEXTS).encode()


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
    "a.ndjson": LINES,
    "a.jsonl.xz": lzma.compress(LINES),
    "two streams.jsonl.xz": lzma.compress(LINES[:30]) + b"\0" * 8 + lzma.compress(LINES[30:], check=lzma.CHECK_SHA256),
    "a.jsonl.bz2": bz2.compress(LINES),
    "two streams.jsonl.bz2": bz2.compress(LINES[:30]) + bz2.compress(LINES[30:]),
    "a.csv": ROWS,
    "bom.csv": b"\xef\xbb\xbf" + table_of([["text"], *([text] for text in TEXTS)]).replace(b"\r", b""),
    "blank lines.csv.gz": gzip.compress(ROWS.replace(b"\r\n", b"\r\n\r\n")),
    "a.tsv.bz2": bz2.compress(table_of([["text", "id"], *([text, "1"] for text in TEXTS)], "\t")),
    "a.arrow": arrow_of(TABLE, "stream"),
    "file.arrow": arrow_of(TABLE, "file"),
    "dictionary.arrow": arrow_of(TABLE.set_column(1, "text", TABLE["text"].dictionary_encode()), "file"),
    "a.feather": feather_of(TABLE, "lz4"),
    "zstd.feather": feather_of(TABLE, "zstd"),
    "strings.json": json.dumps(TEXTS).encode(),
    "strings.jsonl": "".join(json.dumps(text) + "\n" for text in TEXTS).encode(),
    "objects.json": "\n".join(json.dumps({"text": text}, indent=1) for text in TEXTS).encode(),
    "a.txt": STORIES,
    "crlf.txt.xz": lzma.compress(STORIES.replace(b"\n", b"\r\n") + b"\r\n<|endoftext|>\r\n"),
    "one line.txt": STORIES.replace(b"\n", b""),
    "a.zip": zip_of({"a.jsonl": LINES}),
    "b.zip": zip_of({"deep/a.csv.gz": gzip.compress(ROWS)}, zipfile.ZIP_STORED),
    "c.zip": zip_of({f"{i}.txt": text.encode() for i, text in enumerate(TEXTS)}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    assert read(tmp_path / name) == TEXTS


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


def test_quoted_fields_hold_delimiters_and_line_ends(tmp_path: Path) -> None:
    fields = ['a, "quoted" word', "two\nlines\r\nand\ta tab", " ", 'x"y', "<|endoftext|>", "東京😀", "long " * 100_000]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        (tmp_path / name).write_bytes(
            table_of([["n", "body"], *([str(n), f] for n, f in enumerate(fields))], delimiter)
        )
        assert read(tmp_path / name, text_key="body") == fields


def test_a_saved_dataset_is_read_without_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    parts = {
        split: datasets.Dataset.from_dict({"text": [f"{split} {text}" for text in TEXTS]})
        for split in ("test", "train")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == [f"{split} {text}" for split in parts for text in TEXTS]
    names = find_files(str(tmp_path / "saved")).names_not_read
    assert "dataset_dict.json" in names
    assert "train/state.json" in names
    assert read(tmp_path / "saved" / "train") == [f"train {text}" for text in TEXTS]


def test_arrow_with_a_nested_text_and_a_source(tmp_path: Path) -> None:
    rows = [{"body": {"text": text}, "meta": {"redpajama_set_name": "Books"}} for text in TEXTS]
    (tmp_path / "a.arrow").write_bytes(arrow_of(pa.Table.from_pylist([*rows[:4], {**rows[4], "meta": None}]), "stream"))
    found = list(read_documents(tmp_path / "a.arrow", text_key="body.text"))
    assert [document.text for document in found] == TEXTS
    assert [document.source for document in found] == ["Books"] * 4 + ["a"]


def test_stories_in_a_text_file_are_documents_wherever_it_is_cut(tmp_path: Path) -> None:
    stories = [f"story {i}: 東京\nends" for i in range(40)]
    for separator in ("\n<|endoftext|>\n", "<|endoftext|>"):
        raw = separator.join(stories).encode()
        (tmp_path / "a.txt").write_bytes(raw)
        assert read(tmp_path / "a.txt") == stories
        for cut in range(300, 360):
            if raw[cut] & 0xC0 == 0x80:  # within a character
                continue
            parts = [
                record.text
                for reading in (Reading(stop=cut), Reading(start=cut))
                for record in readers.read_file(tmp_path / "a.txt", reading)
                if record
            ]
            joined = "".join(parts).replace("\n", "")
            assert joined == "".join(stories).replace("\n", "")
            assert len(parts) in (40, 41)


def test_a_separator_across_pieces_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.files.decompress.READ_BYTES", 7)
    (tmp_path / "a.txt").write_bytes(b"<|endoftext|>\n" + STORIES + b"<|endoftext|>" * 2 + b"<|endof<|text|><")
    assert read(tmp_path / "a.txt") == [*TEXTS, "<|endof<|text|><"]
    (tmp_path / "a.md").write_bytes(STORIES)
    assert read(tmp_path / "a.md") == [STORIES.decode()]


def test_stories_are_separate_documents_of_a_corpus(tmp_path: Path) -> None:
    stories = [f"{text}{i}" for i, text in enumerate(texts(100))]
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(stories))
    (tmp_path / "b.txt").write_text("one more")
    info = make(tmp_path, f"{tmp_path}/*.txt")
    assert sum(split["documents"] for split in info.manifest["splits"].values()) == 101
    alone = make(tmp_path, tmp_path / "a.txt")
    counts = {name: split["documents"] for name, split in alone.manifest["splits"].items()}
    assert counts["val"] > 1
    assert sum(counts.values()) in (100, 101)  # the file may be cut within a story


def test_an_archive_is_read_like_a_folder(tmp_path: Path) -> None:
    files = {
        "/abs.jsonl": LINES,
        "../up.txt": b"one<|endoftext|>two",
        "x/c.csv.gz": gzip.compress(ROWS),
        "x/deep/README.md": b"card",
        "x/nested.zip": zip_of({"a.txt": b"x"}),
        "x/p.parquet": b"PAR1",
        ".hidden.txt": b"x",
        "__MACOSX/._a.txt": b"x",
        "x/empty.txt": b"",
    }
    path = tmp_path / "data.zip"
    path.write_bytes(zip_of(files))
    found = list(read_documents(path))
    assert [document.text for document in found] == ["one", "two", *TEXTS, *TEXTS]
    assert [document.source for document in found[2:]] == ["abs"] * 5 + ["x"] * 5
    names = [f"data.zip/x/{name}" for name in ("deep/README.md", "nested.zip", "p.parquet")]
    assert find_files(str(path)).names_not_read == names
    info = make(tmp_path, path, validation_fraction=0.4)
    assert sum(split["documents"] for split in info.manifest["splits"].values()) == 7
    assert info.manifest["duplicates_dropped"] == 5


def test_files_that_are_not_read_are_listed(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_jsonl(corpus / "part.jsonl", TEXTS)
    for name in ("README.md", "sub/LICENSE.txt", "a.docx", "b.pdf", "c.jsonl.7z", "d.parquet.gz", ".hidden"):
        (corpus / name).parent.mkdir(exist_ok=True)
        (corpus / name).write_bytes(b"not text")
    assert read(corpus) == TEXTS
    names = find_files(str(corpus)).names_not_read
    assert names == ["README.md", "a.docx", "b.pdf", "c.jsonl.7z", "d.parquet.gz", "sub/LICENSE.txt"]
    assert describe_not_read(names[:3]) == "not read: 3 files (README.md, a.docx, b.pdf)"
    assert describe_not_read(["a.docx"]) == "not read: 1 file (a.docx)"
    assert describe_not_read([]) == ""
    many = [f"{i}.pdf" for i in range(2000)] + ["x", "y.docx", "z.docx"]
    assert describe_not_read(many) == "not read: 2,003 files (2,000 .pdf, 2 .docx, 1 no suffix)"
    assert find_files(f"{corpus}/*").names_not_read == names[:-1]
    assert read(corpus / "README.md") == ["not text"]


def test_a_readme_is_text_only_among_plain_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "LICENSE.txt").write_text("terms")
    assert read(tmp_path) == ["terms", "about"]
    (tmp_path / "part.jsonl.7z").write_bytes(b"x")
    refused(lambda: read(tmp_path), "README.md", "LICENSE.txt", "part.jsonl.7z", "allowed", ".jsonl", ".xz")
    refused(lambda: make(tmp_path, tmp_path), "part.jsonl.7z")
    (tmp_path / "chapter.txt").write_text("text")
    assert read(tmp_path) == ["terms", "about", "text"]
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A data set on the Hub\n")
    assert read(tmp_path) == ["text"]
    assert find_files(str(tmp_path)).names_not_read == ["LICENSE.txt", "README.md", "part.jsonl.7z"]


def test_data_that_is_named_like_a_readme_is_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "licenses.jsonl", ["1"])
    write_jsonl(tmp_path / "readme_files.jsonl", ["2"])
    assert read(tmp_path) == ["1", "2"]


def test_a_very_long_plain_file_is_cut_at_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "PLAIN_DOCUMENT_BYTES", 100_000)
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
    "truncated.jsonl.xz": (lzma.compress(LINES * 1000)[:-20], ("truncated",)),
    "truncated.jsonl.bz2": (bz2.compress(LINES)[:-5], ("truncated",)),
    "corrupt.jsonl.bz2": (bz2.compress(LINES)[:20] + b"xxxx" + bz2.compress(LINES)[24:], ("corrupt .bz2",)),
    "corrupt.txt.xz": (lzma.compress(LINES)[:30] + b"xxxx" + lzma.compress(LINES)[34:], ("corrupt .xz",)),
    "text.txt.gz": (b"text\n", ("corrupt .gz", "remove .gz from its name")),
    "xz.txt.gz": (lzma.compress(LINES), ("corrupt .gz", "compressed with xz")),
    "corrupt.zip": (zip_of({"a.jsonl": LINES}, 0).replace(b"text 3", b"text 4"), ("a.jsonl", "CRC")),
    "truncated.zip": (zip_of({"a.jsonl": LINES})[:-30], ("not a readable .zip",)),
    "empty.zip": (b"", ("not a readable .zip",)),
    "nothing.zip": (zip_of({}), ("no files", ".zip")),
    "encrypted.zip": (
        zip_of({"a.txt": b"x"}, 0).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
        ("encrypted", "a.txt"),
    ),
    "lzma.zip": (zip_of({"a.txt": b"x"}, zipfile.ZIP_LZMA), ("unpack", "a.txt")),
    "truncated.arrow": (arrow_of(TABLE, "file")[:-100], ("not a readable Arrow",)),
    "half.arrow": (arrow_of(TABLE, "stream")[:-100], ("not a readable Arrow",)),
    "empty.arrow": (b"", ("not a readable Arrow",)),
    "text.arrow": (b"text\n" * 100, ("not a readable Arrow",)),
    "short.csv": (b"id,text\n1,x\n2\n", (":3:", "1 field", "2 columns")),
    "commas.csv": (b"id,text\n1,x\n2,one, two\n", (":3:", "3 fields", "quotes")),
    "open.csv": (b'id,text\n1,x\n2,"y\n3,z\n', (":3:", "unexpected end")),
    "utf8.csv": (b"id,text\n1,x\n2,\xff\n", (":3:", "UTF-8")),
    "columns.csv": (b"id,body\n1,x\n", ("no column 'text'", "id, body", "data.text_key")),
    "semicolons.csv": (b"id;text\n1;x\n", ("no column 'text'", "id;text", "comma")),
    "twice.tsv": (b"text\ttext\nx\ty\n", ("two columns 'text'",)),
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


UNUSABLE: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "list.jsonl": (b'{"text": ["x"]}\n' * 9, (":1:", "'text'", "holds a list")),
    "null.jsonl": (b'{"text": null}\n' * 9, (":1:", "holds null")),
    "number.json": (b'[{"text": 3}]', ("item 1", "holds a number")),
    "nested.jsonl": (b'{"text": {"text": "x"}}\n', (":1:", "holds an object")),
    "numbers.jsonl": (b"1\n2\n", (":1:", "the record is a number")),
    "key.jsonl": (b'{"content": "x", "id": 3}\n' * 9, ("the record has: content, id (a number)", "data.text_key")),
    "pretty.jsonl": (json.dumps({"text": "x"}, indent=1).encode(), ("several lines", ".json", "jq")),
    "pretty array.jsonl": (json.dumps([{"text": "x"}], indent=1).encode(), ("several lines", ".json")),
    "data.json": (
        json.dumps({"version": 1, "data": [{"text": "x"}]}, indent=1).encode(),
        ("'data'", "list of records"),
    ),
    "data on a line.json": (json.dumps({"data": [{"text": "x"}]}).encode(), ("'data'", "list of records")),
    "utf16.jsonl": (LINES.decode().encode("utf-16"), ("UTF-16", "iconv -f UTF-16 -t UTF-8")),
    "utf16.csv": ("text\nx\n".encode("utf-16"), ("UTF-16", "iconv")),
    "utf16.txt": ("some text".encode("utf-16-le"), ("UTF-16", "iconv -f UTF-16LE")),
    "utf16.txt.gz": (gzip.compress("some text".encode("utf-16-be")), ("UTF-16", "iconv -f UTF-16BE")),
    "utf32.txt": ("some text".encode("utf-32"), ("UTF-32", "iconv")),
    "zstd.txt": (zstandard.compress(LINES), ("zstd", ".zst")),
    "gzip.txt": (gzip.compress(LINES), ("gzip", ".gz")),
    "xz.jsonl": (lzma.compress(LINES), ("xz", ".xz")),
    "bzip2.md": (bz2.compress(LINES), ("bzip2", ".bz2")),
    "zip.txt": (zip_of({"a": b"x"}), ("zip archive",)),
    "arrow.txt": (arrow_of(TABLE, "file"), ("Arrow",)),
    "stream.txt": (arrow_of(TABLE, "stream"), ("Arrow",)),
    "pdf.txt": (b"%PDF-1.7\n", ("PDF",)),
    "nuls.txt": (bytes(range(4)) * 100, ("binary",)),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_of_which_nothing_can_be_used_is_refused_for_what_it_is(name: str, tmp_path: Path) -> None:
    """The advice to skip bad records would leave no text."""
    raw, words = UNUSABLE[name]
    (tmp_path / name).write_bytes(raw)
    for call in (lambda: read(tmp_path / name), lambda: make(tmp_path, tmp_path / name)):
        assert "bad_documents" not in refused(call, name, *words)


def test_a_bad_first_record_of_a_good_file_may_be_skipped(tmp_path: Path) -> None:
    for name, first in (("a.jsonl", b'{"text": null}\n'), ("b.json", b'{"text": "x\n'), ("c.jsonl", b"{\n")):
        (tmp_path / name).write_bytes(first + LINES)
        refused(lambda: read(tmp_path / name), f"{name}:1:", "data.bad_documents=skip")  # noqa: B023
        assert read(tmp_path / name, bad_documents="skip") == TEXTS


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_a_column_without_strings_is_refused_by_its_type(name: str, tmp_path: Path) -> None:
    table = pa.table({"n": [1, 2], "tags": [["x"], ["y"]], "text": ["x", None], "s": [{"a": 1}, {"a": 2}]})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(arrow_of(table, "stream"))
    refused(lambda: read(tmp_path / name, text_key="n"), "'n' holds int64", "text (string)", "data.text_key")
    refused(lambda: read(tmp_path / name, text_key="tags"), "'tags' holds list<")
    refused(lambda: read(tmp_path / name, text_key="s.b"), "no field 's.b'")
    refused(lambda: read(tmp_path / name, text_key="x"), "no column 'x'", "n, tags, text, s")
    refused(lambda: read(tmp_path / name), "row 2", "null", "data.bad_documents=skip")
    assert read(tmp_path / name, bad_documents="skip") == ["x"]


def test_other_documents_are_refused_with_the_formats_that_are_read(tmp_path: Path) -> None:
    for name in ("a.pdf", "a.docx", "a.xlsx", "a.tar.gz", "a.parquet.gz"):
        (tmp_path / name).write_bytes(b"x")
        refused(lambda: read(tmp_path / name), name, "allowed", ".csv", ".arrow", ".bz2", ".zip")  # noqa: B023


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
