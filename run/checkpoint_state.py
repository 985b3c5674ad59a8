"""Finds the checkpoints in a folder and reads their state, without their tensors. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.checksum import verify_checksum
from common.safe_read import is_amount, is_count, load_json

FORMAT = 1
FOLDER = re.compile(r"step-(\d{9})(\.old)?")
TENSORS = ("model.safetensors", "optimizer.safetensors")
RETIRED = ("correction", "moved_at", "limit_s")  # keys of the state that only earlier versions wrote


@dataclass
class TrainingState:
    """The state of a run, besides its tensors.

    Attributes:
        limits: The limits of the run by unit (hours, flops, tokens, steps), under which it reached `progress`.
        loss_scale: The loss scale of float16 training.
        setback: Where and why the run diverged and was rolled back, after which it trains at half the learning rate.
        machine: The device that it was last trained on.
        micro_batch: Sequences per forward pass, if the planned number did not fit in memory.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    progress: float = 0.0
    loss: float | None = None
    limits: dict[str, float] = field(default_factory=dict)
    loss_scale: float | None = None
    setback: dict[str, Any] | None = None
    machine: str | None = None
    micro_batch: int | None = None


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    matches = [(match, path) for path in folder.glob("step-*") if (match := FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(matches, key=lambda pair: (-step_of(pair[1]), pair[0][2] is not None))]


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.split("-")[1].removesuffix(".old"))


def read_state(path: Path) -> dict[str, Any]:
    """The verified content of state.json. Raises ValueError or OSError if it is damaged."""
    stored = load_json(path / "state.json")
    content = verify_checksum(stored)
    if content.get("format") != FORMAT:
        raise ValueError(f"format {content.get('format')}, expected {FORMAT}")
    if len(content) == len(stored):
        raise ValueError("state.json has no checksum")
    return content


def state_of(content: dict[str, Any]) -> TrainingState:
    """The training state in state.json.

    Raises ValueError for impossible values: the checksum detects damage, but anyone can compute it for a crafted file.
    """
    state = TrainingState(**{name: value for name, value in content.items() if name not in RETIRED})
    limit_s = content.get("limit_s")  # earlier versions kept the limit of hours alone
    if limit_s is not None:
        state.limits = {"hours": limit_s / 3600 if is_amount(limit_s) else limit_s}
    optional = (state.loss, state.loss_scale, state.micro_batch)
    valid = (
        is_count(state.step)
        and is_count(state.tokens)
        and is_amount(state.flops, 1e40)
        and is_amount(state.progress)
        and all(value is None or is_amount(value) for value in optional)
        and isinstance(state.limits, dict)
        and all(is_amount(limit) and limit > 0 for limit in state.limits.values())
        and isinstance(state.setback, dict | None)
        and isinstance(state.machine, str | None)
    )
    if not valid:
        raise ValueError("state.json holds an impossible state")
    return state


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
