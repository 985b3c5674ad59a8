"""outputs/NAME: which folder a run lives in, and that only one process at a time works there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import IO, Any

from common.errors import FULL_DISK, MachineError, UserError
from common.file_lock import try_lock


def run_name(name: str, knobs: dict[str, Any]) -> str:
    """<name>-<8 hex of the knobs that matter>: never a timestamp, so that the same command finds its own run again."""
    canonical = json.dumps(knobs, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def requeued() -> bool:
    """Whether Slurm has put this job back into its queue: it goes on with what it has, also where it began with fresh=true."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


class RunDirectory:
    """The folder of one run, locked against a second live process. Attributes are the paths of design's file list."""

    def __init__(self, output_dir: Path, name: str, fresh: bool) -> None:
        """Create or reopen `output_dir/name`; `fresh` first sets an existing one aside as NAME.old-K, once.

        Raises UserError where the folder cannot be written or another live process has it.
        """
        self.folder = output_dir / name
        self.config = self.folder / "config.yaml"
        self.plan = self.folder / "plan.json"
        self.metrics = self.folder / "metrics.jsonl"
        self.ledger = self.folder / "ledger.json"
        self.checkpoints = self.folder / "checkpoint"
        self.plan_copy = self.checkpoints / "plan.json"
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
                self._set_aside()
                self._lock.close()
                self._lock = lock(self.folder)
            self._probe()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"output_dir={output_dir} cannot be written ({reason}); choose another with output_dir=FOLDER"
            ) from None

    def _set_aside(self) -> None:
        set_aside(self.folder)  # still locked, so that nobody takes it over while it moves
        self.folder.mkdir()
        self.created = True

    def _probe(self) -> None:
        """Find a full disk or a read-only folder now, not after an hour."""
        probe = self.folder / ".probe"
        probe.write_bytes(b"\0" * 65536)
        probe.unlink()

    def require_space(self, needed: int) -> None:
        """Raise UserError when fewer than `needed` bytes are free for this run's checkpoints and weights; those that lie there
        already, of a run that goes on, make room for the next ones."""
        stat = os.statvfs(self.folder)
        free = stat.f_bavail * stat.f_frsize + sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
        if free < needed:
            raise UserError(
                f"{self.folder} has {free / 1e6:,.0f} MB free and this run writes about {needed / 1e6:,.0f} MB;"
                " free some space or choose another disk with output_dir=FOLDER"
            )

    def discard(self) -> None:
        """Remove a folder that this process created and that holds nothing worth keeping."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.folder.rmdir()

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()


def lock(folder: Path) -> IO[str]:
    """The lock of a folder, held until it is closed. Raises UserError where another live process has it."""
    held = try_lock(folder / "lock")
    if isinstance(held, str):
        raise UserError(f"{folder} is in use by {held}; wait for it, stop it, or start this under another name=NAME")
    return held


def set_aside(folder: Path) -> Path:
    """Nothing that was paid for is deleted: a folder keeps its files under another name."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(old)
    return old


def full_disk(path: Path, error: Exception, kept: str) -> MachineError:
    """The one-line account of a write that failed."""
    told = re.search("space|quota", str(error))  # safetensors gives no number
    full = getattr(error, "errno", None) in FULL_DISK or told
    mend = "free some space" if full else "see to the disk"
    return MachineError(f"{path} could not be written ({error}); kept: {kept}; {mend} and type the same command")
