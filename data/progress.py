"""How far a preparation is: a bar with an ETA on a terminal, elsewhere a line every tenth of a source that takes a while."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.sources import Part, Source

BYTES_PER_LINE = 16 << 20  # of a source, at least: seconds of work


class PartsProgress:
    """Progress over the parts of a source, weighted by their sizes. A context manager."""

    def __init__(self, title: str, source: Source, parts: list[Part], shown: bool, log: Callable[[str], None]) -> None:
        self._source, self._parts, self._log, self._shown = source, parts, log, shown
        self._total = max(1, sum(part.size for part in parts))
        self._before = [0, *itertools.accumulate(part.size for part in parts)]
        self._title = title
        self._tenth_shown = self._done_shown = 0
        console = Console()
        self._bar: Progress | None = None
        if shown and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self._bar = Progress(
                *columns, TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(), console=console
            )
            self._task = self._bar.add_task(title, total=self._total, note="")

    def __enter__(self) -> PartsProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, part: int, note: str) -> None:
        """Part number `part` is being read (their count: all are); `note` says what has come of it."""
        done = self._before[part]
        if part < len(self._parts):
            done += min(self._source.consumed, self._parts[part].size)
        tenth = 10 * done // self._total
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif self._shown and tenth > self._tenth_shown and done >= self._done_shown + BYTES_PER_LINE:
            self._tenth_shown, self._done_shown = tenth, done
            self._log(f"{self._title}: {10 * tenth} %, {note}")
