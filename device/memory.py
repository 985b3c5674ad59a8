"""Retry work that runs out of memory in smaller pieces. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

# Messages of PyTorch's allocators for CPUs and GPUs, and of cuBLAS without room for its workspace.
MESSAGES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether the error means that the memory of the device or the system is full."""
    by_message = isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
    return by_message or isinstance(error, MemoryError)


class Attempt:
    """A block that may run out of memory; any other exception passes through."""

    def __init__(self) -> None:
        self.failed = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.failed = out_of_memory(error)
        return self.failed


def attempts(shrink: Callable[[], None]) -> Iterator[Attempt]:
    """Yield attempts at the same work until one has enough memory:

        for attempt in attempts(shrink):
            with attempt:
                ...

    `shrink` is called after an attempt that ran out of memory, once the exception and all that it referenced are
    freed. It raises where nothing smaller is left to try.
    """
    while True:
        attempt = Attempt()
        yield attempt
        if not attempt.failed:
            return
        shrink()
