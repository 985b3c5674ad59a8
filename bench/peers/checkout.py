"""The base class of peers whose own training script runs from the user's checkout."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.peers.peer import Peer, PeerRun

if TYPE_CHECKING:
    from data.shards import Split

SCRIPTS = Path(__file__).parent
CALIBRATION = 200  # iterations


@dataclass(frozen=True)
class CheckoutPeer(Peer):
    """A peer whose own training script runs unchanged. The `amount` of its settings is a number of iterations.

    NAME_train.py starts the script and NAME_loss.py scores its model. Both run in their own processes, because modules of the
    peer have the same names as modules of stint."""

    checkout: Path

    @staticmethod
    @abstractmethod
    def is_at(path: Path) -> bool:
        """Whether `path` is a checkout of this peer."""

    @staticmethod
    @abstractmethod
    def iteration_seconds(log: str) -> tuple[float, ...]:
        """The seconds of every iteration, read from the script's output."""

    @abstractmethod
    def ran(self, seconds: float, each: tuple[float, ...], settings: dict[str, Any]) -> PeerRun:
        """Describe a run with these settings; `each`: seconds of its iterations."""

    @abstractmethod
    def train_arguments(self, place: Path, name: str, seed: int, settings: dict[str, Any]) -> list[str]:
        """The arguments of NAME_train.py after the checkout."""

    @abstractmethod
    def loss_arguments(self, place: Path, name: str, settings: dict[str, Any], windows: Path) -> list[str]:
        """The arguments of NAME_loss.py after the checkout."""

    def run(self, place: Path, name: str, seed: int, settings: dict[str, Any]) -> PeerRun:
        arguments = self.train_arguments(place, name, seed, settings)
        command = [sys.executable, str(SCRIPTS / f"{self.name}_train.py"), str(self.checkout), *arguments]
        began = time.monotonic()
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        seconds = time.monotonic() - began
        if done.returncode:
            sys.exit(f"the peer failed: {done.stderr[-2000:]}")
        return self.ran(seconds, self.iteration_seconds(done.stdout), settings)

    def amount_within(self, place: Path, form: str, seconds: float) -> int:
        ran = self.run(place, "calibration", 0, self.settings(form, CALIBRATION))
        start = ran.seconds - sum(ran.each)
        return int((seconds - start) / statistics.median(ran.each))

    def loss(self, place: Path, name: str, settings: dict[str, Any], windows: Path) -> float:
        arguments = self.loss_arguments(place, name, settings, windows)
        command = [sys.executable, str(SCRIPTS / f"{self.name}_loss.py"), str(self.checkout), *arguments]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the peer's model could not be scored: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        return float(found["nats"] / found["tokens"])


def write_tokens(splits: Iterable[Split], folder: Path) -> None:
    """Write train.bin and val.bin in nanoGPT's format: uint16 token ids without a header."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        tokens = np.concatenate([np.asarray(shard, dtype=np.uint16) for shard in split.shards])
        tokens.tofile(folder / f"{split.name}.bin")


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as arguments --KEY=VALUE."""
    return [f"--{key}={value}" for key, value in settings.items()]


def seconds_in(log: str, pattern: re.Pattern[str], unit: float) -> tuple[float, ...]:
    """Seconds: the first group of every match of `pattern`, times `unit`."""
    return tuple(unit * float(found[1]) for found in pattern.finditer(log))
