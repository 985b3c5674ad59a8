"""Sweeps on a real Slurm: jobs that are preempted, killed or over the time limit finish within their budgets."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import slurm_cluster
from tests.conftest import ROOT, TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=f"no Slurm here; {slurm_cluster.PACKAGES}"),
    pytest.mark.skipif(os.getuid() != 0, reason="Slurm's daemons run as root in this test"),
    pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs hydra-submitit-launcher"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    slurm_cluster.up()
    yield
    slurm_cluster.down()


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true result of `condition`. Meanwhile requeued jobs are released early from Slurm's two minutes of waiting."""
    deadline = time.monotonic() + seconds
    pending_since: dict[str, float] = {}
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        release(pending_since)
        time.sleep(0.5)
    raise AssertionError(f"not true within {seconds:g} s")


def release(pending_since: dict[str, float]) -> None:
    """Start jobs that have been pending for five seconds. A job that starts within the second of its requeue fails for good:
    Slurm distinguishes the two starts by whole seconds, so the node revokes the job's credential."""
    pending = slurm_cluster.run("squeue", "--array", "--noheader", "--states=PD", "--format=%i").split()
    for job in set(pending_since) - set(pending):
        del pending_since[job]
    for job in pending:
        if time.monotonic() - pending_since.setdefault(job, time.monotonic()) < 5:
            continue
        with contextlib.suppress(subprocess.CalledProcessError):  # it has started meanwhile
            slurm_cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def slurm_job(run: Path) -> str:
    """The id of the Slurm job that uses a run's folder, from the environment of the process that holds the lock."""
    holder = int((run / "lock").read_text().split()[1])
    variables = Path(f"/proc/{holder}/environ").read_bytes().split(b"\0")
    return (
        next(entry for entry in variables if entry.startswith(b"SLURM_JOB_ID=")).decode().removeprefix("SLURM_JOB_ID=")
    )


def test_disturbed_jobs_resume_and_finish_within_their_budgets(cluster: None, place: Path) -> None:
    """Seed 1 is preempted by a signal and requeued, seed 2 is killed, seed 3 reaches its time limit, seed 4 is undisturbed."""
    seconds = 100
    arguments = [
        *(*TINY, f"data.path={place / 'texts'}", "name=slurm", "seed=1,2,3,4", f"budget.hours={seconds / 3600:.6f}"),
        *("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"),
        *("hydra.launcher.signal_delay_s=20", "hydra.launcher.timeout_min=30", "checkpoint.every_s=2"),
    ]
    sweep = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *arguments],
        cwd=place,
        env={**os.environ, **slurm_cluster.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folders = wait_for(lambda: started if len(started := runs_by_seed(place)) == 4 else None)
    wait_for(lambda: all(list((run / "checkpoint").glob("step-*")) for run in folders.values()))
    slurm_cluster.run("scancel", "--signal=USR2", slurm_job(folders[1]))
    os.kill(int((folders[2] / "lock").read_text().split()[1]), signal.SIGKILL)
    slurm_cluster.run("scontrol", "update", f"JobId={slurm_job(folders[3])}", "TimeLimit=1")
    wait_for(lambda: sweep.poll() is not None, 600)
    shown = sweep.stdout.read() if sweep.stdout else ""
    assert sweep.returncode == 0, shown
    for seed, run in folders.items():
        result = json.loads((run / "result.json").read_text())
        assert result["status"] == "finished", seed
        assert sum(result["ledger_s"].values()) == pytest.approx(seconds, abs=10), seed
    resumed = [seed for seed, run in folders.items() if '"event": "resume"' in later_part(run)]
    assert resumed == [1, 2, 3]


def runs_by_seed(place: Path) -> dict[int, Path]:
    found = {}
    for path in (place / "outputs").glob("slurm-*/config.yaml"):
        seed = next(line for line in path.read_text().splitlines() if line.startswith("seed:"))
        found[int(seed.split()[1])] = path.parent
    return dict(sorted(found.items()))


def later_part(run: Path) -> str:
    """metrics.jsonl without the first line, the event of the start."""
    return "\n".join((run / "metrics.jsonl").read_text().splitlines()[1:])
