"""For bench/faults/prove_faults.py: a run in its own process whose phases are visible, and the files that it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from bench.common import ROOT
from budget.ledger import read_ledger


class WatchedRun:
    """A process of bench.faults.phases with options of train.py, as a context manager. Leaving it kills the process group."""

    def __init__(self, options: list[str]) -> None:
        self._pipe, write_end = os.pipe()
        self._output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by __exit__)
        self._began = time.monotonic()
        self._ended = self._began
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.faults.phases", str(write_end), *options],
            cwd=ROOT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=[write_end],
            start_new_session=True,
        )
        os.close(write_end)
        self._rest = b""
        self.entered: list[tuple[str, float]] = []  # every phase that was reported, with its time
        self.status: int | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> WatchedRun:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._pipe)
        self._output.close()

    def _read(self, seconds: float) -> bool:
        """Wait up to `seconds` for reports. Returns False at the end of the pipe."""
        if not select.select([self._pipe], [], [], max(0.0, seconds))[0]:
            return True
        data = os.read(self._pipe, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.entered += [(line.decode(), time.monotonic()) for line in lines]
        return bool(data)

    def wait_for(self, phase: str, entry: int, seconds: float) -> bool:
        """Wait until the process enters `phase` for the `entry`-th time. Returns False if it did not within `seconds`."""
        deadline = time.monotonic() + seconds
        while sum(name == phase for name, _ in self.entered) < entry:
            if time.monotonic() > deadline or not self._read(deadline - time.monotonic()):
                return False
        return True

    def pause(self, seconds: float) -> bool:
        """Let the process run for `seconds`, to the millisecond. Returns whether it is still alive."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._read(left):
                return False
        return True

    def wait(self, seconds: float) -> int | None:
        """Wait up to `seconds` for the end of the process. Returns its exit status, or None if it still runs."""
        try:
            self.status = self._process.wait(seconds)
            self._ended = time.monotonic()
        except subprocess.TimeoutExpired:
            return None
        return self.status

    def phase(self) -> str:
        """The phase that the process is in now."""
        self._read(0.0)
        return self.entered[-1][0] if self.entered else "import"

    def wait_to_end(self, seconds: float) -> list[tuple[str, float]]:
        """Let the process run to its end, for at most `seconds`. Returns its phases and its end, with times."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read(deadline - time.monotonic()):
            pass
        self.wait(max(1.0, deadline - time.monotonic()))
        return [*self.entered, ("end", time.monotonic())]

    def lived_s(self) -> float:
        """Seconds from the start of the process to its end."""
        return self._ended - self._began

    def last_line(self) -> str:
        """The last line of its output."""
        self._output.seek(0)
        return (self._output.read().strip().splitlines() or ["no output"])[-1]


@dataclass(frozen=True)
class Accounts:
    """From a run's ledger: seconds spent of the budget, and seconds of preparing data in the last process."""

    spent_s: float = 0.0
    prepare_s: float = 0.0


def run_folder(place: Path) -> Path | None:
    """The folder of the run in `place`, or None."""
    return next(place.glob("faults-*"), None)


def read_accounts(place: Path) -> Accounts:
    """The accounts of the run in `place`; zero without a ledger."""
    folder = run_folder(place)
    ledger = read_ledger(folder / "ledger.json") if folder else None
    return Accounts(sum(ledger["ledger_s"].values()), ledger["prepare_s"]) if ledger else Accounts()


def weights_hash(place: Path) -> str:
    """The hash of a finished run's weights, or "no weights"."""
    folder = run_folder(place)
    path = folder / "model.safetensors" if folder else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.exists() else "no weights"


def lost_at_resumes(place: Path) -> list[tuple[int, float]]:
    """The steps and seconds of the budget that were lost at each resume of a run.

    They are counted from the checkpoint to the last step that the previous process logged."""
    folder = run_folder(place)
    lines = (folder / "metrics.jsonl").read_text().splitlines() if folder else []
    lost, last, hours = list[tuple[int, float]](), 0, {0: 0.0}
    for line in lines:
        try:
            point = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if point.get("event") == "resume":
            back_to = point["step"]
            since = min((step for step in hours if step >= back_to), default=last)
            lost.append((max(0, last - back_to), 3600 * (hours.get(last, 0.0) - hours.get(since, 0.0))))
            last = back_to
        elif "loss" in point:
            last = point["step"]
            hours[last] = point["hours"]
    return lost
