"""Progress of a preparation: a bar with an ETA on a terminal; elsewhere one line for each tenth of a large source, and one
after each 30 s without a line.

A thread shows it, because the thread that reads may wait for the network for minutes.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from common.format import format_percent, format_seconds
from common.monotonic import now
from data.sources.base import Part, Source

if TYPE_CHECKING:
    from rich.progress import Progress

BYTES_PER_LINE = 16 << 20  # at least so many source bytes between two lines, a few seconds of work
LONGEST_SILENCE_S = 30.0
PERIOD_S = 0.5  # between two looks at the source


class PartsProgress:
    """Progress over the parts of a source, weighted by their sizes. Use it as a context manager."""

    def __init__(self, title: str, source: Source, parts: list[Part], shown: bool, log: Callable[[str], None]) -> None:
        self._title, self._source, self._log = title, source, log
        self._sizes = [part.size for part in parts]
        self._before = [0, *itertools.accumulate(self._sizes)]
        self._total = max(1, self._before[-1])
        self._part = 0
        self._note, self._limit_share = "", 0.0
        self._first: int | None = None  # what an interrupted preparation had done before
        self._started_s = self._line_s = now()
        self._tenth_shown = self._done_shown = 0
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True) if shown else None
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            self._bar = _bar(source.in_bytes)
            self._task = self._bar.add_task("preparing", total=self._total, note="")

    def __enter__(self) -> PartsProgress:
        if self._bar:
            self._bar.start()
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread:
            self._thread.join()
            self.show()
        if self._bar:
            self._bar.stop()

    def begin(self, part: int) -> None:
        """Note that part number `part` is read from now on (the number of parts: all are read)."""
        if self._first is None:
            self._first = self._before[part]
            self._started_s = self._line_s = now()
            if self._bar:  # the rate is that of this preparation alone
                self._bar.reset(self._task, completed=self._first)
        self._part = part

    def update(self, note: str, limit_share: float = 0.0) -> None:
        """Note what has been prepared: a text to show, and the share of a limit that ends the preparation early."""
        self._note, self._limit_share = note, limit_share
        if self._thread:
            self.show()

    def show(self) -> None:
        """Show the progress: move the bar, or write a line if one is due."""
        with self._lock:  # the thread that reads and the one that watches
            self._show()

    def _show(self) -> None:
        if self._first is None:
            return
        part = self._part
        done = self._before[part]
        if part < len(self._sizes):
            done += min(self._source.consumed, self._sizes[part])
        share = max(done / self._total, min(1.0, self._limit_share))
        total = max(1, done, round(done / share)) if done else self._total
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, note=self._note)
            return
        tenth, waited = int(10 * share), now() - self._line_s
        next_tenth = tenth > self._tenth_shown and done >= self._done_shown + BYTES_PER_LINE
        if next_tenth or waited >= LONGEST_SILENCE_S:
            self._tenth_shown, self._done_shown, self._line_s = tenth, done, now()
            self._log(f"{self._title}: {', '.join(self._words(done, total))}")

    def _words(self, done: int, total: int) -> list[str]:
        """Return what a line says: share, bytes and rate where the unit is bytes, time left, and the note."""
        assert self._first is not None
        seconds = now() - self._started_s
        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        words = [format_percent(done / total)]
        if self._source.in_bytes:
            words += [_bytes_of(done, total), f"{_size(rate)}/s"]
        if rate and done < total:
            words.append(f"{format_seconds((total - done) / rate)} left")
        return [*words, self._note] if self._note else words

    def _watch(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            self.show()


def _size(number: float) -> str:
    """Format a number of bytes in decimal units: "512 B", "1.2 MB", "4.0 GB"."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def _bytes_of(done: int, total: int) -> str:
    """Format two numbers of bytes in the unit of the second: "1.2/4.0 GB"."""
    whole = _size(total)
    factor = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1}[whole.split()[1]]
    return f"{done / factor:.{0 if factor == 1 else 1}f}/{whole}"


def _bar(in_bytes: bool) -> Progress:
    # Importing rich takes a tenth of a second, which a run with a prepared corpus does not need.
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    title, note = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]"))
    columns = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else []
    # Narrow, and the note last: on a terminal of 80 columns, the line is cut at its end.
    left = [TextColumn("left"), TimeRemainingColumn()]
    return Progress(title, BarColumn(bar_width=20), TaskProgressColumn(), *columns, *left, note)
