"""How far a preparation is: a bar with an ETA on a terminal, elsewhere a line every tenth of a source that takes a while."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from data.sources.base import Part, Source

if TYPE_CHECKING:
    from rich.progress import Progress

BYTES_PER_LINE = 16 << 20  # of a source, at least: seconds of work


class PartsProgress:
    """Progress over the parts of a source, weighted by their sizes. A context manager."""

    def __init__(self, title: str, source: Source, parts: list[Part], shown: bool, log: Callable[[str], None]) -> None:
        self._source, self._parts, self._log, self._shown = source, parts, log, shown
        self._total = max(1, sum(part.size for part in parts))
        self._before = [0, *itertools.accumulate(part.size for part in parts)]
        self._title = title
        self._tenth_shown = self._done_shown = 0
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            self._bar = _bar()
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


def _bar() -> Progress:
    # rich costs a tenth of a second to import, which a run that finds its corpus prepared need not spend.
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    title, note = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]"))
    return Progress(title, BarColumn(), TaskProgressColumn(), note, TimeElapsedColumn(), TimeRemainingColumn())
