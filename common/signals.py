"""Signals that ask a run to stop. In any phase, the run saves and exits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Slurm sends TERM or the signal it was asked for, submitit USR2, a closed terminal HUP.
STOPPING = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")


class Interrupted(BaseException):
    """A stopping signal arrived. It is a BaseException, so that no library's `except Exception` catches it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as a shell reports a process that the signal ended."""
        return 128 + signal.Signals[self.name].value


class Signals:
    """While entered, a stopping signal raises Interrupted: at once, or inside `deferred()` at the next `check()`.

    Code that must not be interrupted (a training step, a save) runs deferred. Only the first signal raises:
    schedulers send several, and a second one must not interrupt the save that the first one began. A second SIGINT
    exits at once.
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
                    continue  # nohup: the run should outlive its terminal
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
        """Inside this context, signals wait for `check()`."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
