"""The console output of a run: lines, tables and a progress bar. All output also goes to log.txt.

On a terminal, the progress bar is redrawn in place and takes at most 80 columns. Elsewhere (a pipe, the log of a job) it
becomes plain lines, one per tenth of the budget. `detail` and `for_log` write details to log.txt only.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from common.format import format_count, format_percent, format_seconds
from common.monotonic import now
from common.redaction import redacted
from common.safe_read import strip_escapes

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table as RichTable
    from rich.text import Text

LINES_PER_RUN = 10  # plain progress lines from 0 to 100 %
REFRESH_HZ = 4  # how often a terminal draws the progress bar
LINE_WIDTH = 80  # columns of the narrowest terminal in common use
BAR_WIDTH = (6, 24)  # columns of the bar itself, minimum and maximum
TABLE_WIDTH = 10_000  # columns of a table outside a terminal, so that nothing is cut or wrapped
ETA_DIFFERS = 0.05  # the ETA is shown if it differs from the remaining budget by more than this share
NUMERIC = re.compile(r"[-+~<>≤≥]?[\d.]+(e[-+]?\d+)?\s?[a-zA-Z%/]*|-|—|")


@dataclass(frozen=True)
class Status:
    """The state that a progress line shows. Times are seconds, `progress` and `mfu` shares of 1; None is unknown.

    An evaluation of tasks has `items`, how many are done and how many there are, in place of steps.
    """

    step: int = 0
    progress: float = 0.0
    budget_left_s: float | None = None
    eta_s: float | None = None
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    phase: str = "train"
    items: tuple[int, int] | None = None
    items_per_second: float | None = None


def table_text(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], ruled: bool = True) -> str:
    """A table as plain text, without cutting any value; see `Console.table`."""
    from rich.console import Console as RichConsole

    rich = RichConsole(file=io.StringIO(), force_terminal=False, width=TABLE_WIDTH, color_system=None)
    with rich.capture() as shown:
        rich.print(_rich_table(title, columns, rows, ruled))
    return "\n".join(line.rstrip() for line in shown.get().splitlines())


def _rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], ruled: bool) -> RichTable:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not str: rich would interpret [brackets] in a path or in generated text as markup.
    cells = [[Text(_plain(str(cell))) for cell in row] for row in rows]
    heading = Text(_plain(title), style="bold") if title else None
    table = Table(
        title=heading,
        title_justify="left",
        box=box.SIMPLE_HEAD if ruled else None,
        show_edge=False,
        pad_edge=False,
        show_header=any(columns),
    )
    for i, name in enumerate(columns):
        numeric = bool(cells) and all(NUMERIC.fullmatch(row[i].plain) for row in cells)
        table.add_column(Text(_plain(name)), justify="right" if numeric else "left")
    for row in cells:
        table.add_row(*row)
    return table


def plain_status(status: Status) -> str:
    """The progress as a plain line, without a bar."""
    done = f"step {status.step}" if status.items is None else _items(status.items)
    fields = [f"{status.phase}  {format_percent(status.progress):>5}", done]
    if status.loss is not None:
        fields.append(f"loss {status.loss:.3f}")
    if status.validation_loss is not None:
        fields.append(f"validation {status.validation_loss:.3f}")
    if status.learning_rate is not None:
        fields.append(f"lr {status.learning_rate:.1e}")
    return "  ".join(fields + _speed_fields(status) + _time_fields(status))


def bar_status(status: Status, width: int = LINE_WIDTH) -> Text:
    """The progress as a bar and figures in at most `width` columns. The least important figures are dropped first."""
    from rich.text import Text

    share = min(max(status.progress, 0.0), 1.0) if math.isfinite(status.progress) else 0.0
    head, percent = status.phase, f"{format_percent(share):>5}"
    tail = [_items(status.items)] if status.items is not None else []
    tail += _time_fields(status)
    if status.loss is not None:
        tail.append(f"loss {status.loss:.3f}")
    if status.validation_loss is not None:
        tail.append(f"val {status.validation_loss:.3f}")
    tail += _speed_fields(status)
    while tail and len("  ".join([head, "", percent, *tail])) + BAR_WIDTH[0] > width:
        tail.pop()
    room = width - len("  ".join([head, "", percent, *tail]))
    bar = max(0, min(BAR_WIDTH[1], room))
    done = round(bar * share)
    line = Text(f"{head}  ", style="bold", no_wrap=True, overflow="crop", end="")
    line.append("━" * done, style="not bold green").append("━" * (bar - done), style="not bold bright_black")
    line.append("  ".join([f" {percent}", *tail]), style="not bold")
    line.truncate(width)
    return line


class Console:
    """Writes to standard output and log.txt. Thread-safe; never raises if a line cannot be written.

    With `required`, for a command that makes nothing but its output, an OSError of standard output is raised.
    """

    def __init__(self, log_path: Path | None = None, stream: IO[str] | None = None, *, required: bool = False) -> None:
        self._stdout = _Stdout(stream or sys.stdout, required)
        self._log_path = log_path
        self._log_failed = False
        self._lock = threading.RLock()
        self._rich: RichConsole | None = None
        if self._stdout.isatty():
            from rich.console import Console as RichConsole

            self._rich = RichConsole(file=self._stdout, force_terminal=True)  # type: ignore[arg-type]

    def for_log(self) -> Console:
        """A console that writes to log.txt only."""
        return Console(self._log_path, io.StringIO())

    def say(self, text: str, style: str | None = None) -> None:
        """Print text, on a terminal in a style of rich."""
        self.detail(text)
        self._print(text, style)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.say(f"warning: {text}", style="yellow")

    def heading(self, text: str) -> None:
        """Print the heading of a section."""
        self.say(f"\n{text}", style="bold")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], ruled: bool = True) -> None:
        """Print a table; columns of numbers are right-aligned.

        On a terminal it is fitted to the width; elsewhere and in the log it is as wide as its values. The header is left out
        if all `columns` are empty, the rule below it if not `ruled`.
        """
        text = table_text(title, columns, rows, ruled)
        self.detail(text)
        if self._rich is None:
            self._stdout.write(text + "\n")
        else:
            self._rich.print(_rich_table(title, columns, rows, ruled))

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show a progress bar until the block ends; lines printed meanwhile appear above it."""
        bar = Progress(self)
        if self._rich is None:
            yield bar
            return
        from rich.live import Live

        # The log gets plain lines instead of the bar. rich redraws it at a fixed rate, however fast the steps are.
        with Live(
            console=self._rich, get_renderable=bar.render, refresh_per_second=REFRESH_HZ, vertical_overflow="crop"
        ):
            yield bar

    def progress_line(self, text: str) -> None:
        """Write a plain progress line to the log, and to stdout if it is not a terminal."""
        self.detail(text)
        if self._rich is None:
            self._print(text)

    @property
    def on_terminal(self) -> bool:
        """Whether the output goes to a terminal, so that a progress bar is drawn."""
        return self._rich is not None

    @property
    def width(self) -> int:
        """Columns available for a progress line."""
        return min(LINE_WIDTH, self._rich.width - 1) if self._rich is not None else LINE_WIDTH

    def _print(self, text: str, style: str | None = None) -> None:
        if self._rich is None:
            self._stdout.write(_plain(text) + "\n")
            return
        # No markup and no highlighting: the text may be a path, a config or generated text.
        self._rich.print(_plain(text), style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Write text to log.txt only."""
        if self._log_path is None:
            return
        try:
            with self._lock:
                self._log_path.parent.mkdir(parents=True, exist_ok=True)
                with self._log_path.open("a", encoding="utf-8", errors="replace") as log:
                    log.write(_plain(text) + "\n")
        except OSError as error:
            if not self._log_failed:
                self._log_failed = True
                self._print(f"warning: {self._log_path} cannot be written ({error}); the run continues", "yellow")


class Progress:
    """The progress bar of a Console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._updated_at = -math.inf  # seconds, as `now` counts them
        self._status: Status | None = None
        self._bucket = -1
        self._phases: set[str] = set()

    def is_due(self, progress: float) -> bool:
        """Whether a status at `progress` would be shown: on a terminal, if the last one is old; in each tenth, once."""
        old = self._console.on_terminal and now() - self._updated_at >= 1 / REFRESH_HZ
        return old or self._bucket_of(progress) != self._bucket

    def update(self, status: Status) -> None:
        """Set the status. Outside a terminal, a line is printed once per phase in each tenth of the budget."""
        self._status, self._updated_at = status, now()
        bucket = self._bucket_of(status.progress)
        if bucket != self._bucket:
            self._bucket = bucket
            self._phases.clear()
        if status.phase not in self._phases:
            self._phases.add(status.phase)
            self._console.progress_line(plain_status(status))

    def _bucket_of(self, progress: float) -> int:
        return int(progress * LINES_PER_RUN + 1e-9) if math.isfinite(progress) else self._bucket

    def render(self) -> Text:
        """The line for rich to draw."""
        return bar_status(self._status or Status(phase="start"), self._console.width)


class _Stdout:
    """Standard output that ignores a closed reader: `train.py | head` or a closed terminal must not end a run.

    If it is `required`, the error is raised instead.
    """

    def __init__(self, stream: IO[str], required: bool = False) -> None:
        self._stream = stream
        self._required = required
        self._gone = False

    def write(self, text: str) -> int:
        if not self._gone:
            try:
                self._stream.write(self._encodable(text))
                self._stream.flush()
            except (OSError, ValueError):  # ValueError: the stream was closed
                if self._required:
                    raise
                self._go_quiet()
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` flushes."""

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:  # rich needs encoding, fileno and others
        return getattr(self._stream, name)

    def _encodable(self, text: str) -> str:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.replace("─", "-")  # the rules in tables
            return text.encode(encoding, "replace").decode(encoding)
        return text

    def _go_quiet(self) -> None:
        self._gone = True
        # Python flushes stdout again at exit, which would fail with status 120; /dev/null takes the buffered rest.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def _time_fields(status: Status) -> list[str]:
    fields = []
    if status.budget_left_s is not None:
        fields.append(f"left {format_seconds(status.budget_left_s)}")
    left, eta = status.budget_left_s, status.eta_s
    if eta is not None and (left is None or abs(eta - left) > ETA_DIFFERS * left):
        fields.append(f"eta {format_seconds(eta)}")
    return fields


def _items(items: tuple[int, int]) -> str:
    return f"{items[0]:,} of {items[1]:,} items"


def _speed_fields(status: Status) -> list[str]:
    fields = []
    if status.items_per_second is not None:
        fields.append(f"{status.items_per_second:,.3g} items/s")
    if status.tokens_per_second is not None:
        fields.append(f"{format_count(status.tokens_per_second)} tok/s")
    if status.mfu is not None:
        fields.append(f"MFU {format_percent(status.mfu)}")
    return fields


def _plain(text: str) -> str:
    return redacted(strip_escapes(text))
