"""Progress of a preparation: a bar with an ETA on a terminal; elsewhere one line for each tenth of a large source."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from data.sources.base import Part, Source

if TYPE_CHECKING:
    from rich.progress import Progress

BYTES_PER_LINE = 16 << 20  # at least so many source bytes between two lines, a few seconds of work


class PartsProgress:
    """Progress over the parts of a source, weighted by their sizes. Use it as a context manager."""

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
        """Show the progress while part number `part` is read (the number of parts: all are read); `note` is shown as well."""
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
    # Importing rich takes a tenth of a second, which a run with a prepared corpus does not need.
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
