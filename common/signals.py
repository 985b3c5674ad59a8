"""Signals that ask a run to stop: the run saves and exits in whatever phase it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Schedulers differ: Slurm sends TERM, or the signal it was asked for; submitit USR2; a lost terminal HUP.
STOPPING = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")


class Interrupted(BaseException):
    """A stopping signal arrived. Not an Exception, so that no library's `except Exception` swallows it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as a shell reports a process that died of it."""
        return 128 + signal.Signals[self.name].value


class Signals:
    """While entered, a stopping signal raises Interrupted at once, or inside `deferred()` at the next `check()`.

    Code that must not be torn (a training step, a save) runs deferred. It is raised by a signal once: schedulers send
    several, and a second one must not interrupt the saving that the first began. The second SIGINT exits on the spot.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._raised = False
        self._deferred = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = signal.Signals[name]
                if name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup: the run is to outlive its terminal
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self.received == "SIGINT":
            os._exit(128 + number)
        self.received = name
        if not self._deferred and not self._raised:
            self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.received:
            self._raised = True
            raise Interrupted(self.received)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, signals wait for `check()`."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
