"""The folder of prepared corpora: keys in the names of its entries, locks, and errors of the disk."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import FULL_DISK, MachineError, UserError
from common.file_lock import waiting_lock
from data import shards
from data.shard_writer import STATE


def short_hash(content: list[Any]) -> str:
    """Return the key of a prepared corpus, a hash of the JSON values that determine it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def locked(folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time prepare a corpus."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # a file has the name of the folder or of one of its parents
        raise UserError(f"data.cache_dir={folder.parent} is not a folder; set data.cache_dir= to a folder") from None
    lock = folder.with_name(folder.name + ".lock")
    with waiting_lock(lock, lambda holder: log(f"{holder} is preparing {folder}; waiting for it")):
        yield


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into MachineError, and a folder without write permission or damaged state into UserError."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{error.filename}: permission denied; set data.cache_dir= to a writable folder") from error
    except (OSError, sqlite3.DatabaseError) as error:
        if error.errno in FULL_DISK if isinstance(error, OSError) else "full" in str(error):
            raise MachineError(
                f"the disk of {folder.parent} is full ({error}); the work so far is kept in {folder}: free some space and "
                "run the same command again to continue (or set data.cache_dir= to another disk)"
            ) from error
        if isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())[:200]  # sqlite quotes any text that it cannot decode
        raise UserError(f"{folder / STATE}: damaged ({reason}); {shards.prepare_again_hint(folder)}") from error
