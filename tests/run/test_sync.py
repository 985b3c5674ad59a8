"""Runs whose processes were killed, resumed and cut off from the network, as wandb's server has them in the end."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from run.dashboard import AXES, open_dashboard, segments, wandb_id
from run.sync import main
from tests.run.wandb_file import history, read_back
from tests.run.wandb_server import Run, WandbServer, running

CONFIG = {
    "model": {"n_layer": 3, "dropout": None},
    "plan": {"max_epochs": 4.0},
    "wandb": {"mode": "offline", "project": "stint", "entity": None, "group": "size", "tags": ["size", "seed=1"]},
}
RESULT = {
    "status": "finished",
    "stopped_by": "hours",
    "budget": {"hours": 0.05},
    "spent": {"hours": 0.04, "tokens": 80},
    "ledger_s": {"train": 100.0, "eval": 44.0},
    "eval": {"loss": 3.5, "bits_per_byte": 1.4, "accuracy": 0.4, "by_source": {"Git Hub": {"loss": 3.0}}},
    "plan": {"predicted_tokens": 100, "predicted_loss": None, "law": "porian", "why_off": ["slow"]},
}


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_SILENT", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "false" if name.endswith("REPORTING") else "")
    for name in ("WANDB_IDENTITY_TOKEN_FILE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with running() as (url, server):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "small-1a2b3c4d"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "plan.json").write_text(json.dumps({"n_layer": 3, "tokens": 100, "curve": [[1, 2]]}))
    return folder


def process(folder: Path, mode: str, first: int, last: int, killed: bool = False) -> None:
    """One process of a run: it resumes after step `first` - 1 and logs up to `last`."""
    while any(time.strftime("%Y%m%d_%H%M%S") in path.name for path in (folder / "wandb").glob("*run-*")):
        time.sleep(0.05)  # wandb names its folders by the second
    hours = max((point.get("hours", 0) for point in lines(folder)), default=0.0)
    with (folder / "metrics.jsonl").open("a") as record:
        record.write(json.dumps({"event": "resume", "step": first - 1}) + "\n")
    dashboard = open_dashboard(
        mode, "stint", None, folder.name, wandb_id(folder), "size", ["size"], {"model": {"n_layer": 3}}, folder
    )
    for point in [p for p in lines(folder) if "event" not in p and p["step"] < first]:
        dashboard.log(point)
    with (folder / "metrics.jsonl").open("a") as record:
        for step in range(first, last + 1):
            hours += 0.001
            point = {"step": step, "tokens": 2 * step, "flops": 9.0 * step, "hours": hours, "loss": 8 - hours}
            record.write(json.dumps(point) + "\n")
            dashboard.log(point)
    if not killed:
        (folder / "result.json").write_text(json.dumps(RESULT))
        (folder / "status.json").write_text(json.dumps({"status": "finished", "reason": "spent"}))
    dashboard.finish()


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def only(server: WandbServer) -> Run:
    (run,) = server.runs.values()
    return run


def assert_one_curve(run: Run, last: int) -> None:
    """Each step once, in order, with the four axes; the hours go on and never back."""
    assert [point["step"] for point in run.history] == list(range(1, last + 1))
    hours = [point["hours"] for point in run.history]
    assert hours == sorted(hours)
    assert all(set(AXES) <= set(point) for point in run.history)


def test_offline_processes_become_one_curve_and_a_second_call_sends_nothing(
    folder: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    process(folder, "offline", 1, 30, killed=True)
    process(folder, "offline", 21, 40)  # the checkpoint was of step 20
    assert server.runs == {}
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert [p["step"] for path in files for p in history(read_back(path))] == list(range(1, 41))
    main(["sync", str(folder)])
    assert "40 of 40 points were new" in capsys.readouterr().out
    run = only(server)
    assert_one_curve(run, 40)
    expected = {p["step"]: p["loss"] for p in lines(folder) if "event" not in p}  # of a step done twice, the second
    assert [point["loss"] for point in run.history] == list(expected.values())
    assert run.exit_code == 0
    assert list(server.runs) == segments(folder)[:1]

    before = server.requests
    main(["sync", str(folder)])
    assert "nothing new since it was sent" in capsys.readouterr().out
    assert server.requests == before


def test_the_summary_and_the_config_are_those_of_the_record(folder: Path, server: WandbServer) -> None:
    process(folder, "disabled", 1, 5)
    main(["sync", str(folder)])
    run = only(server)
    wanted = {
        "eval_loss": 3.5,
        "eval_bits_per_byte": 1.4,
        "eval_accuracy": 0.4,
        "eval_by_source_Git_Hub_loss": 3.0,
        "spent_hours": 0.04,
        "ledger_s_train": 100.0,
        "plan_predicted_tokens": 100,
        "off_plan_tokens": pytest.approx(-0.2),
        "off_plan_hours": pytest.approx(-0.2),
        "why_off_plan": "slow",
        "status": "finished",
    }
    assert {name: run.summary.get(name) for name in wanted} == wanted
    assert "plan_predicted_loss" not in run.summary
    assert "off_plan_loss" not in run.summary
    assert run.config["model.n_layer"] == 3
    assert run.config["plan.max_epochs"] == 4.0
    assert run.config["planned.tokens"] == 100
    assert run.variables["groupName"] == "size"
    assert set(run.variables["tags"]) == {"size", "seed=1"}


def test_only_what_the_server_lacks_is_sent(
    folder: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    process(folder, "offline", 1, 10, killed=True)
    main(["sync", str(folder)])
    process(folder, "offline", 8, 25)
    main(["sync", str(folder)])
    assert "15 of 25 points were new" in capsys.readouterr().out
    assert_one_curve(only(server), 25)


def test_a_resume_on_line_shows_each_step_once(folder: Path, server: WandbServer) -> None:
    process(folder, "online", 1, 30, killed=True)
    process(folder, "online", 21, 40)
    assert_one_curve(only(server), 40)


def test_a_resume_on_line_makes_up_for_processes_without_a_network(folder: Path, server: WandbServer) -> None:
    process(folder, "disabled", 1, 10, killed=True)
    process(folder, "offline", 11, 20, killed=True)
    process(folder, "online", 21, 30)
    assert_one_curve(only(server), 30)


def test_a_run_that_begins_anew_is_another_run(folder: Path, server: WandbServer) -> None:
    process(folder, "online", 1, 10)
    folder.rename(folder.with_name(folder.name + ".old-1"))
    folder.mkdir()
    process(folder, "online", 1, 5)
    assert sorted(len(run.history) for run in server.runs.values()) == [5, 10]


def test_a_live_run_on_line_is_left_alone(
    folder: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "wandb": {"mode": "online"}}))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        main(["sync", str(folder)])
    assert "is running" in capsys.readouterr().out
    assert server.runs == {}


def test_a_killed_run_is_shown_as_failed(folder: Path, server: WandbServer) -> None:
    (folder / "status.json").write_text(json.dumps({"status": "running", "reason": ""}))
    process(folder, "disabled", 1, 5, killed=True)
    main(["sync", str(folder)])
    assert (only(server).exit_code, only(server).summary["status"]) == (1, "killed")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """The exit status and the one line of a call that fails."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return stop.value.code, told.err


def test_what_is_wrong_is_told_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process(folder, "disabled", 1, 5)
    status, line = refused(["sync", str(folder), str(tmp_path)], capsys)
    assert (status, f"{tmp_path} is no run" in line) == (2, True)
    with running() as (url, _):
        monkeypatch.setenv("WANDB_BASE_URL", url)
    status, line = refused(["sync", str(folder)], capsys)  # that server is gone
    assert (status, "cannot be reached" in line, "sends it later" in line) == (1, True, True)
    monkeypatch.setenv("WANDB_API_KEY", "")
    status, line = refused(["sync", str(folder)], capsys)
    assert (status, "wandb login" in line) == (2, True)
