"""Token files of other trainers, read where they lie: memory-mapped, not copied.

These formats are read; a document may end with end-of-text (nanoGPT) or begin with it (llm.c), which makes no difference
within a file:

- uint16 without a header: train.bin and val.bin of nanoGPT (data/openwebtext/prepare.py);
- a header of 256 int32 (magic, version, number of tokens), then uint16 or uint32: modded-nanogpt (data/fineweb.py) and
  llm.c (dev/data/data_common.py);
- .npy with uint16 or uint32: build-nanogpt (fineweb.py).

The first run reads all files once, to check their ids and to hash them. The result is kept in the folder of prepared corpora
with the files' sizes and times, so that later runs start at once and a changed file is noticed.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from common.checksum import verify_checksum
from common.cpu import usable_cores
from common.errors import UserError
from common.json_io import write_json
from common.safe_read import load_json
from data import shards
from data.cache import disk_errors, locked, short_hash
from data.files.find_files import TOKEN_FILES, allowed_folders, describe_not_read, is_hidden, lies_within
from data.record import read_record
from data.shards import SPLITS, TOKENIZER, Corpus, Split, corpus_fingerprint
from data.sources.base import DataSpec, Overview
from data.splits import roles_of, split_names
from data.tokenizers.tokenizer import Tokenizer, check_name, get_tokenizer, is_published, short_name, tokenizer_key

HEADER_BYTES = 1024
# The dtype of the tokens after a header with this magic number and version: GPT-2 and Llama 3 in llm.c.
HEADERS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
SEGMENT_BYTES = 4 << 20  # read and hashed at once by each thread
BYTES_PER_LINE = 1 << 30  # at least so many bytes between two lines of progress
RECORD = "token_files.json"
RECORD_FORMAT = 1


@dataclass(frozen=True)
class Section:
    """Consecutive tokens of a file, all of one split.

    Attributes:
        file: Path of the file, relative to the folder of all files.
        size: Size of the file, bytes.
        mtime_ns: Time of its last change.
        dtype: Type of a token, "<u2" or "<u4".
        offset: Position of the first token of the file, bytes.
        start, stop: The tokens of the section, counted in the file.
        split: "train" or "val".
    """

    file: str
    size: int
    mtime_ns: int
    dtype: str
    offset: int
    start: int
    stop: int
    split: str = "train"

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    def mapped(self, base: Path) -> np.ndarray:
        """Return the memory-mapped tokens, (tokens,)."""
        whole = np.memmap(base / self.file, self.dtype, "r", self.offset, shape=(self.stop,))
        return whole[self.start :]


@dataclass(frozen=True)
class TokenFiles:
    """The sections of all files that are read, in order, notes for the user on how they were chosen, and what the record
    says under "read"."""

    base: Path
    sections: list[Section]
    notes: tuple[str, ...]
    read: dict[str, Any]


def open_token_files(
    spec: DataSpec, log: Callable[[str], None] = print, tokenizer: Tokenizer | None = None
) -> tuple[Corpus, bool, tuple[str, ...]]:
    """Open the token files that `spec.path` names, and check those that have changed since the last time.

    `tokenizer` is used instead of one that only another run has, as in `data.prepare.prepare`. Returns the corpus, whether
    any file was checked, and notes for the user on which files were read. Raises UserError for files that are missing, in
    another format, or hold ids that the tokenizer does not have.
    """
    tokenizer = None if is_published(spec.tokenizer) else tokenizer
    if tokenizer is None:
        check_name(spec.tokenizer)
    found = find_token_files(spec)
    folder = _folder(spec, tokenizer)
    with disk_errors(folder), locked(folder, log):
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = _tokenizer(spec, folder, tokenizer)
        record, known = _record(folder), _checked(folder)
        fresh = [section for section in found.sections if section not in known]
        if record and fresh:
            log(
                f"{found.base / fresh[0].file} is new or has changed; {len(fresh)} of {len(found.sections)} are checked"
            )
        checked = {**known, **_check_tokens(found.base, fresh, tokenizer, spec, log)}
        manifest = _manifest(found, checked, tokenizer, spec)
        if manifest != record:
            write_json(folder / RECORD, manifest, checksummed=True)
    train, val = (_split(name, found, manifest["sources"]) for name in SPLITS)
    corpus = Corpus(folder, train, val, manifest["sources"], manifest["fingerprint"], tokenizer, manifest)
    return corpus, bool(fresh), found.notes


def checked_fingerprint(spec: DataSpec, tokenizer: Tokenizer | None = None) -> str | None:
    """Return the fingerprint of the token files of `spec`, or None if they have not been checked as they are now."""
    tokenizer = None if is_published(spec.tokenizer) else tokenizer
    try:
        folder, sections = _folder(spec, tokenizer), find_token_files(spec).sections
    except UserError:
        return None
    known = _checked(folder)
    return _record(folder).get("fingerprint") if list(known) == sections else None


def find_token_files(spec: DataSpec) -> TokenFiles:
    """Return the token files in a file, folder or glob, with their splits.

    The splits are those that `data.splits` finds by the names of files and folders, e.g. "fineweb_val_000000.bin". Without a
    validation file the last `validation_fraction` of the tokens is held out.
    """
    base, files = _matches(str(spec.path))
    names = split_names([file.relative_to(base).parts for file in files])
    roles = roles_of(names) or dict.fromkeys(names, "train")
    train, val = (
        [file for file, name in zip(files, names, strict=True) if roles.get(name) == split] for split in SPLITS
    )
    sections = _sections(base, train)
    notes = [f"read {_listed(train)} for training"]
    if val:
        sections += [Section(**asdict(section) | {"split": "val"}) for section in _sections(base, val)]
        notes.append(f"read {_listed(val)} for validation")
    else:
        sections = _held_out(sections, spec.validation_fraction)
        share = f"{spec.validation_fraction:.3g} (data.validation_fraction)"
        notes.append(f"no file for validation: the last {share} of the tokens is held out")
    left = [file for file in files if file not in (*train, *val)]
    not_read = tuple(file.relative_to(base).as_posix() for file in left)
    if left:
        notes.append(describe_not_read(not_read))
    overview = Overview(_listed(val) or "end of the tokens", len(train) + len(val), not_read, len(left))
    return TokenFiles(base, sections, tuple(notes), read_record(overview))


def _matches(pattern: str) -> tuple[Path, list[Path]]:
    """Return the folder and the sorted token files of a file, folder or glob."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        base = path
        found = [file for file in path.rglob("*") if file.is_file() and not is_hidden(file.relative_to(path).parts)]
    else:
        matches = [str(path)] if path.exists() else glob.glob(str(path), recursive=True)  # noqa: PTH207
        found = [Path(match) for match in matches if Path(match).is_file()]
        base = Path(os.path.commonpath([file.parent for file in found])) if found else path.parent
    files = sorted(file for file in found if file.suffix in TOKEN_FILES and not file.name.startswith("."))
    if not files:
        what = f"found: {_listed(sorted(found))}" if found else "nothing there"
        raise UserError(
            f"data.path={pattern}: no token file ({what}); allowed: {' and '.join(TOKEN_FILES)}; text files: data=text"
        )
    if path.is_dir() and (outside := [file for file in files if not lies_within(file, allowed_folders(path))]):
        raise UserError(
            f"data.path={pattern}: {outside[0]} is a link that leads out of the folder, to {outside[0].resolve()}; if that"
            f" is intended, name the files themselves, e.g. data.path='{pattern}/*.bin'"
        )
    if meta := next((file.parent / "meta.pkl" for file in files if (file.parent / "meta.pkl").exists()), None):
        raise UserError(
            f"data.path={pattern}: {meta} belongs to character-level data of nanoGPT; it is a pickle, which is not read."
            f" Train on the text: data=text data.path={meta.parent / 'input.txt'} data.tokenizer=bytes"
        )
    return base, files


def _listed(files: list[Path]) -> str:
    """Return the names of up to three files."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(file.name for file in files[:3]) + more


def _sections(base: Path, files: list[Path]) -> list[Section]:
    """Return a section for each whole file. Raises UserError with a line for each file in another format."""
    sections, problems = [], []
    for file in files:
        try:
            sections.append(_whole(base, file))
        except ValueError as error:
            problems.append(f"{file}: {error}")
        except OSError as error:
            problems.append(f"{file}: cannot be read ({error.strerror})")
    if problems:
        raise UserError(*problems)
    return sections


def _whole(base: Path, file: Path) -> Section:
    """Return the section of a whole file. Raises ValueError if it is in another format."""
    stat = file.stat()
    dtype, offset, tokens = (_npy_layout if file.suffix == ".npy" else _bin_layout)(file, stat.st_size)
    if not tokens:
        raise ValueError("it holds no tokens; remove it")
    return Section(file.relative_to(base).as_posix(), stat.st_size, stat.st_mtime_ns, dtype, offset, 0, tokens)


def _bin_layout(file: Path, size: int) -> tuple[str, int, int]:
    """Return dtype, offset and number of the tokens of a .bin file."""
    with file.open("rb") as opened:
        head = opened.read(HEADER_BYTES)
    if head.startswith(shards.MAGIC):
        raise ValueError(
            "it is a shard that stint prepared; repeat the options that prepared it instead of data=tokens"
        )
    magic, version, tokens = (int(number) for number in np.frombuffer(head[:12].ljust(12, b"\0"), "<i4"))
    versions = [known for known in HEADERS if known[0] == magic]
    if not versions:
        if size % 2:
            raise ValueError(
                f"{size} bytes are not a whole number of uint16 tokens; it is damaged, or in another format"
            )
        return "<u2", 0, size // 2
    if (magic, version) not in versions:
        raise ValueError(f"version {version} of a token file with magic {magic}; allowed: {versions[0][1]}")
    dtype = HEADERS[magic, version]
    expected = HEADER_BYTES + tokens * np.dtype(dtype).itemsize
    if tokens < 0 or size != expected:
        raise ValueError(f"{size} bytes, but its header counts {tokens} tokens, {expected} bytes; copy it again")
    return dtype, HEADER_BYTES, tokens


def _npy_layout(file: Path, size: int) -> tuple[str, int, int]:
    """Return dtype, offset and number of the tokens of a .npy file."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python: a hostile one can raise anything
        raise ValueError(f"it cannot be read as .npy ({type(error).__name__})") from error
    if not isinstance(array, np.memmap) or array.ndim != 1 or array.dtype.str not in HEADERS.values():
        raise ValueError("it does not hold a one-dimensional array of uint16 or uint32 tokens")
    return array.dtype.str, array.offset, len(array)


def _held_out(sections: list[Section], fraction: float) -> list[Section]:
    """Return the sections with the last `fraction` of their tokens as validation split."""
    total = sum(section.tokens for section in sections)
    cut = total - max(1, round(total * fraction))  # tokens for training
    out, before = [], 0
    for section in sections:
        middle = section.start + min(max(cut - before, 0), section.tokens)
        halves = {"train": (section.start, middle), "val": (middle, section.stop)}
        out += [
            Section(**asdict(section) | {"start": start, "stop": stop, "split": split})
            for split, (start, stop) in halves.items()
            if start < stop
        ]
        before += section.tokens
    if not cut:
        raise UserError(f"{sections[0].file} holds {total} tokens, too few to hold some out; give more data.path=")
    return out


def _folder(spec: DataSpec, tokenizer: Tokenizer | None) -> Path:
    path = Path(str(spec.path)).expanduser().resolve()
    tokens_of = tokenizer.fingerprint if tokenizer else tokenizer_key(spec.tokenizer)
    key = short_hash([RECORD_FORMAT, spec.source, str(path), tokens_of, spec.validation_fraction])
    return Path(spec.cache_dir).expanduser() / f"{spec.source}-{short_name(spec.tokenizer)}-{key}"


def _tokenizer(spec: DataSpec, folder: Path, given: Tokenizer | None) -> Tokenizer:
    """Return the tokenizer saved in the folder, or save it, so that later runs need no network."""
    path = folder / TOKENIZER
    if path.exists():
        return Tokenizer.load(path)
    tokenizer = given or get_tokenizer(spec.tokenizer, None, folder, "")
    tokenizer.save(path)
    return tokenizer


def _record(folder: Path) -> dict[str, Any]:
    """Return the record of the last check, or {} if it is missing or damaged."""
    try:
        return verify_checksum(load_json(folder / RECORD))
    except (OSError, ValueError):
        return {}


def _checked(folder: Path) -> dict[Section, dict[str, Any]]:
    """Return what is known of each section that was checked earlier."""
    try:
        return {Section(**shard["section"]): shard for shard in _record(folder)["shards"]}
    except (KeyError, TypeError):
        return {}


@dataclass(frozen=True)
class _SegmentCheck:
    section: Section
    digest: bytes
    largest_id: int
    documents: int
    bytes: int


def _check_tokens(
    base: Path, sections: list[Section], tokenizer: Tokenizer, spec: DataSpec, log: Callable[[str], None]
) -> dict[Section, dict[str, Any]]:
    """Read sections in full and return what the record says about each.

    The hash of a section is that of the hashes of its segments, so that one large file is hashed by all threads.
    """
    sizes = tokenizer.token_bytes.astype(np.int32)

    def check(segment: tuple[Section, int]) -> _SegmentCheck:
        section, start = segment
        tokens = section.mapped(base)[start : start + SEGMENT_BYTES // np.dtype(section.dtype).itemsize]
        text = int(sizes.take(tokens, mode="clip").sum(dtype=np.int64))
        documents = int(np.count_nonzero(tokens == tokenizer.eot))
        return _SegmentCheck(section, hashlib.sha256(tokens.tobytes()).digest(), int(tokens.max()), documents, text)

    segments = [
        (section, start)
        for section in sections
        for start in range(0, section.tokens, SEGMENT_BYTES // np.dtype(section.dtype).itemsize)
    ]
    pool = ThreadPoolExecutor(spec.workers or usable_cores())
    try:
        checks = _with_progress(pool.map(check, segments), len(segments), log)
        groups = [(section, list(group)) for section, group in groupby(checks, key=lambda check: check.section)]
    finally:
        pool.shutdown(cancel_futures=True)
    largest = {section: max(check.largest_id for check in group) for section, group in groups}
    if problems := [
        f"{base / section.file}: holds token id {number}, but the last id of {tokenizer.name} is {tokenizer.n_vocab - 1};"
        " set data.tokenizer= to the tokenizer that wrote the file"
        for section, number in largest.items()
        if number >= tokenizer.n_vocab
    ]:
        raise UserError(*problems)
    return {
        section: {
            "file": section.file,
            "split": section.split,
            "tokens": section.tokens,
            "documents": sum(check.documents for check in group),
            "bytes": sum(check.bytes for check in group),
            "largest_id": largest[section],
            "hash": hashlib.sha256(b"".join(check.digest for check in group)).hexdigest(),
            "section": asdict(section),
        }
        for section, group in groups
    }


def _with_progress(checks: Iterator[_SegmentCheck], total: int, log: Callable[[str], None]) -> Iterator[_SegmentCheck]:
    """Yield the checks; log a line for each tenth of a large corpus."""
    tenth = max(1, total // 10, BYTES_PER_LINE // SEGMENT_BYTES)
    for number, check in enumerate(checks):
        if number and number % tenth == 0:
            log(f"checking token files: {100 * number // total} %")
        yield check


def _manifest(
    found: TokenFiles, checked: dict[Section, dict[str, Any]], tokenizer: Tokenizer, spec: DataSpec
) -> dict[str, Any]:
    """Return the record of all files, with the keys of the manifest of a prepared corpus."""
    entries, label = [checked[section] for section in found.sections], found.base.resolve().name or "tokens"
    splits = {}
    for split in SPLITS:
        own = [entry for entry in entries if entry["split"] == split]
        counts = {key: sum(entry[key] for entry in own) for key in ("documents", "tokens", "bytes")}
        splits[split] = {**counts, "by_source": {label: counts}}
    hashes = [{"hash": f"{entry['split']} {entry['hash']}"} for entry in entries]
    return {
        "format": RECORD_FORMAT,
        "fingerprint": corpus_fingerprint(hashes, tokenizer.fingerprint),
        "source": spec.source,
        "identity": {"path": str(found.base.resolve())},
        "origin": {},
        "read": found.read,
        "options": {"validation_fraction": spec.validation_fraction, "max_bytes": None},
        "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint, "n_vocab": tokenizer.n_vocab},
        "splits": splits,
        "duplicates_dropped": 0,
        "bad_documents_skipped": 0,
        "empty_documents_dropped": 0,
        "sources": [label],
        "shards": entries,
    }


def _split(name: str, found: TokenFiles, sources: list[str]) -> Split:
    """Return a split whose shards are sections; each counts as one document, because all tokens have one source."""
    own = [section.mapped(found.base) for section in found.sections if section.split == name]
    zeros = [np.zeros(1, dtype=np.int64) for _ in own]
    return Split(name, own, zeros, zeros, sources)
