"""One job of a sweep: its train.py process, its outcome, and its record in the sweep's folder.

A job is a run like any other, and its folder is named after its configuration. So the same sweep started again, another sweep
with the same job, and the same command without a sweep all find the same run.
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
from typing import Any

from budget.ledger import read_ledger
from cli.compose import as_yaml
from common.errors import MachineError, UserError
from common.file_lock import try_lock
from common.json_io import mapping, read_json, write_json
from config import Config, extension_of, identity, leaves
from run.directory import lock, requeued, run_name, set_aside
from run.history import final_status, read_result
from sweeps.engine.device_lock import DeviceLock
from sweeps.engine.scored_text import metric_of

ROOT = Path(__file__).parents[2]
# The first lines of a job's file under SWEEP/jobs/. The file holds the complete configuration, so later edits of sweeps/ and
# conf/ do not change jobs that are still waiting.
CONFIG_HEAD = """defaults:
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
QUANTITIES = {name for name, option, _ in leaves(Config) if option.unit}
PLAIN_NUMBER = re.compile(r"[-+.\d]+(e[-+]?\d+)?|null", re.I)
TAIL_BYTES = 8_000  # read from the end of a job's log to find the reason of a failure
GOOD = ("finished", "pruned", "paused", "not started")
# Outcomes that may change on a retry. The others would fail in the same way again, or were intended.
RETRIED = ("killed", "failed")


@dataclass(frozen=True)
class Job:
    """A job to run.

    Attributes:
        overrides: As on the command line.
        folder: SWEEP/jobs, where the files of all jobs are.
        options: The complete configuration of the run.
        longer: Whether the job is a longer run of the best one, on hours that were left over. It is not ranked.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path
    options: Config
    longer: bool = False

    @cached_property
    def name(self) -> str:
        return run_name(self.options.name, identity(self.options))

    @property
    def run(self) -> Path:
        return Path(self.options.output_dir).absolute() / self.name

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
        """The overrides of options that the sweep varies, without those that are the same for all jobs."""
        keys = (read_json(self.folder.parent / "sweep.json") or {}).get("swept", [])
        return [override for override in self.overrides if override.split("=")[0] in keys]

    def write(self) -> None:
        """Write the file that the job's process reads. In wandb, the jobs of a sweep form a group."""
        wandb, name = self.options.wandb, self.options.name
        wandb = replace(wandb, group=wandb.group or name, tags=[*dict.fromkeys([*wandb.tags, name, *self.swept])])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(CONFIG_HEAD + as_yaml(replace(self.options, wandb=wandb)))


@dataclass
class Outcome:
    """The outcome of a job.

    Attributes:
        status: finished | pruned | paused | not started | diverged | out of memory | refused | killed | failed | stopped.
            "not started" means that the sweep's hours were used up or that the sweep was stopped.
        why: The reason, for people.
        value: The sweep's metric; for a pruned job its last validation loss.
    """

    status: str
    why: str = ""
    value: float | None = None

    @property
    def good(self) -> bool:
        return self.status in GOOD


class JobFailed(MachineError):
    """A job of a sweep did not finish. A sweeper records it as a failed trial."""


def make_job(config: Config, number: int, overrides: list[str], sweep_dir: str) -> Job:
    """Make the job of a configuration and write its file."""
    resolved = tuple(_resolved(config, override) for override in overrides)
    job = Job(number, resolved, Path(sweep_dir).absolute() / "jobs", config)
    job.write()
    return job


def _resolved(config: Config, override: str) -> str:
    """Replace an interpolation or a quantity such as 30m in an override by its value, so that the job's label and command
    show the same value however it was written."""
    key, _, value = override.partition("=")
    interpolation = value.startswith(("${", "$\\{"))  # the second is how Hydra's basic sweeper escapes it
    if not interpolation and (key not in QUANTITIES or PLAIN_NUMBER.fullmatch(value)):
        return override
    group, _, leaf = key.partition(".")
    return f"{key}={getattr(getattr(config, group), leaf) if leaf else getattr(config, group)}"


def apply_fresh(job: Job) -> Job:
    """With fresh=true, set the job's earlier run aside. The returned job has fresh=false, so that its retries resume the run.

    Raises UserError if another live process uses the run, or if the run cannot be moved.
    """
    if not job.options.fresh:
        return job
    if not requeued():
        set_run_aside(job.run)
        job.record.unlink(missing_ok=True)
    job = replace(job, options=replace(job.options, fresh=False))
    job.write()
    return job


def set_run_aside(run: Path) -> None:
    """Rename a run's folder, if there is one, to NAME.old-K. Raises UserError if it is in use or cannot be renamed."""
    if not run.exists():
        return
    try:
        held = lock(run)
        set_aside(run)  # still locked, so that no other process takes it meanwhile
        held.close()
    except OSError as error:
        raise UserError(
            f"fresh=true cannot set {run} aside ({error.strerror}); choose another folder with output_dir=FOLDER"
        ) from None


def run_holder(job: Job) -> str | None:
    """Describe the process that uses the job's run now, or return None. It may have outlived the sweep that started it."""
    if not (job.run / "lock").exists():
        return None
    try:
        held = try_lock(job.run / "lock")
    except OSError:  # the job itself will report what is wrong with the folder
        return None
    if isinstance(held, str):
        return held
    held.close()
    return None


def start_process(job: Job, device_lock: DeviceLock) -> subprocess.Popen[bytes]:
    """Start the job's process in a new session, so that Ctrl-C reaches it only through the sweep.

    Each job has its own torch.compile cache. With a shared one, the first job would pay for what the others reuse."""
    caches = {} if CACHE_DIR in os.environ else {CACHE_DIR: str(job.compiler_cache)}
    command = [sys.executable, str(ROOT / "train.py"), "-cd", str(job.folder), "-cn", job.name]
    with job.log.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **caches, **device_lock.device.environment},
            start_new_session=True,
            pass_fds=(device_lock.descriptor,),
        )


def earlier_outcome(job: Job) -> Outcome | None:
    """The outcome of a job that does not have to run again, else None.

    That is a job that has diverged, one that has finished and got no more budget since and, if the sweep still prunes, one that
    was pruned."""
    record = mapping(read_json(job.record))
    if record.get("status") == "pruned" and job.options.sweep.prune != "none":
        return Outcome("pruned", str(record.get("why", "")), record.get("value"))
    return read_outcome(job, 0) if final_status(job.run, extension_of(job.options.budget)) else None


def read_outcome(job: Job, code: int, log_from: int = 0) -> Outcome:
    """Derive the outcome from the exit status `code`, the run's status.json and the end of its log.

    The log of the process that has ended begins at byte `log_from`."""
    content = mapping(read_json(job.run / "status.json"))
    status, reason = content.get("status"), str(content.get("reason", ""))
    if code == 0 and status == "finished":
        return Outcome("finished", "", metric_of(read_result(job.run), job.options.sweep.metric))
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
    return Outcome("failed", last or f"exit status {code} without output")


def _killed_by(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    cause = ", by a person or by the system for lack of memory" if name == "SIGKILL" else ""
    return f"killed by {name}{cause}"


def log_size(job: Job) -> int:
    """Bytes in the job's log, to which the next process appends."""
    return job.log.stat().st_size if job.log.exists() else 0


def last_lines(job: Job, log_from: int = 0) -> list[str]:
    """The last lines of a job's log, from byte `log_from` on."""
    try:
        with job.log.open("rb") as file:
            file.seek(max(log_from, job.log.stat().st_size - TAIL_BYTES))
            return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []


def _reason(job: Job, log_from: int) -> str:
    """The last error message in the log, or its last line if it has no error message."""
    lines = last_lines(job, log_from)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def hours_spent(run: Path) -> float:
    """Hours of the budget that a run has spent, over all its processes."""
    ledger = read_ledger(run / "ledger.json")
    return sum(ledger["ledger_s"].values()) / 3600 if ledger else 0.0


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of all jobs in `folder`, SWEEP/jobs; empty for one that cannot be read."""
    return [mapping(read_json(path)) for path in sorted(folder.glob("*.json"))]


def write_record(job: Job, outcome: Outcome, tries: int, seconds: float) -> None:
    """Write the job's row of the sweep's table. It is a file of its own, because several launchers may write at once."""
    content = asdict(outcome) | {"number": job.number, "overrides": list(job.overrides), "run": str(job.run)}
    content |= {"name": job.name, "tries": tries, "seconds": seconds, "metric": job.options.sweep.metric}
    content |= {"hours": job.options.budget.hours, "hours_spent": hours_spent(job.run), "longer": job.longer}
    write_json(job.record, content)
