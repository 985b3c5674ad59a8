"""Checkpoints that no kill can tear: tensors in safetensors, everything else in JSON, checksummed, the last two kept.

A checkpoint is a folder checkpoint/step-000000123 with model.safetensors, optimizer.safetensors and state.json; the JSON
holds the hash of both files. It is written under another name, flushed to the disk and renamed, so a folder with that
name is complete. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.checksum import verify_checksum
from common.errors import MachineError, UserError
from common.json_io import sync_folder, write_json
from common.safe_read import is_amount, is_count, load_json, member

KEPT = 2
FORMAT = 1
FOLDER = re.compile(r"step-(\d{9})(\.old)?")
TENSORS = ("model.safetensors", "optimizer.safetensors")
RETIRED = ("correction", "moved_at")  # keys of the state that earlier versions wrote; only read


@dataclass
class TrainingState:
    """Where a run stands, besides tensors. `limit_s`: the hours it was working towards, seconds; `loss_scale`: of float16;
    `setback`: from where and why it once went back, to go on at half the rate; `machine`: what it was trained on last;
    `micro_batch`: sequences at once, where more did not fit."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    progress: float = 0.0
    loss: float | None = None
    limit_s: float | None = None
    loss_scale: float | None = None
    setback: dict[str, Any] | None = None
    machine: str | None = None
    micro_batch: int | None = None


def named_optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors under `<what>.<parameter name>`, e.g. exp_avg.blocks.0.attention.qkv.weight."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for what, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{what}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Put tensors saved by `named_optimizer_tensors` in place of what is there, on the device of each parameter."""
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        found = {key.removesuffix(f".{name}"): value for key, value in tensors.items() if key.endswith(f".{name}")}
        found = {what: value for what, value in found.items() if "." not in what}
        if found:
            optimizer.state[parameter] = {
                # AdamW keeps its step counter on the CPU unless it is fused or capturable
                what: value.to(parameter.device) if value.ndim or optimizer.defaults.get("fused") else value.cpu()
                for what, value in found.items()
            }


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    ledger: dict[str, float],
) -> Path:
    """Write a checkpoint and drop the oldest beyond the last two. Raises OSError when the disk refuses; the earlier
    checkpoints are untouched then."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state.step:09d}"
    replaced = folder / f"{final.name}.old"
    temporary = folder / f".tmp-{state.step:09d}"
    for unfinished in folder.glob(".tmp-*"):  # killed in the middle
        shutil.rmtree(unfinished, ignore_errors=True)
    temporary.mkdir()
    try:
        hashes = {
            name: _save(temporary / name, tensors)
            for name, tensors in zip(
                TENSORS, (dict(model.state_dict()), named_optimizer_tensors(model, optimizer)), strict=True
            )
        }
        content = {"format": FORMAT, "state": asdict(state), "ledger_s": ledger, "sha256": hashes}
        write_json(temporary / "state.json", content, checksummed=True)
        if final.exists():  # of the same step; a rename cannot replace it, and in between it counts under this name
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        temporary.rename(final)
        sync_folder(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    others = [path for path in checkpoints(folder) if path != final]
    for old in others[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    found = [(match, path) for path in folder.glob("step-*") if (match := FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda each: (-step_of(each[1]), each[0][2] is not None))]


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name.split("-")[1].removesuffix(".old"))


@dataclass
class Checkpoint:
    """A checkpoint as read back and verified. `corrected`: written by earlier code that had changed the batch and the rates
    of the plan on the way."""

    state: TrainingState
    ledger: dict[str, float]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    corrected: bool


def latest_checkpoint(folder: Path, say: Callable[[str], None], before: float = math.inf) -> Checkpoint | None:
    """The newest checkpoint of a step `before` that, and whole; a damaged one is named and the one before it is used. None
    without any."""
    for path in checkpoints(folder):
        if step_of(path) >= before:
            continue
        try:
            return _read(path)
        except (
            FileNotFoundError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            SafetensorError,
        ) as error:
            say(f"checkpoint {path.name} is damaged ({error}); going back to the one before it")
            _set_aside(path)
        except OSError as error:  # a disk that refuses now may answer later
            say(f"checkpoint {path.name} cannot be read ({error}); going back to the one before it")
    return None


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it counts no more as one of the last two."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        path.rename(aside)


def latest_accounts(folder: Path) -> dict[str, float]:
    """The ledger in the newest checkpoint whose JSON is whole; empty without any."""
    for path in checkpoints(folder):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            return _accounts(_about(path))
    return {}


def _about(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint. Raises ValueError or OSError where it is damaged."""
    sealed = load_json(path / "state.json")
    content = verify_checksum(sealed)
    if content.get("format") != FORMAT:
        raise ValueError(f"format {content.get('format')}, expected {FORMAT}")
    if len(content) == len(sealed):
        raise ValueError("state.json has no checksum")
    return content


def _accounts(content: dict[str, Any]) -> dict[str, float]:
    """The ledger in a checkpoint's JSON. Raises ValueError where it holds anything but times."""
    accounts: dict[str, float] = content["ledger_s"]
    if not all(map(is_amount, accounts.values())):
        raise ValueError("its ledger holds what is no time")
    return accounts


def _read(path: Path) -> Checkpoint:
    content = _about(path)
    if set(content["sha256"]) != set(TENSORS):
        raise ValueError(f"state.json is not about {' and '.join(TENSORS)}")
    for name in TENSORS:
        if file_hash(member(path, name)) != content["sha256"][name]:
            raise ValueError(f"{name} does not match its checksum")
    model, optimizer = (load_file(path / name) for name in TENSORS)
    correction = content["state"].get("correction")
    corrected = correction is not None and correction["changed"] is True
    return Checkpoint(_state(content["state"]), _accounts(content), model, optimizer, corrected)


def _state(content: dict[str, Any]) -> TrainingState:
    """The training state in a checkpoint's JSON. Raises ValueError where no run can stand there: a checksum shows damage,
    not who wrote the file."""
    state = TrainingState(**{name: value for name, value in content.items() if name not in RETIRED})
    maybe = [value for value in (state.loss, state.limit_s, state.loss_scale, state.micro_batch) if value is not None]
    fits = (
        is_count(state.step)
        and is_count(state.tokens)
        and is_amount(state.flops, 1e40)
        and is_amount(state.progress)
        and all(map(is_amount, maybe))
        and isinstance(state.setback, dict | None)
        and isinstance(state.machine, str | None)
    )
    if not fits:
        raise ValueError("state.json holds a state that no run can be in")
    return state


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Load tensors into the model; UserError in one line when they belong to a model of another shape."""
    check_shapes(model, tensors, origin)
    model.load_state_dict(tensors)


def check_shapes(model: torch.nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Raises UserError in one line where the tensors are not the model's, by name and shape."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in tensors.items()}
    if own != theirs:
        different = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
        name = different[0]
        raise UserError(
            f"{origin} is of a model of another shape: {name} is {theirs.get(name, 'absent')} there and"
            f" {own.get(name, 'absent')} here ({len(different)} tensors differ); use the model.* options it was made with"
            " or fresh=true"
        )


def save_weights(path: Path, model: torch.nn.Module) -> str:
    """Write the finished weights, read them back, compare every tensor bit by bit; returns the file's hash."""
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    digest = _save(temporary, tensors)
    written = load_file(temporary)
    if written.keys() != tensors.keys() or not all(torch.equal(written[name], tensors[name]) for name in tensors):
        raise MachineError(f"{path} did not read back as it was written; the disk is not to be trusted")
    temporary.replace(path)
    sync_folder(path.parent)
    return digest


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Write tensors, flush them to the disk; returns the file's hash. Every failure of the disk is an OSError."""
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    except SafetensorError as error:  # "No space left on device" arrives as this
        raise OSError(str(error)) from error
    return file_hash(path)


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
