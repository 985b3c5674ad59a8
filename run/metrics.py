"""Appends the metrics of a run to metrics.jsonl."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from common.json_io import significant

SCHEMA = 1


class Metrics:
    """metrics.jsonl, one JSON object per line.

    A line that cannot be written is dropped with one warning and does not stop the run; later lines are tried again.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self.warn = path, warn
        self._warned = False
        self._handle: IO[bytes] | None = None

    def _open(self) -> IO[bytes]:
        """Open the file for appending, at the start of a line even if a kill or a full disk cut the last one short."""
        handle = self.path.open("ab+", buffering=0)
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                handle.write(b"\n")
        return handle

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(significant(record), allow_nan=False).encode() + b"\n"
        try:
            self._handle = self._handle or self._open()
            if self._handle.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.close()
            if not self._warned:
                self.warn(
                    f"{self.path} cannot be written ({error}); the run continues without these points of its curve"
                )
            self._warned = True

    def close(self) -> None:
        with suppress(OSError):
            if self._handle is not None:
                self._handle.close()
        self._handle = None
