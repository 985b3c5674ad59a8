"""One lock file, one process: the kernel releases the lock when its holder dies, also by SIGKILL.

Why not `filelock`: it empties the file whenever somebody tries, so that the holder's name would be lost; it may fall back to a
lock that outlives a killed process; and a child cannot inherit it, as a sweep's jobs inherit the lock of their device.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def try_lock(path: Path) -> IO[str] | str:
    """The lock file, held until it is closed and by every process that inherits it; or who holds it.

    Raises OSError where the file cannot be written or the file system has no locks.
    """
    handle = path.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with handle:
            return _holder(handle)
    except OSError:
        handle.close()
        raise
    return _signed(handle)


@contextmanager
def waiting_lock(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock for the block; where another process has it, tell `on_wait` who, once, and wait."""
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait(_holder(handle))
            fcntl.flock(handle, fcntl.LOCK_EX)
        _signed(handle)
        yield


def _holder(handle: IO[str]) -> str:
    handle.seek(0)
    return handle.read().strip() or "another process"


def _signed(handle: IO[str]) -> IO[str]:
    """The file with this process as its holder."""
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    return handle
