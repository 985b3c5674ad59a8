"""Finds the files that a path, folder or glob pattern names, and their formats and labels."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from common.errors import UserError
from data.documents import LONGEST_LABEL
from data.files.archive import ARCHIVE, display_name, members
from data.files.decompress import COMPRESSED

COLUMNAR = (".parquet", ".arrow", ".feather")  # with a compression of their own
STRUCTURED = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *COLUMNAR)
PROSE = (".txt", ".md")
TOKEN_FILES = (".bin", ".npy")  # read by data/token_files.py
IN_ARCHIVES = tuple(suffix for suffix in PROSE + STRUCTURED if suffix not in COLUMNAR)  # read without seeking
# Read only if a file name or a glob names them: a corpus folder often holds a script or a licence as well.
# fmt: off
CODE = (
    ".rst", ".tex", ".log", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".ini",
    ".cfg", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh",
    ".sql", ".rb", ".php", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".scala", ".kt", ".swift", ".cs",
    ".css", ".org", ".adoc", ".srt",
)
# fmt: on
# Files about a corpus. They are text of the corpus only in a folder of documents in plain text.
CARD = re.compile(
    r"(readme|licen[cs]e|notice|copying|changelog|contributing|citation|(data(set)?|model)[-_ ]?card|datasheet)(?![a-z])",
    re.IGNORECASE,
)
# What `datasets` writes beside .arrow and .parquet files: metadata, and results of `map` that repeat the texts.
METADATA = re.compile(r"(state|dataset_info|dataset_infos|dataset_dict)\.json|cache-.*\.arrow")
SHOWN_FILES = 5  # names in a line about files that are not read; of more files, suffixes are counted


def suffix_of(path: Path) -> str:
    """Return the suffix that names the format, without compression: ".jsonl" for "a.jsonl.zst"."""
    inner = path.with_suffix("") if _is_compressed(path) else path
    return inner.suffix.lower()


def stem_of(path: Path) -> str:
    """Return a file's name without suffixes and trailing number: "train" for "train-00012.jsonl.zst"; it may be ""."""
    name = path.with_suffix("").name if _is_compressed(path) else path.name
    return name.removesuffix(Path(name).suffix).rstrip("0123456789").rstrip("-_.")


@dataclass(frozen=True)
class NamedFile:
    """A file and the source label of its texts, unless their metadata names another.

    `member` is the name of a file inside the archive `path`, and `member_bytes` its compressed size; empty and 0 for any
    other file.
    """

    path: Path
    label: str
    member: str = ""
    member_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.member_bytes if self.member else self.path.stat().st_size

    @property
    def name(self) -> Path:
        """The path that messages and lists show; for a member, its name follows that of the archive."""
        return Path(display_name(self.path, self.member))


@dataclass(frozen=True)
class FoundFiles:
    """The files that a path, folder or glob names.

    Attributes:
        base: The folder that file names are relative to.
        files: The files to read, sorted.
        not_read: Files of a folder, glob or archive that are not read, sorted; hidden files are not listed.
    """

    base: Path
    files: list[NamedFile]
    not_read: list[Path]

    @property
    def names_not_read(self) -> list[str]:
        """The names of `not_read`, relative to `base`."""
        return [path.relative_to(self.base).as_posix() for path in self.not_read]


def describe_not_read(names: Sequence[str], total: int | None = None) -> str:
    """Return one line about files that are not read, e.g. "not read: 2 files (a.docx, b.pdf)"; "" if there are none.

    `total` is their number if `names` are only some of them. Of more than SHOWN_FILES files, all of which are given, the
    suffixes are counted, the most frequent ones first.
    """
    if not names:
        return ""
    total = len(names) if total is None else total
    shown = ", ".join(names[:SHOWN_FILES]) + (", ..." if len(names) > SHOWN_FILES else "")
    if len(names) == total > SHOWN_FILES:
        counts = Counter(Path(name).suffix.lower() or "no suffix" for name in names).most_common()
        shown = ", ".join(f"{n:,} {suffix}" for suffix, n in counts[:SHOWN_FILES])
        if rest := sum(n for _, n in counts[SHOWN_FILES:]):
            shown += f", {rest:,} others"
    return f"not read: {total:,} file{'s' * (total > 1)} ({shown})"


def is_hidden(parts: tuple[str, ...]) -> bool:
    """Return whether a file with these parts of its path is hidden, or in a hidden folder."""
    return any(name.startswith(".") and name not in (".", "..") for name in parts)


def find_files(pattern: str) -> FoundFiles:
    """Return the readable files of a file name, folder, glob or archive.

    Raises UserError if there is no file, no file of a known format, nothing but a README or licence beside files that are not
    read, or a link that leads out of a folder.
    """
    path = Path(pattern).expanduser()
    allowed: tuple[str, ...] = PROSE + STRUCTURED + CODE
    if path.is_dir():
        base, allowed = path, PROSE + STRUCTURED
        found = [file for file in path.rglob("*") if file.is_file() and not is_hidden(file.relative_to(path).parts)]
        _refuse_outside_links(pattern, path, found)
    elif path.is_file():
        base, found = path.parent, [path]
    else:
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
        found = [Path(match) for match in matches if Path(match).is_file()]
        base = Path(os.path.commonpath([file.parent for file in found])) if found else path
    if not found:
        reason = "an empty folder" if path.is_dir() else "no such file or folder, and no file matches it as a glob"
        raise UserError(f"data.path={pattern}: {reason}; give a file, a folder or a quoted glob")
    listed = [entry for file in sorted(found, key=Path.as_posix) for entry in _listed(file, base, allowed)]
    readable = [file for file, is_readable in listed if is_readable]
    if len(listed) > 1:
        readable = _without_cards(readable)
    kept = {(file.path, file.member) for file in readable}
    not_read = [file.name for file, _ in listed if (file.path, file.member) not in kept]
    if not readable or (not_read and all(_describes_corpus(file) for file in readable)):
        raise UserError(_no_text(pattern, [file.name for file in readable], not_read, found))
    return FoundFiles(base, readable, not_read)


def _listed(file: Path, base: Path, allowed: tuple[str, ...]) -> Iterator[tuple[NamedFile, bool]]:
    """Yield a file, or the members of an archive that are not hidden, and whether each can be read."""
    if not _is_archive(file):
        has_format = suffix_of(file) in allowed and not (suffix_of(file) in COLUMNAR and _is_compressed(file))
        yield NamedFile(file, _label(file, base)), has_format
        return
    for member, size, is_readable in members(file):
        parts = PurePosixPath(member).parts
        if not is_hidden(parts):
            # Nothing is opened under this path. The member's name may lead anywhere.
            shown = file.parent.joinpath(*(part for part in parts if part not in ("/", "//", "..")))
            label = _label(shown if file.parent == base else file, base)[:LONGEST_LABEL]
            yield NamedFile(file, label, member, size), is_readable and suffix_of(shown) in IN_ARCHIVES


def _describes_corpus(file: NamedFile) -> bool:
    card = CARD.match(file.name.name) and suffix_of(file.name) not in STRUCTURED
    return bool(card or METADATA.fullmatch(file.name.name))


def _without_cards(files: list[NamedFile]) -> list[NamedFile]:
    """Return the files without READMEs, licences and metadata if there are records, or the card of a data set, beside them."""
    data = [file for file in files if not _describes_corpus(file)]
    is_data_set = any(suffix_of(file.name) in STRUCTURED for file in data) or any(map(_is_hub_card, files))
    return data if data and is_data_set else files


def _is_hub_card(file: NamedFile) -> bool:
    """Return whether a file is the card of a repository on the Hub, a README.md that begins with metadata in YAML."""
    if file.member or file.path.name != "README.md":
        return False
    try:
        with file.path.open("rb") as opened:
            return opened.read(4) == b"---\n"
    except OSError:
        return False  # reading it will say so


def _no_text(pattern: str, cards: list[Path], not_read: list[Path], found: list[Path]) -> str:
    """Return the message for files of which none holds text, except about the others."""
    suffixes = sorted({name.suffix or name.name for name in not_read})
    seen = ", ".join(name.name for name in not_read) if len(not_read) <= SHOWN_FILES else ", ".join(suffixes[:8])
    about = ", ".join(name.name for name in cards[:SHOWN_FILES])
    but = f" but {about}, which is not text of the corpus" if cards else ""
    archive = "; unpack an archive that is encrypted or holds other files" if any(map(_is_archive, found)) else ""
    if any(name.suffix in TOKEN_FILES for name in not_read):
        archive += "; token files of another trainer: data=tokens"
    return (
        f"data.path={pattern}: no file of a known format{but} (found: {seen or 'no files'}); allowed:"
        f" {', '.join(PROSE + STRUCTURED)}, each but {', '.join(COLUMNAR)} also with {', '.join(COMPRESSED)} or in"
        f" {ARCHIVE}{archive}"
    )


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ARCHIVE


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


def _refuse_outside_links(pattern: str, folder: Path, files: list[Path]) -> None:
    """Raise UserError if a folder holds a link to a file outside it.

    Somebody else may have packed the folder, and a link to ~/.ssh would put private keys into the training text. A file or
    glob that the user names may be a link.
    """
    allowed = allowed_folders(folder)
    outside = [link for link in files if link.is_symlink() and not lies_within(link, allowed)]
    if outside:
        raise UserError(
            f"data.path={pattern}: {min(outside)} is a link that leads out of the folder, to {min(outside).resolve()}"
            f" ({len(outside)} such links); if that is intended, name the files themselves, e.g. data.path='{pattern}/*'"
        )


def allowed_folders(folder: Path) -> list[Path]:
    """Return the folders in which links of `folder` may end: itself and, for a snapshot in the Hugging Face cache, whose
    files are links, the `blobs` folder of that repository."""
    real = folder.resolve()
    snapshots = (parent for parent in (real, *real.parents) if parent.parent.name == "snapshots")
    return [real, *(snapshot.parents[1] / "blobs" for snapshot in snapshots)]


def lies_within(path: Path, folders: list[Path]) -> bool:
    """Return whether `path`, with links resolved, lies in one of `folders`."""
    real = path.resolve()
    return any(real.is_relative_to(folder) for folder in folders)


def _label(path: Path, base: Path) -> str:
    """Return the default source label of a file's texts: its top folder below `base`, else the name of a structured file.

    Plain-text files directly in `base` share its name, because there may be a million of them.
    """
    inner = path.relative_to(base).parts
    if len(inner) > 1:
        return inner[0]
    named = stem_of(path) if suffix_of(path) in STRUCTURED else ""
    return named or base.resolve().name or "text"
