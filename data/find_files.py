"""Which files a path, folder or glob pattern names, and what kind of text each one holds."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data.decompress import COMPRESSED

STRUCTURED = (".jsonl", ".json", ".parquet")


PROSE = (".txt", ".md")


# Picked up only where a file or a glob names them: a folder of a corpus often has a script or a licence beside it.
# fmt: off
CODE = (
    ".rst", ".tex", ".log", ".csv", ".tsv", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".ini",
    ".cfg", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh",
    ".sql", ".rb", ".php", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".scala", ".kt", ".swift", ".cs",
    ".css", ".org", ".adoc", ".srt",
)


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, below any compression: ".jsonl" for "a.jsonl.zst"."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def stem_of(path: Path) -> str:
    """The file's name without its suffixes and the number at its end: "train" for "train-00012.jsonl.zst"; perhaps ""."""
    name = path.with_suffix("").name if path.suffix.lower() in COMPRESSED else path.name
    return name.removesuffix(Path(name).suffix).rstrip("0123456789").rstrip("-_.")


# ----------------------------------------------------------------------------------------------------------- files

@dataclass(frozen=True)
class NamedFile:
    """A file and what its texts are counted under, unless they say so themselves."""

    path: Path
    label: str


def _is_hidden(path: Path, base: Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(base).parts)


def find_files(pattern: str) -> tuple[Path, list[NamedFile]]:
    """The readable files that a file name, folder or glob means, sorted, and the folder their names are relative to.

    Raises UserError where there is nothing, or nothing of a known format.
    """
    path = Path(pattern).expanduser()
    allowed: tuple[str, ...]
    named: tuple[str, ...] = PROSE + STRUCTURED + CODE
    if path.is_dir():
        base, allowed = path, PROSE + STRUCTURED
        found = [each for each in path.rglob("*") if each.is_file() and not _is_hidden(each, path)]
        _refuse_links_out(pattern, path, found)
    elif path.is_file():
        base, allowed, found = path.parent, named, [path]
    else:
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = [Path(each) for each in matches if Path(each).is_file()]
        base, allowed = (_common_folder(found) if found else path), named
    if not found:
        what = "an empty folder" if path.is_dir() else "no such file or folder, and no file matches it as a glob"
        raise UserError(f"data.path={pattern}: {what}; give a file, a folder or a quoted glob")
    kept = sorted((each for each in found if suffix_of(each) in allowed), key=lambda each: each.as_posix())
    if not kept:
        seen = ", ".join(sorted({each.suffix or each.name for each in found})[:8])
        raise UserError(
            f"data.path={pattern}: no file of a known format (found: {seen}); allowed: "
            f"{', '.join(PROSE + STRUCTURED)}, each also with {' or '.join(COMPRESSED)}"
        )
    return base, [NamedFile(each, _label(each, base)) for each in kept]


def _refuse_links_out(pattern: str, folder: Path, found: list[Path]) -> None:
    """Raises UserError where a folder, which somebody else may have packed, holds a link to a file outside it: the
    text of ~/.ssh would be trained on. What a user names, by a file or a glob, may be a link."""
    homes = allowed_folders(folder)
    out = [link for link in found if link.is_symlink() and not lies_within(link, homes)]
    if out:
        raise UserError(
            f"data.path={pattern}: {min(out)} is a link that leads out of the folder, to {min(out).resolve()}"
            f" ({len(out)} in all); where that is meant, name the files themselves, e.g. data.path='{pattern}/*'"
        )


def allowed_folders(folder: Path) -> list[Path]:
    """Where the files of a folder may really lie: in it, and for a snapshot in the Hub's cache, which is made of links,
    among the blobs beside it."""
    home = folder.resolve()
    snapshots = (each for each in (home, *home.parents) if each.parent.name == "snapshots")
    return [home, *(each.parents[1] / "blobs" for each in snapshots)]


def lies_within(path: Path, homes: list[Path]) -> bool:
    """Whether what a path leads to lies in one of the folders `homes`."""
    real = path.resolve()
    return any(real.is_relative_to(home) for home in homes)


def _common_folder(paths: list[Path]) -> Path:
    first, last = min(paths).parent, max(paths).parent
    shared = [a for a, b in zip(first.parts, last.parts, strict=False) if a == b]
    while shared and not all(Path(*shared) in path.parents for path in paths):
        shared.pop()
    return Path(*shared) if shared else Path()


def _label(path: Path, base: Path) -> str:
    """What a text is counted under unless it says so itself: the top folder, else the name of its file; loose plain
    files share the name of their folder, for there may be a million of them."""
    inner = path.relative_to(base).parts
    if len(inner) > 1:
        return inner[0]
    named = stem_of(path) if suffix_of(path) in STRUCTURED else ""
    return named or base.resolve().name or "text"
