"""Work that runs out of memory, tried again in smaller pieces. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

# What PyTorch's allocators for a CPU and for a GPU say, and cuBLAS where there is no room for its own.
SAID = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether this is what a device or the system raises when its memory is full."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)
    return said or isinstance(error, MemoryError)


class Attempt:
    """A block that may run out of memory; any other failure passes through."""

    def __init__(self) -> None:
        self.failed = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.failed = out_of_memory(error)
        return self.failed


def attempts(shrink: Callable[[], None]) -> Iterator[Attempt]:
    """Attempts at the same work until one has memory enough:

        for attempt in attempts(shrink):
            with attempt:
                ...

    `shrink` is called after one that has not, when the error and what it held are gone; it raises where nothing smaller
    is left to try.
    """
    while True:
        attempt = Attempt()
        yield attempt
        if not attempt.failed:
            return
        shrink()
