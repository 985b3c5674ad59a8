"""Tests of malicious corpora: decompression bombs, links to private files, foreign decoders, endless labels."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from common.checksum import add_checksum
from data.documents import LONGEST_LABEL, Reading
from data.files import decompress, readers
from data.files.decompress import read_chunks
from data.files.find_files import find_files
from data.files.formats import columnar, delimited, plain
from data.files.readers import read_documents
from data.prepare import prepare
from data.shards import open_corpus, verify
from data.sources import hub
from data.sources.base import DataSpec
from data.sources.registry import make_source
from data.tokenizers.tokenizer import Tokenizer, get_tokenizer
from tests.data.helpers import make, refused, texts, write_jsonl

FRAME = bytes.fromhex("28b52ffd 00 38")  # magic, no optional fields, a window of 128 KiB
MB = 1_000_000


def rle_blocks(byte: bytes, count: int) -> bytes:
    """`count` zstd blocks of 4 bytes, each of which expands to 128 KiB of one byte (RFC 8878, 3.1.1.2)."""
    return ((1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + byte) * count


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Assert that the peak memory of the with block stays within `limit` bytes, as the kernel measures it."""

    def kilobytes(what: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what))

    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = kilobytes("VmRSS")
    yield
    assert (kilobytes("VmHWM") - before) * 1024 < limit


@pytest.mark.parametrize(
    ("name", "byte"),
    [("bomb.jsonl.zst", b"x"), ("bomb.txt.zst", b"x"), ("bomb.json.zst", b"x"), ("bomb.json.zst", b" ")],
)
def test_a_zstd_frame_of_a_terabyte_is_refused_in_little_memory(tmp_path: Path, name: str, byte: bytes) -> None:
    (tmp_path / name).write_bytes(FRAME + rle_blocks(byte, 1 << 23))
    with little_memory(700 * MB):
        refused(lambda: list(read_documents(tmp_path / name)), name, "bomb")


def test_bombs_of_other_formats_are_refused_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(b"x" * 32 * MB) * 100)
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(b"x" * 100 * MB) * 10)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl.gz", gzip.compress(b"x" * 10 * MB) * 100)
    for name, member in (("a.jsonl.xz", ""), ("a.txt.bz2", ""), ("a.zip", "a.jsonl.gz")):
        with little_memory(60 * MB):
            refused(lambda: sum(map(len, read_chunks(tmp_path / name, Reading(member=member)))), name, "bomb")  # noqa: B023
        refused(lambda: list(read_documents(tmp_path / name)), name, "bomb")  # noqa: B023


def test_an_xz_file_that_needs_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    raw = lzma.compress(b'{"text": "x"}\n', check=lzma.CHECK_CRC32, filters=[{**filters[0], "dict_size": 1 << 12}])
    # The size of the dictionary is a code in byte 17, and a checksum follows the header (.xz format 3.1, 5.3.1).
    size = (raw[12] + 1) * 4
    header = bytearray(raw[12 : 12 + size - 4])
    header[header.index(b"\x21\x01") + 2] = 40  # 4 GiB
    forged = raw[:12] + bytes(header) + zlib.crc32(header).to_bytes(4, "little") + raw[12 + size :]
    (tmp_path / "a.jsonl.xz").write_bytes(forged)
    with little_memory(100 * MB):
        refused(lambda: list(read_documents(tmp_path / "a.jsonl.xz")), "a.jsonl.xz", "Memory usage limit")


def test_an_archive_whose_members_overlap_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.txt", b"x" * 10 * MB)
        for number in range(1, 100):
            again = copy.copy(archive.filelist[0])
            again.filename = f"{number}.txt"
            archive.filelist.append(again)
    refused(lambda: list(read_documents(tmp_path / "a.zip")), "a.zip", "overlap")


def test_an_archive_with_an_endless_list_of_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(300):
            archive.writestr(f"{number}.txt", f"{number}")
    assert len(list(read_documents(tmp_path / "a.zip"))) == 300
    monkeypatch.setattr("data.files.archive.DIRECTORY_BYTES", 10_000)
    (tmp_path / "a.zip").rename(tmp_path / "b.zip")
    refused(lambda: list(read_documents(tmp_path / "b.zip")), "b.zip", "list of files")


def test_an_archive_writes_and_opens_no_other_file(tmp_path: Path) -> None:
    """Its names may be absolute, and a member may be a link."""
    (tmp_path / "secret.txt").write_text("ssh-key")
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    with zipfile.ZipFile(corpus / "a.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "secret.txt"))
        archive.writestr(str(tmp_path / "secret.txt"), "absolute")
        archive.writestr("../secret.txt", "parent")
    before = sorted(tmp_path.rglob("*"))
    assert [document.text for document in read_documents(corpus)] == ["parent", "absolute"]
    assert sorted(tmp_path.rglob("*")) == before
    assert [path.name for path in find_files(str(corpus)).not_read] == ["link.txt"]


def test_a_quote_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b'text\n"' + (b"a line of text" * 100 + b"\n") * 40_000, 1))
    with little_memory(300 * MB):
        refused(lambda: list(read_documents(tmp_path / "a.csv.gz")), "a.csv.gz", "field limit")


def test_a_row_of_a_hundred_million_fields_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text\nx\n" + b"a," * 30 * MB, 1))
    with little_memory(400 * MB):
        refused(lambda: list(read_documents(tmp_path / "a.csv.gz")), "a.csv.gz", ":3", "fields")


def test_a_row_over_many_lines_with_too_many_fields_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MOST_FIELDS", 1000)
    (tmp_path / "a.csv").write_text('text,b\n"a' + '\n","b' * 1500 + '"\n')
    refused(lambda: list(read_documents(tmp_path / "a.csv")), "a.csv:1003", "row of more than 1,000 fields")
    rows = ["a,b\nc"] * 600  # the fields of all rows together do not count
    (tmp_path / "b.csv").write_text("text,b\n" + "".join(f'"{row}",x\n' for row in rows))
    assert [document.text for document in read_documents(tmp_path / "b.csv")] == rows


def test_text_that_compresses_well_is_not_a_bomb(tmp_path: Path) -> None:
    line = json.dumps({"text": "the same again " * 1000}) + "\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode() * 6000))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(line.encode() * 100))
    assert sum(1 for _ in read_documents(tmp_path)) == 6100


def test_zeros_between_frames_may_be_many(tmp_path: Path) -> None:
    """Some writers pad to the block size of the disk, here with more zeros than are read at once."""
    frames = [zstandard.compress(json.dumps({"text": f"text {i}"}).encode() + b"\n") for i in range(2)]
    (tmp_path / "a.jsonl.zst").write_bytes((b"\0" * 5000).join(frames) + b"\0" * 5000)
    assert [document.text for document in read_documents(tmp_path / "a.jsonl.zst")] == ["text 0", "text 1"]


def test_a_download_of_nothing_but_zeros_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"\0" * 5000)
    refused(lambda: list(read_documents(tmp_path / "a.jsonl.zst")), "corrupt .zst")


def test_a_line_nested_a_million_deep_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' + b"[" * MB + b"\n")
    refused(lambda: list(read_documents(tmp_path / "a.jsonl")), "a.jsonl:2", "too deep")
    assert len(list(read_documents(tmp_path / "a.jsonl", bad_documents="skip"))) == 1


def test_a_line_without_end_is_refused_or_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress, "LONGEST_LINE", MB)
    write_jsonl(tmp_path / "a.jsonl", ["first", "x" * 3 * MB, "x" * (MB - 100), "last", "x" * 2 * MB])
    refused(lambda: list(read_documents(tmp_path / "a.jsonl")), "a.jsonl:2", "MiB", "data.bad_documents=skip")
    found = [len(document.text) for document in read_documents(tmp_path / "a.jsonl", bad_documents="skip")]
    assert found == [5, MB - 100, 4]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"x" * 150 * MB + b'"}\n{"text": "y"}\n', 1))
    with little_memory(50 * MB):
        assert len(list(read_documents(tmp_path / "b.jsonl.gz", bad_documents="skip"))) == 1


def test_an_array_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress, "LONGEST_ARRAY", MB)
    (tmp_path / "a.json").write_text("[" + ",\n".join(['{"text": "x"}'] * 100_000) + "]")
    refused(lambda: list(read_documents(tmp_path / "a.json")), "a.json", "MiB", ".jsonl")


def test_plain_text_without_lines_is_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "PLAIN_DOCUMENT_BYTES", 100_000)
    monkeypatch.setattr(plain, "LONGEST_PLAIN", 400_000)
    text = "東京😀ü" * 200_000
    (tmp_path / "a.txt").write_text(text)
    found = [document.text for document in read_documents(tmp_path / "a.txt")]
    assert "".join(found) == text
    assert max(len(each.encode()) for each in found) < 500_000


def test_a_parquet_dictionary_that_repeats_a_large_text(tmp_path: Path) -> None:
    """One text of 4 MB in 300 rows takes over 1 GB if a whole batch is decoded at once."""
    large = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 4 * MB]))
    pq.write_table(pa.table({"text": large}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    with little_memory(700 * MB):
        assert sum(len(document.text) for document in read_documents(tmp_path / "a.parquet")) == 1200 * MB


def test_an_arrow_dictionary_that_repeats_a_large_text(tmp_path: Path) -> None:
    large = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 4 * MB]))
    write_arrow(tmp_path / "a.arrow", pa.table({"text": large}))
    with little_memory(700 * MB):
        assert sum(len(document.text) for document in read_documents(tmp_path / "a.arrow")) == 1200 * MB


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_arrow_buffers_that_decompress_to_too_much_are_refused(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [pa.table({"text": ["x" * MB] * 30}), pa.table({"text": pa.array(["x" * 30 * MB]).dictionary_encode()})]
    for number, table in enumerate(tables):
        pyarrow.feather.write_feather(table, tmp_path / f"{number}.feather", compression=compression)
        monkeypatch.setattr(columnar, "ARROW_BYTES", 31 * MB)
        size = sum(len(document.text) for document in read_documents(tmp_path / f"{number}.feather"))
        assert size == 30 * MB
        monkeypatch.setattr(columnar, "ARROW_BYTES", 29 * MB)
        refused(lambda: list(read_documents(tmp_path / f"{number}.feather")), "feather", "decompresses to 28 MiB")  # noqa: B023


def test_arrow_offsets_outside_the_buffer_are_refused(tmp_path: Path) -> None:
    offsets = np.array([0, 1 << 30, -5, 3], dtype=np.int32)
    bad = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"abc")])
    write_arrow(tmp_path / "a.arrow", pa.table({"text": bad}))
    refused(lambda: list(read_documents(tmp_path / "a.arrow")), "a.arrow", "not a readable Arrow file")


def test_a_folder_with_a_link_to_a_private_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("ssh-key")
    corpus = tmp_path / "corpus"
    write_jsonl(corpus / "a.jsonl", texts(5))
    (corpus / "b.jsonl").symlink_to("a.jsonl")
    assert len(list(read_documents(corpus))) == 10
    (corpus / "notes.txt").symlink_to(tmp_path / "secret.txt")
    refused(lambda: list(read_documents(corpus)), "notes.txt", "secret.txt", "leads out", "data.path=")
    refused(lambda: make(tmp_path, corpus), "notes.txt")
    # a file that the user names may be a link
    assert [document.text for document in read_documents(f"{corpus}/*.txt")] == ["ssh-key"]


def test_slimpajamas_layout_with_a_link_to_a_private_folder_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "private" / "a.jsonl", ["ssh-key"])
    write_jsonl(tmp_path / "corpus" / "validation" / "a.jsonl", texts(5))
    (tmp_path / "corpus" / "train").symlink_to(tmp_path / "private")
    spec = DataSpec(source="slimpajama", tokenizer="bytes", path=str(tmp_path / "corpus"))
    refused(lambda: make_source(spec), "corpus/train", "leads out")


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "abc" / "train"
    snapshot.mkdir(parents=True)
    write_jsonl(tmp_path / "blobs" / "1234.jsonl", texts(5))
    (snapshot / "a.jsonl").symlink_to("../../../blobs/1234.jsonl")
    assert len(list(read_documents(tmp_path / "snapshots" / "abc"))) == 5
    assert len(list(read_documents(snapshot))) == 5


def test_a_corpus_with_a_source_in_every_line(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "meta": {"redpajama_set_name": f"{i} " + "x" * 10_000}} for i in range(2000)]
    info = make(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=0.01)
    sources = info.manifest["sources"]
    assert len(sources) == readers.MOST_SOURCES + 1
    assert sources[-1] == readers.OTHER_SOURCES
    assert max(map(len, sources)) == LONGEST_LABEL
    assert sum(row["documents"] for row in info.manifest["splits"]["train"]["by_source"].values()) > 1900
    verify(info.folder)


# A repository on the Hub names its data files in its README.


@pytest.mark.parametrize("named", ["{outside}/secret.jsonl", "../secret.jsonl", "link.jsonl"])
def test_a_repository_that_names_a_private_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    write_jsonl(tmp_path / "secret.jsonl", ["ssh-key"])
    repo = tmp_path / "repo"
    write_jsonl(repo / "train.jsonl", texts(5))
    (repo / "link.jsonl").symlink_to("../secret.jsonl")
    files = named.format(outside=tmp_path)
    readme = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {files}\n---\n"
    (repo / "README.md").write_text(readme)
    source = make_source(DataSpec(source="slimpajama", tokenizer="bytes", repo=str(repo)))
    refused(lambda: source.open(None, print), "README", "outside the repository")


@pytest.mark.parametrize(
    ("repo", "file", "own"),
    [
        ("a/b", "hf://datasets/a/b@abc/train/x.jsonl.zst", True),
        ("a/b", "hf://datasets/a/bc@abc/train/x.jsonl", False),
        ("a/b", "hf://datasets/evil/b@abc/x.jsonl", False),
        ("a/b", "hf://datasets/a/b@abc/../../evil/b@abc/x.jsonl", False),
        ("a/b", "https://example.org/x.jsonl", False),
        ("a/b", "/home/me/.ssh/id_rsa", False),
    ],
)
def test_files_of_a_repository_are_its_own(repo: str, file: str, own: bool) -> None:
    builder = SimpleNamespace(name="json", config=SimpleNamespace(data_files={"train": [file]}))
    if own:
        hub._refuse_foreign_files(builder, repo)
    else:
        refused(lambda: hub._refuse_foreign_files(builder, repo), file)


def test_a_repository_of_archives_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` has thirty decoders; text needs four."""
    import tarfile

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    repo = tmp_path / "repo"
    repo.mkdir()
    with tarfile.open(repo / "train.tar", "w") as archive:
        archive.add(write_jsonl(tmp_path / "a.json", ["x"]), arcname="0.json")
    source = make_source(DataSpec(source="slimpajama", tokenizer="bytes", repo=str(repo)))
    refused(lambda: source.open(None, print), "webdataset", "parquet")


# Prepared corpora.


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return make(tmp_path, write_jsonl(tmp_path / "in" / "a.jsonl", texts(60))).folder


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "/etc/passwd"},
        {"file": "../../secret.bin"},
        {"file": "train-00000.bin/../../x"},
        {"file": 7},
        {"file": ["train-00000.bin"]},
        {"split": "val"},
        {"tokens": -1},
        {"tokens": 2**70},
        {"documents": "60"},
        {"largest_id": None},
        {"hash": 5},
    ],
)
def test_a_manifest_that_names_anything_but_its_own_shards(prepared: Path, changes: dict[str, object]) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    first = next(shard for shard in manifest["shards"] if shard["split"] == "train")
    first.update(changes)
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: open_corpus(prepared), "manifest.json", "damaged", "prepare again")


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 1_000_000, '{"format": 1, "shards": 3}', '{"format": 1}'])
def test_a_file_that_is_not_a_manifest(prepared: Path, text: str) -> None:
    (prepared / "manifest.json").write_text(text)
    refused(lambda: open_corpus(prepared), "manifest.json", "damaged")


def test_a_shard_that_is_a_link_or_a_pipe(prepared: Path, tmp_path: Path) -> None:
    shard = prepared / "train-00000.bin"
    shard.rename(tmp_path / "moved.bin")
    shard.symlink_to(tmp_path / "moved.bin")
    refused(lambda: open_corpus(prepared), "leads out")
    shard.unlink()
    os.mkfifo(shard)
    refused(lambda: open_corpus(prepared), "not a regular file")


HEADERS = {
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (60, 2), }",
    "huge": b"{'descr': '<i8', 'fortran_order': False, 'shape': (4611686018427387904, 2), }",
    "deep": b"(" * 9000,
    "code": b"__import__('os').system('touch owned')",
    "half": b"{'descr': '<i8",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_table_with_a_hostile_header(prepared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    text = HEADERS[name] + b"\n"
    (prepared / "train-00000.docs.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 960
    )
    refused(lambda: open_corpus(prepared), "train-00000", "prepare again")
    assert not (prepared / "owned").exists()


def test_a_table_that_names_a_source_out_of_range(prepared: Path) -> None:
    """The source id would be an index out of range of an array."""
    from data.shards import corpus_fingerprint, read_shard

    table = np.load(prepared / "train-00000.docs.npy", allow_pickle=False)
    table[3, 1] = 2**60
    np.save(prepared / "train-00000.docs.npy", table, allow_pickle=False)
    manifest = json.loads((prepared / "manifest.json").read_text())
    for shard in manifest["shards"]:
        shard["hash"] = read_shard(prepared / shard["file"], 2).hash
    manifest["fingerprint"] = corpus_fingerprint(manifest["shards"], manifest["tokenizer"]["fingerprint"])
    (prepared / "manifest.json").write_text(json.dumps(add_checksum(manifest)))
    refused(lambda: verify(prepared), "sources that do not exist")


# Tokenizers.


def tokenizer_file(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "tokenizer.json"
    get_tokenizer("bytes", None, tmp_path, "").save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_tokenizer_of_ten_gigabytes(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(10 << 30)
    with little_memory(200 * MB):
        refused(lambda: Tokenizer.load(tmp_path / "tokenizer.json"), "larger than 64 MiB")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"specials": {"<|endoftext|>": 2**60}}, "ids"),
        ({"specials": {"<|endoftext|>": -5}}, "ids"),
        ({"specials": {"<|endoftext|>": "256"}}, "ids"),
        ({"specials": {}}, "endoftext"),
        ({"specials": []}, "not a readable tokenizer"),
        ({"ranks": {"AA==": 0}}, "some bytes have no id"),
        ({"ranks": {"AA==": 1, "AQ==": 1}}, "each used once"),
        ({"ranks": ["AA=="]}, "not a readable tokenizer"),
        ({"ranks": {"%%%": 0}}, "not a readable tokenizer"),
        ({"pattern": 3}, "pattern"),
        ({"pattern": "a" * 100_000}, "pattern"),
    ],
)
def test_a_tokenizer_that_would_take_the_memory_or_the_process(
    tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    path = tokenizer_file(tmp_path, **changes)
    with little_memory(200 * MB):
        refused(lambda: Tokenizer.load(path), word)


@pytest.mark.parametrize("pattern", ["(", r"(?:(?=a).)*(?:(?=a).)*(?:(?=a).)*c"])
def test_a_pattern_that_cannot_split_is_one_line(tmp_path: Path, pattern: str) -> None:
    from data.tokenizers.tokenizer import train_bpe

    train_bpe("bpe-300", iter(["some text"])).save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text()) | {"pattern": pattern}
    (tmp_path / "t.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path / "t.json")
    refused(lambda: tokenizer.encode("a" * 3000), "pattern cannot split")


HF_MODEL = {"type": "BPE", "vocab": {"a": 0, "</s>": 1}, "merges": []}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": 3}, "not a tokenizer.json"),
        ({"model": {}}, "vocab"),
        ({"model": HF_MODEL | {"vocab": {"a": 2**60}}}, "ids"),
        ({"model": HF_MODEL | {"vocab": {"a": -1}}}, "ids"),
        ({"model": HF_MODEL | {"vocab": {"a": 1 << 25, "</s>": 1}}}, "ids"),
        ({"model": HF_MODEL | {"vocab": {"a": "0"}}}, "ids"),
        ({"model": HF_MODEL | {"vocab": {}}}, "ids"),
        ({"model": HF_MODEL | {"merges": [["a", "b"]]}}, "vocabulary"),
        ({"model": HF_MODEL | {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}}, "vocab"),
        ({"added_tokens": [{"id": 2**31, "content": "x"}]}, "ids"),
        ({"added_tokens": 7}, "not a usable"),
        ({"model": HF_MODEL | {"unk_id": 10**9}}, "not a usable"),
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 3}}, "replacements"),
        ({"normalizer": REPLACE | {"content": "a" * 10_000}}, "longer than"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a" * 5000}, "behavior": "Isolated"}}, "longer than"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}, "not a usable"),
        ({"decoder": [[[[]]]]}, "not a usable"),
    ],
)
def test_a_tokenizer_of_hugging_face_that_would_take_the_memory(
    tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    content = {"version": "1.0", "model": HF_MODEL} | changes
    (tmp_path / "raw.json").write_text(json.dumps(content))
    saved = {"format": 2, "name": "x", "end_of_text": "</s>", "tokenizer": content}
    (tmp_path / "saved.json").write_text(json.dumps(saved))
    with little_memory(200 * MB):
        refused(lambda: get_tokenizer(f"{tmp_path}/raw.json", None, tmp_path, ""), "raw.json", word)
        refused(
            lambda: Tokenizer.load(tmp_path / "saved.json"), "saved.json", word.replace("not a usable", "not a read")
        )


@pytest.mark.parametrize("changes", [{"format": 3}, {"format": []}, {"name": 7}, {"tokenizer": []}, {"end_of_text": 5}])
def test_a_saved_tokenizer_with_odd_fields(tmp_path: Path, changes: dict[str, object]) -> None:
    content = {"format": 2, "name": "x", "end_of_text": "</s>", "tokenizer": {"model": HF_MODEL}}
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path / "t.json").n_vocab == 2
    (tmp_path / "t.json").write_text(json.dumps(content | changes))
    refused(lambda: Tokenizer.load(tmp_path / "t.json"), "t.json", "not a readable tokenizer")


def test_a_tokenizer_that_nests_deep_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"model": {}, "normalizer": ' + "[" * MB)
    refused(lambda: get_tokenizer(f"{tmp_path}/t.json", None, tmp_path, ""), "t.json", "too deep")


@pytest.mark.parametrize("name", ["bpe-99999999999999999999", "bpe-" + "9" * 5000, "../../bpe-400", "bpe-400/../x"])
def test_the_name_of_a_tokenizer_is_not_a_path(tmp_path: Path, name: str) -> None:
    message = refused(lambda: prepare(DataSpec(source="stdlib", tokenizer=name)), "data.tokenizer")
    assert len(message) < 1000
