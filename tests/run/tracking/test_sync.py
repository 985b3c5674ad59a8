"""Sending the real wandb files of offline runs whose processes were killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from common.file_lock import try_lock
from run.tracking.logger import open_dashboard, segments, synced_marker, wandb_id
from run.tracking.sync import HEADER_BYTES, main, unsent_files
from tests.conftest import ROOT
from tests.run.tracking.wandb_file import history, read_back


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_SILENT", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "false" if name.endswith("REPORTING") else "")
    for name in ("WANDB_IDENTITY_TOKEN_FILE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that can be reached and refuses everything, as wandb's does with a key that is not valid."""

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(401)

        do_GET = do_POST

        def log_message(self, format: str, *arguments: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_address[1]}")
        yield
        listening.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "small-1a2b3c4d"
    folder.mkdir()
    (folder / "config.yaml").write_text("wandb: {mode: offline}\n")
    return folder


def process(folder: Path, first: int, last: int) -> None:
    """One offline process of a run: it resumes after step `first` - 1, replays the record and logs up to step `last`."""
    while any(time.strftime("%Y%m%d_%H%M%S") in path.name for path in (folder / "wandb").glob("*run-*")):
        time.sleep(0.05)  # wandb names its folders by the second
    dashboard = open_dashboard("offline", "stint", None, folder.name, wandb_id(folder), None, [], {}, folder)
    with (folder / "metrics.jsonl").open("a") as record:
        for step in range(first, last + 1):
            point = {"step": step, "tokens": 2 * step, "flops": 9.0 * step, "hours": step / 1000, "loss": 8.0 - step}
            record.write(json.dumps(point) + "\n")
            dashboard.log(point)
    dashboard.finish()


def steps(files: list[Path]) -> list[float]:
    return [point["step"] for file in files for point in history(read_back(file))]


def refused(capsys: pytest.CaptureFixture[str], *folders: Path) -> tuple[Any, str]:
    """The exit status and the one line of a call that fails."""
    with pytest.raises(SystemExit) as stop:
        main([str(folder) for folder in folders])
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    return stop.value.code, captured.err


def test_unsent_files_hold_each_step_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second process repeats ten steps of the first. wandb's own command finds the same files."""
    process(folder, 1, 30)
    process(folder, 21, 40)
    files = unsent_files(folder)
    assert len(files) == 2
    assert steps(files) == list(range(1, 41))
    assert len(set(segments(folder))) == 1, "one run on wandb"
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(folder / "wandb")]
    answer = subprocess.run(command, env={**os.environ, "WANDB_SILENT": "false"}, capture_output=True, text=True)
    assert "Would sync 2 run(s)" in answer.stderr
    for file in files:
        synced_marker(file).touch()
    main([str(folder)])
    assert "nothing to send" in capsys.readouterr().out
    answer = subprocess.run(command, env={**os.environ, "WANDB_SILENT": "false"}, capture_output=True, text=True)
    assert "Skipped 2 synced run(s)" in answer.stderr


def test_a_killed_process_leaves_its_points(folder: Path) -> None:
    """With wandb's default, which flushes every 15 s, none of them would be in the file."""
    script = (
        "import sys, time, wandb; from pathlib import Path; from run.tracking.logger import open_dashboard\n"
        "d = open_dashboard('offline', 'p', None, 'n', 'id', None, [], {}, Path(sys.argv[1]))\n"
        "for step in range(1, 11): d.log({'step': step, 'tokens': 1, 'flops': 1, 'hours': 1})\n"
        "print(wandb.run.settings.x_transaction_log_flush_interval, flush=True); time.sleep(120)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert float(running.stdout.readline()) <= 1.0
        deadline = time.monotonic() + 60
        while len(steps(unsent_files(folder))) < 10 and time.monotonic() < deadline:
            time.sleep(0.1)
        running.send_signal(signal.SIGKILL)
    assert steps(unsent_files(folder)) == list(range(1, 11))


def test_a_file_without_points_is_skipped(folder: Path) -> None:
    """`wandb sync` would stop there and not send the files of later processes."""
    process(folder, 1, 5)
    (file,) = unsent_files(folder)
    file.write_bytes(file.read_bytes()[:HEADER_BYTES])
    assert unsent_files(folder) == []


def test_a_live_run_is_skipped(folder: Path, server: None, capsys: pytest.CaptureFixture[str]) -> None:
    process(folder, 1, 5)
    lock = try_lock(folder / "lock")
    assert not isinstance(lock, str)
    with lock:
        main([str(folder)])
    assert "is in use by process" in capsys.readouterr().out
    assert len(unsent_files(folder)) == 1


def test_a_refused_file_is_an_error_and_is_kept(folder: Path, server: None, capsys: pytest.CaptureFixture[str]) -> None:
    """`wandb sync` itself exits with status 0."""
    process(folder, 1, 5)
    status, line = refused(capsys, folder)
    assert (status, "was not sent" in line, "401" in line) == (1, True, True)
    assert len(unsent_files(folder)) == 1


def test_an_error_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process(folder, 1, 5)
    status, line = refused(capsys, folder, tmp_path)
    assert (status, f"{tmp_path} is not a run" in line) == (2, True)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    status, line = refused(capsys, folder)
    assert (status, "cannot be reached" in line, "repeat the command later" in line) == (1, True, True)
    monkeypatch.setenv("WANDB_API_KEY", "")
    status, line = refused(capsys, folder)
    assert (status, "wandb login" in line) == (2, True)
