"""Finds the files that a path, folder or glob pattern names, and their formats and labels."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data.decompress import COMPRESSED

STRUCTURED = (".jsonl", ".json", ".parquet")
PROSE = (".txt", ".md")
# Read only if a file name or a glob names them: a corpus folder often holds a script or a licence as well.
# fmt: off
CODE = (
    ".rst", ".tex", ".log", ".csv", ".tsv", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".ini",
    ".cfg", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh",
    ".sql", ".rb", ".php", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".scala", ".kt", ".swift", ".cs",
    ".css", ".org", ".adoc", ".srt",
)
# fmt: on


def suffix_of(path: Path) -> str:
    """Return the suffix that names the format, without compression: ".jsonl" for "a.jsonl.zst"."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def stem_of(path: Path) -> str:
    """Return a file's name without suffixes and trailing number: "train" for "train-00012.jsonl.zst"; it may be ""."""
    name = path.with_suffix("").name if path.suffix.lower() in COMPRESSED else path.name
    return name.removesuffix(Path(name).suffix).rstrip("0123456789").rstrip("-_.")


@dataclass(frozen=True)
class NamedFile:
    """A file and the source label of its texts, unless their metadata names another.

    `member` is the name of a file inside the archive `path`; empty for any other file.
    """

    path: Path
    label: str
    member: str = ""


@dataclass(frozen=True)
class FoundFiles:
    """The files that a path, folder or glob names.

    Attributes:
        base: The folder that file names are relative to.
        files: The files to read, sorted.
        not_read: Files of a folder that are not read, sorted; hidden files are not listed.
    """

    base: Path
    files: list[NamedFile]
    not_read: list[Path]


def _is_hidden(path: Path, base: Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(base).parts)


def find_files(pattern: str) -> FoundFiles:
    """Return the readable files of a file name, folder or glob.

    Raises UserError if there is no file, no file of a known format, or a link that leads out of a folder.
    """
    path = Path(pattern).expanduser()
    allowed: tuple[str, ...]
    named: tuple[str, ...] = PROSE + STRUCTURED + CODE
    if path.is_dir():
        base, allowed = path, PROSE + STRUCTURED
        found = [file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path)]
        _refuse_outside_links(pattern, path, found)
    elif path.is_file():
        base, allowed, found = path.parent, named, [path]
    else:
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
        found = [Path(match) for match in matches if Path(match).is_file()]
        base = Path(os.path.commonpath([file.parent for file in found])) if found else path
        allowed = named
    if not found:
        reason = "an empty folder" if path.is_dir() else "no such file or folder, and no file matches it as a glob"
        raise UserError(f"data.path={pattern}: {reason}; give a file, a folder or a quoted glob")
    kept = sorted((file for file in found if suffix_of(file) in allowed), key=lambda file: file.as_posix())
    if not kept:
        seen = ", ".join(sorted({file.suffix or file.name for file in found})[:8])
        raise UserError(
            f"data.path={pattern}: no file of a known format (found: {seen}); allowed: "
            f"{', '.join(PROSE + STRUCTURED)}, each also with {' or '.join(COMPRESSED)}"
        )
    files, not_read = [NamedFile(file, _label(file, base)) for file in kept], sorted(set(found) - set(kept))
    return FoundFiles(base, files, not_read)


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
