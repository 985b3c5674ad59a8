"""A lock belongs to one live process and names it to the others."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from common.file_lock import try_lock, waiting_lock
from tests.conftest import ROOT

HOLD = (
    "import sys; from pathlib import Path; from common.file_lock import try_lock\n"
    "held = try_lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
)


def holding(path: Path) -> subprocess.Popen[bytes]:
    """Start another process that holds the lock."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    return other


def test_the_holder_is_named_until_it_is_killed(tmp_path: Path) -> None:
    """Trying again and again must not lose the holder's name."""
    other = holding(tmp_path / "lock")
    name = f"process {other.pid} on {socket.gethostname()}"
    assert [try_lock(tmp_path / "lock") for _ in range(2)] == [name, name]
    other.kill()
    other.wait()
    held = try_lock(tmp_path / "lock")
    assert not isinstance(held, str)
    held.close()


def test_waiting_lock_reports_the_holder_and_gets_the_lock(tmp_path: Path) -> None:
    other = holding(tmp_path / "lock")
    told: list[str] = []

    def waiting(holder: str) -> None:
        told.append(holder)
        other.kill()

    with waiting_lock(tmp_path / "lock", waiting):
        assert told == [f"process {other.pid} on {socket.gethostname()}"]
        assert isinstance(try_lock(tmp_path / "lock"), str), "the one who waited holds it now"
    other.wait()
    with waiting_lock(tmp_path / "lock", told.append):
        assert len(told) == 1


def test_a_child_that_inherited_the_lock_keeps_it(tmp_path: Path) -> None:
    """A sweep's job outlives a sweep that is killed, and keeps its device."""
    held = try_lock(tmp_path / "lock")
    assert not isinstance(held, str)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[held.fileno()]
    )
    held.close()
    assert isinstance(try_lock(tmp_path / "lock"), str)
    child.communicate()
    again = try_lock(tmp_path / "lock")
    assert not isinstance(again, str)
    again.close()


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(37, "No locks available")))
    with pytest.raises(OSError, match="No locks"):
        try_lock(tmp_path / "lock")
