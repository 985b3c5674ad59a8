"""A lock file that names its holder. The kernel releases the lock when the holder dies, also by SIGKILL.

The library `filelock` is not used, because its locks cannot be passed on to a child process, as a sweep passes the
lock of a device to its jobs, and because by default it falls back to a lock that outlives a killed process.
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
    """Return the locked file, or, where another process holds the lock, a description of the holder.

    The lock is held until the file is closed, by this process and every process that inherits it. Raises OSError
    where the file cannot be written or the file system has no locks.
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
    return _write_holder(handle)


@contextmanager
def waiting_lock(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock for the block; where another process holds it, call `on_wait` once with the holder, then wait."""
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait(_holder(handle))
            fcntl.flock(handle, fcntl.LOCK_EX)
        _write_holder(handle)
        yield


def _holder(handle: IO[str]) -> str:
    """Return what the file says about the holder."""
    handle.seek(0)
    return handle.read().strip() or "another process"


def _write_holder(handle: IO[str]) -> IO[str]:
    """Write this process to the file as the holder, and return the file."""
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    return handle
