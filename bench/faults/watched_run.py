"""A run in a process of its own whose phases can be seen, and what it left on the disk; for bench/faults/prove_faults.py."""

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


class Watched:
    """`python -m bench.faults.phases` with knobs; what it started is gone when the block is left."""

    def __init__(self, knobs: list[str]) -> None:
        self._pipe, theirs = os.pipe()
        self._output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when the block is left)
        self._began = time.monotonic()
        self._ended = self._began
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.faults.phases", str(theirs), *knobs],
            cwd=ROOT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs],
            start_new_session=True,
        )
        os.close(theirs)
        self._rest = b""
        self.entered: list[tuple[str, float]] = []  # every phase that was noted, and when
        self.status: int | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._pipe)
        self._output.close()

    def _read(self, seconds: float) -> bool:
        """Wait so long for a note; whether there may be more of them."""
        if not select.select([self._pipe], [], [], max(0.0, seconds))[0]:
            return True
        data = os.read(self._pipe, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.entered += [(line.decode(), time.monotonic()) for line in lines]
        return bool(data)

    def wait_for(self, phase: str, entry: int, seconds: float) -> bool:
        """Until the process enters `phase` for the `entry`-th time; False where it never did."""
        deadline = time.monotonic() + seconds
        while sum(name == phase for name, _ in self.entered) < entry:
            if time.monotonic() > deadline or not self._read(deadline - time.monotonic()):
                return False
        return True

    def pause(self, seconds: float) -> bool:
        """Let it go on for so long, to the millisecond; whether it is still there."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._read(left):
                return False
        return True

    def wait(self, seconds: float) -> int | None:
        """Until the process has ended, `seconds` at most; its status, or None."""
        try:
            self.status = self._process.wait(seconds)
            self._ended = time.monotonic()
        except subprocess.TimeoutExpired:
            return None
        return self.status

    def phase(self) -> str:
        """Where the process is now."""
        self._read(0.0)
        return self.entered[-1][0] if self.entered else "import"

    def to_the_end(self, seconds: float) -> list[tuple[str, float]]:
        """Let it run, for `seconds` at most; the phases it went through, and its end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read(deadline - time.monotonic()):
            pass
        self.wait(max(1.0, deadline - time.monotonic()))
        return [*self.entered, ("end", time.monotonic())]

    def lived_s(self) -> float:
        return self._ended - self._began

    def said(self) -> str:
        """The last line of its output."""
        self._output.seek(0)
        return (self._output.read().strip().splitlines() or ["nothing was said"])[-1]


@dataclass(frozen=True)
class Accounts:
    """What a run's ledger says: seconds of the budget, and those of preparing in its last process."""

    spent_s: float = 0.0
    prepare_s: float = 0.0


def run_folder(place: Path) -> Path | None:
    """The one run below `place`."""
    return next(place.glob("faults-*"), None)


def accounts(place: Path) -> Accounts:
    folder = run_folder(place)
    ledger = read_ledger(folder / "ledger.json") if folder else None
    return Accounts(sum(ledger["ledger_s"].values()), ledger["prepare_s"]) if ledger else Accounts()


def digest(place: Path) -> str:
    """The hash of a run's finished weights, or a word for their absence."""
    folder = run_folder(place)
    path = folder / "model.safetensors" if folder else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.exists() else "no weights"


def resumes(place: Path) -> list[tuple[int, float]]:
    """For each process of a run that went on from a checkpoint: the steps, and the seconds of the budget, between that
    checkpoint and the last point that the process before it logged."""
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
