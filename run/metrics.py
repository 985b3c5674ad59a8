"""What a run writes down about itself: one line an event, and where its result comes from."""

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
    """metrics.jsonl, one JSON object a line, appended. A disk that refuses costs points, never the run; when it takes
    them again, the curve goes on."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self.warn = path, warn
        self._warned = False
        self._handle: IO[bytes] | None = None

    def _opened(self) -> IO[bytes]:
        """At the start of a line also where a kill or a full disk has cut the last one short."""
        handle = self.path.open("ab+", buffering=0)
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                handle.write(b"\n")
        return handle

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(significant(record), allow_nan=False).encode() + b"\n"
        try:
            self._handle = self._handle or self._opened()
            if self._handle.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.close()
            if not self._warned:
                self.warn(f"{self.path} cannot be written ({error}); the run goes on without these points of its curve")
            self._warned = True

    def close(self) -> None:
        with suppress(OSError):
            if self._handle is not None:
                self._handle.close()
        self._handle = None
