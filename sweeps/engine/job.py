"""One job of a sweep: a fresh process of train.py, what became of it, and its record in the sweep's folder.

A job is a run like any other: its folder is named by its own configuration, so that it is found again by the sweep that is
started again, by another sweep that holds the same job, and by the same command typed alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from budget.ledger import read_ledger
from cli.compose import as_yaml
from common.errors import MachineError, UserError
from common.file_lock import try_lock
from common.json_io import mapping, number, read_json, write_json
from config import Config, identity
from run.directory import lock, requeued, run_name, set_aside
from sweeps.engine.device_lock import DeviceLock

ROOT = Path(__file__).parents[2]
# A job's file under SWEEP/jobs/ is a configuration of its own: complete, so that later edits of sweeps/ and conf/ do not
# reach jobs that wait.
HEAD = """defaults:
  - config_schema
  - quiet
  - _self_
  - override hydra/hydra_logging: none
  - override hydra/job_logging: none
"""
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|can't allocate memory|MemoryError|DefaultCPUAllocator", re.I
)
CACHE_DIR = "TORCHINDUCTOR_CACHE_DIR"
TAIL_BYTES = 8_000  # of a job's log, where the reason of a failure stands
GOOD = ("finished", "pruned", "paused", "not started")
# What starting again can mend; the others would only fail in the same way, or were wished for.
RETRIED = ("killed", "failed")


@dataclass(frozen=True)
class Job:
    """What is to be run: `overrides` as on the command line, and the whole configuration that they lead to; `folder` is the
    sweep's for jobs, where its files are. longer: the hours that the others left bought it, so it is not ranked with them."""

    number: int
    overrides: tuple[str, ...]
    folder: Path
    knobs: Config
    longer: bool = False

    @cached_property
    def name(self) -> str:
        return run_name(self.knobs.name, identity(self.knobs))

    @property
    def run(self) -> Path:
        return Path(self.knobs.output_dir).absolute() / self.name

    @property
    def config(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def compiler_cache(self) -> Path:
        return self.folder / f"{self.name}.cache"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    @cached_property
    def label(self) -> str:
        return f"#{self.number} {' '.join(self.swept) or self.name}"

    @cached_property
    def swept(self) -> list[str]:
        """The overrides of knobs that the sweep varies, without those that were given for all jobs."""
        keys = (read_json(self.folder.parent / "sweep.json") or {}).get("swept", [])
        return [each for each in self.overrides if each.split("=")[0] in keys]

    def write(self) -> None:
        """The file that the job's process reads. In wandb the jobs of a sweep are a group, with what is swept as tags."""
        wandb, name = self.knobs.wandb, self.knobs.name
        wandb = replace(wandb, group=wandb.group or name, tags=[*dict.fromkeys([*wandb.tags, name, *self.swept])])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(HEAD + as_yaml(replace(self.knobs, wandb=wandb)))


@dataclass
class Outcome:
    """What became of a job.

    status: finished | pruned | paused | not started | diverged | out of memory | refused | killed | failed | stopped. value:
    the sweep's metric; of a pruned one, its last validation loss. not started: the sweep's hours were used up, or it stopped.
    """

    status: str
    why: str = ""
    value: float | None = None

    @property
    def good(self) -> bool:
        return self.status in GOOD


class JobFailed(MachineError):
    """A job of a sweep did not finish; what a sweeper records as a failed trial."""


def job_of(config: Config, number: int, overrides: list[str], sweep_dir: str) -> Job:
    """The job of one configuration, its file written."""
    given = tuple(_resolved(config, override) for override in overrides)
    job = Job(number, given, Path(sweep_dir).absolute() / "jobs", config)
    job.write()
    return job


def _resolved(config: Config, override: str) -> str:
    """An override with the value that it led to where it stands for another one: the job's label and command show it."""
    key, _, value = override.partition("=")
    if not value.startswith(("${", "$\\{")):  # Hydra's basic sweeper escapes it
        return override
    group, _, leaf = key.partition(".")
    return f"{key}={getattr(getattr(config, group), leaf) if leaf else getattr(config, group)}"


def anew(job: Job) -> Job:
    """With fresh=true: what the job left is set aside, once, so that each of its processes goes on with the one before.

    Raises UserError where another live process has the run, or it cannot be moved.
    """
    if not job.knobs.fresh:
        return job
    if not requeued():
        put_away(job.run)
        job.record.unlink(missing_ok=True)
    job = replace(job, knobs=replace(job.knobs, fresh=False))
    job.write()
    return job


def put_away(run: Path) -> None:
    """Set a run's folder aside, if there is one. Raises UserError."""
    if not run.exists():
        return
    try:
        held = lock(run)
        set_aside(run)  # still locked, so that nobody takes it over while it moves
        held.close()
    except OSError as error:
        raise UserError(
            f"fresh=true cannot set {run} aside ({error.strerror}); choose another folder with output_dir=FOLDER"
        ) from None


def held_by(job: Job) -> str | None:
    """Who works in the job's run now, e.g. a process that outlived the sweep that began it; None where nobody does."""
    if not (job.run / "lock").exists():
        return None
    try:
        found = try_lock(job.run / "lock")
    except OSError:  # the job itself will say what is wrong with the folder
        return None
    if isinstance(found, str):
        return found
    found.close()
    return None


def start(job: Job, lease: DeviceLock) -> subprocess.Popen[bytes]:
    """The job's process, in a session of its own, so that a Ctrl-C reaches it only through the sweep. torch.compile has a cache
    of its own for each, or the first job would pay for what the others find."""
    caches = {} if CACHE_DIR in os.environ else {CACHE_DIR: str(job.compiler_cache)}
    command = [sys.executable, str(ROOT / "train.py"), "-cd", str(job.folder), "-cn", job.name]
    with job.log.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **caches, **lease.device.environment},
            start_new_session=True,
            pass_fds=(lease.descriptor,),
        )


def already(job: Job) -> Outcome | None:
    """The outcome of a job that needs no process any more: diverged, finished with no hours added since or, where the
    sweep still prunes, pruned."""
    record = mapping(read_json(job.record))
    if record.get("status") == "pruned" and job.knobs.sweep.prune != "none":
        return Outcome("pruned", str(record.get("why", "")), record.get("value"))
    status = (read_json(job.run / "status.json") or {}).get("status")
    if status not in ("finished", "diverged") or (status == "finished" and _extended(job)):
        return None
    return outcome_of(job, 0)


def _extended(job: Job) -> bool:
    """Whether budget.extend_hours adds something that the run has not had, as train.py sees it."""
    spent = read_ledger(job.run / "ledger.json") or mapping(read_json(job.run / "result.json"))
    return job.knobs.budget.extend_hours > number(spent.get("extended_hours"), 0.0)


def outcome_of(job: Job, code: int, log_from: int = 0) -> Outcome:
    """What the exit status, the run's status.json and the end of its log say; log_from: where the log of the process that
    ended begins."""
    found = read_json(job.run / "status.json") or {}
    status, reason = found.get("status"), str(found.get("reason", ""))
    if code == 0 and status == "finished":
        result = read_json(job.run / "result.json") or {}
        return Outcome("finished", "", (result.get("eval") or {}).get(job.knobs.sweep.metric))
    if status == "diverged":
        return Outcome("diverged", reason)
    if code < 0:
        return Outcome("killed", _killed_by(-code))
    if code == 2:
        return Outcome("refused", _reason(job, log_from))
    if status == "stopped" and code > 128:
        return Outcome("stopped", reason)
    last = _reason(job, log_from)
    if OUT_OF_MEMORY.search(last):
        return Outcome("out of memory", last)
    return Outcome("failed", last or f"exit status {code} without a word")


def _killed_by(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    by_whom = ", by hand or by the system for lack of memory" if name == "SIGKILL" else ""
    return f"killed by {name}{by_whom}"


def log_size(job: Job) -> int:
    """Where the next process of the job begins to write: the log keeps what all of them said."""
    return job.log.stat().st_size if job.log.exists() else 0


def last_lines(job: Job, log_from: int = 0) -> list[str]:
    """The end of a job's log, of what was written from `log_from` on."""
    try:
        with job.log.open("rb") as file:
            file.seek(max(log_from, job.log.stat().st_size - TAIL_BYTES))
            return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []


def _reason(job: Job, log_from: int) -> str:
    """The last error message of the log, or else its last line."""
    lines = last_lines(job, log_from)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def hours_spent(run: Path) -> float:
    """Hours that a run has used up, in all its processes."""
    ledger = read_ledger(run / "ledger.json")
    return sum(ledger["ledger_s"].values()) / 3600 if ledger else 0.0


def write_record(job: Job, outcome: Outcome, tries: int, seconds: float) -> None:
    """The job's line of the sweep's table, as a file of its own: launchers of all kinds write at the same time."""
    content = asdict(outcome) | {"number": job.number, "overrides": list(job.overrides), "run": str(job.run)}
    content |= {"name": job.name, "tries": tries, "seconds": seconds, "metric": job.knobs.sweep.metric}
    content |= {"hours": job.knobs.budget.hours, "hours_spent": hours_spent(job.run), "longer": job.longer}
    write_json(job.record, content)
