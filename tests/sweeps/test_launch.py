"""Sweeps as a user starts them, with jobs in their own processes, of which some are killed or fail."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY

# Loaded by every Python process of the sweep. A job whose OPTION has one of these values fails when it opens metrics.jsonl.
FAULTS = """
import os, re, resource, signal, sys
FAULTS = {FAULTS}

def fault_of():
    words = sys.orig_argv
    if "-cn" not in words or "-cd" not in words or not os.path.exists({on!r}):
        return None
    path = os.path.join(words[words.index("-cd") + 1], words[words.index("-cn") + 1] + ".yaml")
    try:
        found = re.search(r"^ *{OPTION}: ([0-9.]+)$", open(path).read(), re.M)
    except OSError:
        return None
    return FAULTS.get(float(found[1])) if found else None

def watch(event, arguments, fault=fault_of()):
    if fault and event == "open" and str(arguments[0]).endswith("metrics.jsonl"):
        if fault == "raise":
            raise RuntimeError("an unexpected error")
        if fault == "exit":
            os._exit(7)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "memory":
            before = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 20, before[1]))
            try:
                bytearray(1 << 28)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)

if fault_of():
    sys.addaudithook(watch)
"""
WILD = ("optim.learning_rate=99", "optim.grad_clip=0", "model.qk_norm=false", "schedule.warmup=0")


def sweep(
    place: Path, *arguments: str, faults: Path | None = None, tiny: tuple[str, ...] = TINY
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, TMPDIR=str(place))
    if faults is not None:
        environment["PYTHONPATH"] = str(faults)
    command = [sys.executable, str(ROOT / "train.py"), "-m", *tiny, f"data.path={place / 'texts'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=280)


def records(place: Path, name: str) -> list[dict[str, object]]:
    paths = (place / "outputs" / "sweeps" / name / "jobs").glob("*.json")
    return sorted((json.loads(path.read_text()) for path in paths), key=lambda record: record["number"])


def with_faults(folder: Path, faults: dict[float, str], option: str = "seed") -> tuple[Path, Path]:
    """Returns the folder for PYTHONPATH and the file whose presence turns the faults on. `faults`: by the value of `option`."""
    switch = folder / "on"
    switch.touch()
    (folder / "sitecustomize.py").write_text(
        FAULTS.replace("{FAULTS}", repr(faults)).replace("{on!r}", repr(str(switch))).replace("{OPTION}", option)
    )
    return folder, switch


def test_one_killed_job_does_not_stop_the_others(place: Path, tmp_path: Path) -> None:
    """It and its retry are killed. The other jobs finish, the table gives the reason, and the same command repairs it."""
    faults, switch = with_faults(tmp_path, {2: "kill"})
    arguments = ("budget.steps=5", "seed=1,2,3", "name=dies")
    first = sweep(place, *arguments, faults=faults)
    assert first.returncode == 1, first.stdout + first.stderr
    found = records(place, "dies")
    assert [record["status"] for record in found] == ["finished", "killed", "finished"]
    assert found[1]["tries"] == 2
    assert "SIGKILL" in first.stdout
    assert first.stderr.startswith("error: #1 seed=2 killed")
    assert "Traceback" not in first.stdout + first.stderr
    folder = place / "outputs" / "sweeps" / "dies"
    assert "killed by SIGKILL" in (folder / "report.html").read_text()
    assert (folder / "sweep.csv").read_text().count("\n") == 4
    switch.unlink()
    second = sweep(place, *arguments, faults=faults)
    assert second.returncode == 0, second.stdout + second.stderr
    repaired = records(place, "dies")
    assert [record["status"] for record in repaired] == ["finished"] * 3
    assert len({record["value"] for record in repaired}) == 3, "three seeds, three models"
    assert second.stdout.count("finished (earlier)") == 2, "finished jobs are not run again"


def test_a_user_error_in_one_job_stops_the_sweep_before_it_starts(place: Path) -> None:
    answer = sweep(place, "budget.steps=5", "model.dropout=0,2", "name=wrong")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert "dropout" in answer.stderr
    assert not list((place / "outputs").glob("wrong-*"))


def test_sweep_hours_with_batches_of_jobs_are_refused_before_the_start(place: Path) -> None:
    arguments = ("budget.hours=0.01", "sweep.hours=0.02", "seed=1,2", "name=batches")
    answer = sweep(place, "hydra.sweeper.max_batch_size=1", *arguments)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: sweep.hours=0.02 ")
    assert answer.stderr.count("\n") == 1
    assert not list((place / "outputs").glob("**/*batches*"))


def test_a_stopped_sweep_saves_its_running_job(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, f"data.path={place / 'texts'}"]
    command += ["budget.steps=20000", "seed=1,2", "name=halt"]
    # Tests that run in the background of a script inherit an ignored SIGINT, which the sweep would ignore as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place, env=dict(os.environ, TMPDIR=str(tmp_path))
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not list((place / "outputs").glob("halt-*/checkpoint/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130, shown + errors
    assert "stopped by SIGINT" in shown
    [run] = (place / "outputs").glob("halt-*")
    assert json.loads((run / "status.json").read_text()) == {"status": "stopped", "reason": "SIGINT"}
    assert list((run / "checkpoint").glob("step-*"))
    assert "Traceback" not in shown + errors


def test_on_error_stop_stops_at_the_first_failure(place: Path, tmp_path: Path) -> None:
    faults, _ = with_faults(tmp_path, {1: "exit"})
    arguments = ("budget.steps=3", "seed=1,2", "name=first", "sweep.on_error=stop", "sweep.retries=0")
    answer = sweep(place, *arguments, faults=faults)
    assert answer.returncode == 1
    assert [record["status"] for record in records(place, "first")] == ["failed", "not started"]
    assert "1 jobs are not started" in answer.stdout


@pytest.mark.slow
def test_eight_jobs_of_which_five_fail_in_different_ways(place: Path, tmp_path: Path) -> None:
    """The other three finish, the table gives the reason of each failure, and the same command finishes what it can."""
    rates = {0.001: "raise", 0.002: "exit", 0.003: "kill", 0.004: "memory"}
    faults, switch = with_faults(tmp_path, rates, "learning_rate")
    sweeping = ("optim.learning_rate=0.001,0.002,0.003,0.004,99,0.005,0.006,0.007", *WILD[1:])
    arguments = ("budget.steps=400", *sweeping, "name=eight", "sweep.retries=0")
    tiny = tuple(text for text in TINY if not text.startswith("optim.learning_rate"))  # else it overrides the sweep
    answer = sweep(place, *arguments, faults=faults, tiny=tiny)
    assert answer.returncode == 1
    found = records(place, "eight")
    failed = ["failed", "failed", "killed", "out of memory", "diverged"]
    assert [record["status"] for record in found] == [*failed, *["finished"] * 3], answer.stdout
    assert "an unexpected error" in str(found[0]["why"])
    page = html.unescape((place / "outputs" / "sweeps" / "eight" / "report.html").read_text())
    assert all(str(record["why"]) in page for record in found[:5])
    switch.unlink()
    assert sweep(place, *arguments, faults=faults, tiny=tiny).returncode == 1
    assert [record["status"] for record in records(place, "eight")] == [
        *["finished"] * 4,
        "diverged",
        *["finished"] * 3,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_hydra_launchers_run_the_same_jobs(place: Path, launcher: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher" if launcher == "joblib" else "submitit")
    answer = sweep(place, f"hydra/launcher={launcher}", "budget.steps=5", "seed=1,2", f"name={launcher}")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert [record["status"] for record in records(place, launcher)] == ["finished"] * 2
    assert (place / "outputs" / "sweeps" / launcher / "report.html").exists()
    failing = sweep(place, f"hydra/launcher={launcher}", "budget.steps=400", "seed=1", *WILD, f"name=wild-{launcher}")
    assert failing.returncode == 1
    assert records(place, f"wild-{launcher}")[0]["status"] == "diverged"


@pytest.mark.slow
def test_a_diverged_trial_is_a_failed_trial(place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    space = ("optim.learning_rate=choice(0.003,99)", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.seed=7")
    tiny = tuple(text for text in TINY if not text.startswith("optim.learning_rate"))  # else it overrides the sweep
    answer = sweep(place, "hydra/sweeper=tpe", *space, "budget.steps=300", *WILD[1:], "name=tpe", tiny=tiny)
    statuses = {record["status"] for record in records(place, "tpe")}
    assert statuses == {"finished", "diverged"}, answer.stdout + answer.stderr
    assert answer.returncode == 0, answer.stdout + answer.stderr
    again = sweep(place, "hydra/sweeper=tpe", *space, "budget.steps=300", *WILD[1:], "name=tpe", tiny=tiny)
    assert "started on" not in again.stdout, "the same command proposes the same trials"
