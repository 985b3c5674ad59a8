from __future__ import annotations

import io
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.format import format_count, format_percent, format_seconds
from run.report.console import Console, Status, bar_status, plain_status, table_text

ROOT = Path(__file__).parents[3]
FULL = Status(
    step=171, progress=0.34, budget_left_s=112, eta_s=118, loss=4.8123, learning_rate=1.9e-3, tokens_per_second=24_300,
    mfu=0.41, phase="train",
)  # fmt: skip


class Terminal(io.StringIO):
    """A stdout that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def attach_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


SECONDS = {
    0: "0.0 s", 4.21: "4.2 s", 59.94: "59.9 s", 59.97: "1m00s", 123: "2m03s", 3599.7: "1h00m", 3720: "1h02m",
    48 * 3600: "48h00m", 176 * 3600: "7d08h", -4.2: "-4.2 s", math.nan: "?",
}  # fmt: skip
COUNTS = {
    0: "0", 512: "512", 0.5: "0.5", 1000: "1k", 24_310: "24.3k", 4_194_304: "4.19M", 999_999: "1M", 3.4e9: "3.4B",
    9.5e12: "9.5T", 999.6e12: "1e+15", 1.2e18: "1.2e+18", -24_310: "-24.3k", math.inf: "?",
}  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), SECONDS.items())
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("number", "text"), COUNTS.items())
def test_format_count(number: float, text: str) -> None:
    assert format_count(number) == text


def test_percent_is_not_rounded_up_to_100() -> None:
    assert [format_percent(share) for share in (0, 0.29, 0.999, 1)] == ["0 %", "29 %", "99 %", "100 %"]


def test_a_table_aligns_numbers_right() -> None:
    text = table_text("Shapes", ["name", "tokens"], [["small", "4.19M"], ["x", 12]])
    assert text.splitlines() == ["Shapes", "name    tokens", "──────────────", "small    4.19M", "x           12"]


def test_a_table_outside_a_terminal_cuts_no_value() -> None:
    long, hostile = "outputs/" + "x" * 300, "[bold]a[/bold] \x1b[31mred\x1b[0m"
    text = table_text("Runs", ["run", "why"], [[long, hostile]])
    assert len(text.splitlines()) == 4
    assert long in text
    assert "[bold]a[/bold] red" in text
    assert "\x1b" not in text


def test_pipe_gets_plain_text_and_log_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path / "run" / "log.txt")
    console.say("red \x1b[31malert\x1b[0m [bold]x[/bold]")
    console.warn("low disk")
    console.heading("Plan")
    console.table("T", ["a"], [[1]])
    shown = capsys.readouterr().out
    assert shown == "red alert [bold]x[/bold]\nwarning: low disk\n\nPlan\nT\na\n─\n1\n"
    assert (tmp_path / "run" / "log.txt").read_text() == shown


def test_details_are_only_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path / "log.txt")
    console.detail("every trial")
    console.for_log().table("", ["a", "b"], [[1, 2]], ruled=False)
    console.say("a summary")
    assert capsys.readouterr().out == "a summary\n"
    assert (tmp_path / "log.txt").read_text() == "every trial\na  b\n1  2\na summary\n"


def test_unwritable_log_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    console = Console(tmp_path / "file" / "log.txt")
    console.say("one")
    console.say("two")
    shown = capsys.readouterr().out
    assert shown.count("cannot be written") == 1
    assert "one" in shown
    assert "two" in shown


def test_plain_progress_is_one_line_per_tenth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path / "log.txt")
    with console.progress() as bar:
        for step in range(10_001):
            bar.update(Status(step=step, progress=step / 10_000, loss=4.0, phase="eval" if step % 2 else "train"))
        console.say("printed meanwhile")
    lines = capsys.readouterr().out.splitlines()
    assert 11 <= len(lines) <= 23  # 0, 10 ... 100 %, each phase at most once in each, and the printed line
    assert lines[0].startswith("train    0 %  step 0  loss 4.000")
    assert lines[-2].startswith("train  100 %  step 10000")
    assert lines == (tmp_path / "log.txt").read_text().splitlines()


def test_plain_progress_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress() as bar:
        bar.update(FULL)
        bar.update(Status(progress=float("nan"), loss=float("nan"), phase="compile"))
        bar.update(Status(step=9, progress=0.5, budget_left_s=60, eta_s=61, validation_loss=3.25))
    assert capsys.readouterr().out.splitlines() == [
        "train   34 %  step 171  loss 4.812  lr 1.9e-03  24.3k tok/s  MFU 41 %  left 1m52s  eta 1m58s",
        "compile    ? %  step 0  loss nan",
        "train   50 %  step 9  validation 3.250  left 1m00s",
    ]


def test_bar_shows_everything_in_80_columns() -> None:
    line = bar_status(FULL).plain
    assert len(line) <= 80
    for part in ("train", "34 %", "left 1m52s", "eta 1m58s", "loss 4.812", "24.3k tok/s", "MFU 41 %", "━━━━━━"):
        assert part in line


@pytest.mark.parametrize("width", [10, 30, 50, 79])
def test_bar_never_exceeds_the_width(width: int) -> None:
    for phase in ("train", "final evaluation"):
        line = bar_status(Status(**{**vars(FULL), "phase": phase, "budget_left_s": 90 * 3600}), width)
        assert len(line.plain) <= width


def test_bar_drops_the_least_important_figures_first() -> None:
    tails = [re.split(r"━+", bar_status(FULL, width).plain)[-1].strip() for width in (70, 60, 50, 35, 20)]
    assert tails == [
        "34 %  left 1m52s  eta 1m58s  loss 4.812  24.3k tok/s",
        "34 %  left 1m52s  eta 1m58s  loss 4.812",
        "34 %  left 1m52s  eta 1m58s",
        "34 %  left 1m52s",
        "34 %",
    ]


def test_terminal_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    terminal = attach_terminal(monkeypatch)
    console = Console(tmp_path / "log.txt")
    with console.progress() as bar:
        bar.update(FULL)
        console.say("saved [bold]checkpoint[/bold]")
        bar.update(Status(progress=1.0, phase="final evaluation"))
    raw = terminal.getvalue()
    assert "\x1b[2K" in raw  # the bar was erased before the line was written
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", raw)
    assert "saved [bold]checkpoint[/bold]\n" in text
    assert text.rstrip().endswith("100 %")
    log = (tmp_path / "log.txt").read_text()
    assert "\x1b" not in log
    lines = ["train", "saved [bold]checkpoint[/bold]", "final evaluation"]
    assert [line.split("  ")[0] for line in log.splitlines()] == lines


def test_terminal_table_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach_terminal(monkeypatch)
    Console().warn("yellow")
    assert "\x1b[33m" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.truncate(0)
    console = Console()
    console.warn("plain")
    console.table("Title", ["name", "value"], [["[a]", "1"]])
    assert "\x1b[33m" not in terminal.getvalue()
    assert "[a]" in terminal.getvalue()


def test_broken_pipe_neither_ends_the_run_nor_changes_its_exit_status(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from run.report.console import Console\n"
        "c = Console(Path(sys.argv[1]))\n"
        "for i in range(20000): c.say(f'line {i} ' + 'x' * 50)\n"
        "print('after'); sys.stderr.write('survived')\n"
    )
    reader, writer = os.pipe()
    command = [sys.executable, "-c", script, str(tmp_path / "log.txt")]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(writer)
    os.read(reader, 100)
    os.close(reader)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "survived")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 20000


def test_stdout_that_cannot_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console = Console()
    console.say("a ± b")
    console.table("", ["a"], [["±"]])
    assert raw.getvalue() == b"a ? b\na\n-\n?\n"


def test_closed_stdout_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console()
    stream.close()
    console.say("nobody reads this")


def test_several_threads_write_whole_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path / "log.txt")

    def write(number: int) -> None:
        for line in range(50):
            console.say(f"{number} {line} " + "x" * 200)
            console.table("", ["a"], [[f"{number} {line} " + "y" * 200]], ruled=False)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [f"{number} {line} {letter * 200}" for number in range(4) for line in range(50) for letter in "xy"]
    for written in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert sorted(line for line in written.splitlines() if line != "a") == sorted(lines)


@pytest.mark.parametrize("script", ["train", "plan", "evaluate", "sample"])
def test_rich_is_imported_only_when_something_is_drawn(script: str) -> None:
    code = f"import sys, {script}; print([name for name in sys.modules if name.split('.')[0] == 'rich'])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_a_required_output_that_cannot_be_written_is_an_error() -> None:
    """plan.py, evaluate.py and sample.py make nothing else; a run goes on."""
    gone = io.StringIO()
    gone.close()
    Console(stream=gone).say("into the void")
    with pytest.raises(ValueError, match="closed file"):
        Console(stream=gone, required=True).say("into the void")


def test_an_evaluation_shows_items_in_place_of_steps() -> None:
    status = Status(progress=0.46, eta_s=30.0, phase="blimp", items=(30_820, 67_000), items_per_second=812.4)
    assert plain_status(status) == "blimp   46 %  30,820 of 67,000 items  812 items/s  eta 30.0 s"
    assert bar_status(status).plain.endswith("46 %  30,820 of 67,000 items  eta 30.0 s  812 items/s")
    assert len(bar_status(status, 40).plain) <= 40
