"""The folder of a run, outputs/NAME: its name, its files, and the lock that keeps other processes out."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import IO, Any

from common.errors import FULL_DISK, MachineError, UserError
from common.file_lock import try_lock


def run_name(name: str, options: dict[str, Any]) -> str:
    """<name>-<first 8 hex digits of the sha256 of `options`>. The same command thus finds its own run again."""
    canonical = json.dumps(options, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def requeued() -> bool:
    """Whether Slurm restarted this job. It then continues its run even with fresh=true."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


class RunDirectory:
    """The folder of one run, locked against a second process. The attributes are the paths of its files."""

    def __init__(self, output_dir: Path, name: str, fresh: bool) -> None:
        """Create or open `output_dir/name`. With `fresh`, an existing folder is first renamed to NAME.old-K.

        Raises UserError if the folder cannot be written or another process has locked it.
        """
        self.folder = output_dir / name
        self.config = self.folder / "config.yaml"
        self.start = self.folder / "start.json"
        self.plan = self.folder / "plan.json"
        self.metrics = self.folder / "metrics.jsonl"
        self.ledger = self.folder / "ledger.json"
        self.checkpoints = self.folder / "checkpoint"
        self.plan_copy = self.checkpoints / "plan.json"
        self.tasks = self.folder / "tasks.json"
        self.evaluations = self.folder / "evaluations"  # answers to the items of tasks; evaluate.py writes there, too
        self.weights = self.folder / "model.safetensors"
        self.model = self.folder / "model.json"
        self.tokenizer = self.folder / "tokenizer.json"
        self.result = self.folder / "result.json"
        self.report = self.folder / "report.html"
        self.status = self.folder / "status.json"
        self.log = self.folder / "log.txt"
        try:
            self.created = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.folder)
            if fresh and not self.created and not requeued():
                set_aside(self.folder)  # still locked, so that no other process can take it over meanwhile
                self.folder.mkdir()
                self.created = True
                self._lock.close()
                self._lock = lock(self.folder)
            probe = self.folder / ".probe"  # detects a full disk or a read-only folder before hours of training
            probe.write_bytes(b"\0" * 65536)
            probe.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"output_dir={output_dir} cannot be written ({reason}); choose another with output_dir=FOLDER"
            ) from None

    def require_space(self, needed: int) -> None:
        """Raise UserError if fewer than `needed` bytes are free for this run's checkpoints and weights.

        Those that a resumed run already has count as free, because new ones replace them.
        """
        stat = os.statvfs(self.folder)
        free = stat.f_bavail * stat.f_frsize + sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
        if free < needed:
            raise UserError(
                f"{self.folder} has {free / 1e6:,.0f} MB free and this run writes about {needed / 1e6:,.0f} MB;"
                " free some space or choose another disk with output_dir=FOLDER"
            )

    def discard(self) -> None:
        """Delete the folder. Only for one that this process created and that holds nothing worth keeping."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.folder.rmdir()

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


def lock(folder: Path) -> IO[str]:
    """Lock a folder until the returned file is closed. Raises UserError if another process has locked it."""
    held = try_lock(folder / "lock")
    if isinstance(held, str):
        raise UserError(f"{folder} is in use by {held}; wait for it, stop it, or use another name=NAME")
    return held


def set_aside(folder: Path) -> Path:
    """Rename a folder to NAME.old-K, with the first free K, and return the new path."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(old)
    return old


def full_disk(path: Path, error: Exception, kept: str) -> MachineError:
    """The error for a failed write to `path`; `kept` names what is still there."""
    # errors of safetensors have no errno
    full = getattr(error, "errno", None) in FULL_DISK or re.search("space|quota", str(error))
    hint = "free some space" if full else "check the disk"
    return MachineError(f"{path} could not be written ({error}); kept: {kept}; {hint} and repeat the command")
