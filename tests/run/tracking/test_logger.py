from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import run.tracking.logger
from run.tracking.logger import AXES, Dashboard, open_dashboard
from run.tracking.sync import unsent_files
from tests.run.tracking.fake_wandb import FakeWandb
from tests.run.tracking.wandb_file import history, read_back, values

ROOT = Path(__file__).parents[3]
CHANGED_VARIABLES = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ERROR_REPORTING", "WANDB_SILENT")
CONFIG = {"budget": {"hours": 0.05, "flops": None}, "batch_tokens": 8192, "wandb": {"api_key": "hunter2"}}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No wandb account, and environment variables restored after each test."""
    for name in CHANGED_VARIABLES:
        monkeypatch.setenv(name, "")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


class Starter:
    """Opens dashboards of a run in `directory` and collects their warnings."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.warnings = directory, list[str]()

    def __call__(self, mode: str = "offline", timeout_s: float = 60.0) -> Dashboard:
        names = ("stint", None, "small", "small-1a2b", "g", ["t", "x" * 100])
        return open_dashboard(mode, *names, CONFIG, self.directory, timeout_s, self.warnings.append)


@pytest.fixture
def start(tmp_path: Path) -> Starter:
    return Starter(tmp_path / "run")


def point(step: int) -> dict[str, Any]:
    return {"step": step, "tokens": step * 8192, "flops": step * 1e10, "hours": step / 1000, "loss": 8 - step / 100}


def test_offline_run_holds_every_point_with_its_axes(start: Starter, tmp_path: Path) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    dashboard = start()
    for step in range(1, 301):
        dashboard.log(point(step) | ({"val_loss": 3.0} if step % 100 == 0 else {}))
    dashboard.log(point(301) | {"loss": math.nan})
    dashboard.summary({"eval": {"loss": 3.5}, "status": "finished"})
    dashboard.finish()
    assert start.warnings == []
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*-small-1a2b/*.wandb")
    records = read_back(path)
    points = history(records)
    assert [p["step"] for p in points] == list(range(1, 302))
    assert all(point(p["step"])[key] == p[key] for p in points for key in AXES)
    assert [p["loss"] for p in points[:300]] == [point(step)["loss"] for step in range(1, 301)]
    assert [p["step"] for p in points if "val_loss" in p] == [100, 200, 300]
    metrics = {r.metric.name or r.metric.glob_name: r.metric for r in records if r.HasField("metric")}
    assert set(metrics) == {*AXES, "*"}
    assert metrics["*"].step_metric == "hours"
    opened = next(r.run for r in records if r.HasField("run"))
    assert (opened.run_id, opened.project, opened.run_group, opened.display_name) == (
        *("small-1a2b", "stint", "g", "small"),
    )
    assert {len(tag) for tag in opened.tags} == {1, 64}
    config = values(opened.config.update)
    assert config["budget.hours"] == 0.05
    assert config["batch_tokens"] == 8192
    assert b"hunter2" not in path.read_bytes()
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= values(record.summary.update)
    assert summary["eval_loss"] == 3.5
    assert summary["status"] == "finished"


def test_all_files_are_in_the_folder_and_no_child_process_remains(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import sys, os; from pathlib import Path; from run.tracking.logger import open_dashboard\n"
        "d = open_dashboard('offline', 'p', None, 'n', 'id', None, [], {}, Path(sys.argv[1]))\n"
        "d.log({'step': 1, 'tokens': 1, 'flops': 1, 'hours': 1, 'loss': 1}); d.finish()\n"
        "children = open(f'/proc/self/task/{os.getpid()}/children').read() if os.path.isdir('/proc/self') else ''\n"
        "print('children', children)\n"
    )
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    environment = {key: value for key, value in environment.items() if not key.startswith("WANDB")}
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "children"
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_resumed_run_holds_all_points_under_one_id(start: Starter, tmp_path: Path) -> None:
    for first in (1, 21):
        dashboard = start()
        for step in range(first, first + 20):
            dashboard.log(point(step))
        dashboard.finish()
        time.sleep(1.1)  # wandb names its folders by the second
    assert start.warnings == []
    paths = sorted((tmp_path / "run" / "wandb").glob("offline-run-*-small-1a2b/*.wandb"))
    assert len(paths) == 2
    assert [p["step"] for path in paths for p in history(read_back(path))] == list(range(1, 41))
    assert {next(r.run.run_id for r in read_back(path) if r.HasField("run")) for path in paths} == {"small-1a2b"}


# A wandb that misbehaves.


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An API key and a network that accepts every connection; the (address, timeout) of each."""
    asked: list[Any] = []

    def connect(address: Any, timeout: float) -> socket.socket:
        asked.append((address, timeout))
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    return asked


@pytest.fixture
def hang() -> Iterator[Callable[..., None]]:
    """A call that does not return before the test ends."""
    released = threading.Event()
    yield lambda *_: released.wait(60) and None
    released.set()


def crash(*_: Any) -> None:
    raise ConnectionError("the server\nis gone")


def test_init_that_hangs_is_abandoned(start: Starter, fake: FakeWandb, hang: Callable[..., None]) -> None:
    fake.on_init = hang
    began = time.monotonic()
    dashboard = start(timeout_s=0.3)
    dashboard.log(point(1))
    dashboard.summary({"a": 1})
    dashboard.finish()
    assert time.monotonic() - began < 2
    assert start.warnings == [
        "no wandb for this run: wandb: opening took more than 0.3 s; the run continues and metrics.jsonl keeps every"
        " point"
    ]
    assert fake.torn_down == 1


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(1), None])
def test_init_or_import_that_raises(
    start: Starter, fake: FakeWandb, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    def fail(mode: str) -> None:
        raise error or AssertionError

    fake.on_init = fail
    if error is None:
        monkeypatch.setitem(sys.modules, "wandb", None)  # what makes `import wandb` raise ImportError
    dashboard = start()
    dashboard.log(point(1))
    dashboard.finish()
    assert len(start.warnings) == 1
    assert f"no wandb for this run: {f'{error};' if error else 'import of wandb'}" in start.warnings[0]
    assert fake.logged == []


def test_log_that_raises_stops_after_three(start: Starter, fake: FakeWandb) -> None:
    fake.on_log = crash
    dashboard = start()
    for step in range(10):
        dashboard.log(point(step))
    dashboard.finish()
    dashboard.finish()
    assert len(fake.logged) == 3
    assert start.warnings == [
        "wandb failed 3 times, logging to it stops: the server is gone; the run continues and metrics.jsonl keeps"
        " every point"
    ]
    assert (fake.finished, fake.torn_down) == (1, 1)


def test_two_failures_are_forgiven(start: Starter, fake: FakeWandb) -> None:
    fake.on_log = lambda: crash() if len(fake.logged) <= 2 else None
    dashboard = start()
    for step in range(10):
        dashboard.log(point(step))
    dashboard.finish()
    assert [p["step"] for p in fake.logged] == list(range(10))
    assert start.warnings == []


def test_log_that_hangs_does_not_block_the_run(
    start: Starter, fake: FakeWandb, hang: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.tracking.logger, "MAX_WAITING", 100)
    fake.on_log = hang
    dashboard = start(timeout_s=0.3)
    began = time.monotonic()
    for step in range(1000):
        dashboard.log(point(step))
    assert time.monotonic() - began < 1
    assert len(start.warnings) == 1
    assert "accepts no more points" in start.warnings[0]
    dashboard.finish()
    assert time.monotonic() - began < 2


def test_finish_that_hangs_is_abandoned(start: Starter, fake: FakeWandb, hang: Callable[..., None]) -> None:
    fake.on_finish = hang
    dashboard = start(timeout_s=0.3)
    dashboard.log(point(1))
    began = time.monotonic()
    dashboard.finish()
    assert time.monotonic() - began < 2
    assert len(start.warnings) == 1
    assert "did not finish within 0.3 s" in start.warnings[0]
    assert len(fake.logged) == fake.torn_down == 1


# Online, with the fallback to offline.


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError("Network is unreachable")


def test_online_with_everything_in_place(start: Starter, fake: FakeWandb, reachable: list[Any]) -> None:
    start("online").finish()
    assert reachable == [(("api.wandb.example", 443), 2.0)]
    assert (fake.modes, start.warnings) == (["online"], [])
    assert (fake.arguments["id"], fake.arguments["resume"]) == ("small-1a2b", "allow")
    assert fake.defined[-1] == ("*", {"step_metric": "hours"})


def test_online_through_a_proxy_asks_the_proxy(
    start: Starter, fake: FakeWandb, reachable: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    start("online").finish()
    assert (reachable, fake.modes) == ([(("proxy.example", 3128), 2.0)], ["online"])


@pytest.mark.parametrize("key", ["", "k"])
def test_online_without_key_or_network_falls_back_quickly(
    start: Starter, fake: FakeWandb, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("WANDB_API_KEY", key)
    began = time.monotonic()
    dashboard = start("online")
    assert time.monotonic() - began < 1
    dashboard.log(point(1))
    dashboard.finish()
    assert fake.modes == ["offline"]
    assert len(fake.logged) == 1
    reason = "cannot be reached: Network is unreachable" if key else "no API key for api.wandb.example"
    assert len(start.warnings) == 1
    assert reason in start.warnings[0]
    assert start.warnings[0].endswith(f"to upload later: python -m run.tracking.sync {tmp_path / 'run'}")


def test_name_server_that_hangs_counts_as_no_network(
    start: Starter, fake: FakeWandb, hang: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.tracking.logger, "CONNECT_TIMEOUT_S", -0.3)  # leaves 0.2 s
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: hang())
    monkeypatch.setenv("WANDB_API_KEY", "k")
    start("online").finish()
    assert fake.modes == ["offline"]
    assert "connecting took more than" in start.warnings[0]


def test_online_that_is_refused_falls_back(start: Starter, fake: FakeWandb, reachable: list[Any]) -> None:
    fake.on_init = lambda mode: crash() if mode == "online" else None
    start("online").finish()
    assert fake.modes == ["online", "offline"]
    assert len(start.warnings) == 1
    assert "the server is gone" in start.warnings[0]


def test_key_in_netrc_is_found(
    start: Starter, fake: FakeWandb, reachable: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "no-netrc").write_text("machine api.wandb.example login user password k\n")
    (tmp_path / "no-netrc").chmod(0o600)
    start("online").finish()
    assert fake.modes == ["online"]


def test_an_online_process_continues_the_curve_and_sends_what_an_offline_one_kept(
    start: Starter, fake: FakeWandb, reachable: list[Any], tmp_path: Path
) -> None:
    """The server has steps up to 3. Later points are sent from metrics.jsonl, and the offline file is marked as sent."""
    fake.summary = {"step": 3}
    file = tmp_path / "run" / "wandb" / "offline-run-20260101_000000-small-1a2b" / "run-small-1a2b.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"kept by a process without a network")
    assert unsent_files(tmp_path / "run") == [file]
    dashboard = start("online")
    for step in range(1, 7):
        dashboard.log(point(step))
    dashboard.finish()
    assert [p["step"] for p in fake.logged] == [4, 5, 6]
    assert unsent_files(tmp_path / "run") == []


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_an_offline_file_stays_unsent_if_the_online_process_did_not_send_its_points(
    start: Starter, fake: FakeWandb, reachable: list[Any], tmp_path: Path, broken: str
) -> None:
    file = tmp_path / "run" / "wandb" / "offline-run-20260101_000000-small-1a2b" / "run-small-1a2b.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"kept by a process without a network")
    setattr(fake, f"on_{broken}", crash)
    dashboard = start("online")
    for step in range(1, 60):
        dashboard.log(point(step))
    dashboard.finish()
    assert unsent_files(tmp_path / "run") == [file]


# The rest.


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from run.tracking.logger import open_dashboard\n"
        "d = open_dashboard('disabled', 'p', None, 'n', 'i', None, [], {}, Path(sys.argv[1]))\n"
        "d.log({'step': 1}); d.summary({}); d.finish(); print('wandb' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not (tmp_path / "run").exists()


def test_unknown_mode_is_refused(start: Starter) -> None:
    with pytest.raises(ValueError, match="must be online, offline or disabled"):
        start("on")
