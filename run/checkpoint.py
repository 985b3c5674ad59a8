"""Writes and reads checkpoints atomically; the last two are kept.

A checkpoint is a folder checkpoint/step-000000123 with model.safetensors, optimizer.safetensors and state.json, which holds
the sha256 of the other two and a checksum of its own. The folder is written under a temporary name, synced to disk and
renamed, so a folder with its final name is complete. Nothing is pickled or unpickled.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import MachineError, UserError
from common.json_io import sync_folder, write_json
from common.safe_read import is_amount, member
from run.checkpoint_state import (
    FORMAT,
    TENSORS,
    TrainingState,
    checkpoints,
    file_hash,
    read_state,
    state_of,
    step_of,
)

KEPT = 2
# What reading a damaged or crafted checkpoint can raise. Any other OSError may be temporary.
DAMAGE = (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)


def named_optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors, named <state key>.<parameter name>, e.g. exp_avg.blocks.0.attention.qkv.weight."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Replace the optimizer's state with tensors from `named_optimizer_tensors`, on the device of each parameter."""
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        state = {key.removesuffix(f".{name}"): value for key, value in tensors.items() if key.endswith(f".{name}")}
        # A key with a dot left is of another parameter, whose name ends like this one.
        state = {key: value for key, value in state.items() if "." not in key}
        if state:
            optimizer.state[parameter] = {
                # AdamW keeps its step counter on the CPU unless it is fused or capturable
                key: value.to(parameter.device) if value.ndim or optimizer.defaults.get("fused") else value.cpu()
                for key, value in state.items()
            }


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    ledger: dict[str, float],
) -> Path:
    """Write a checkpoint, delete all but the last two, and return its folder.

    Raises OSError if it cannot be written; earlier checkpoints are then left as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state.step:09d}"
    replaced = folder / f"{final.name}.old"
    temporary = folder / f".tmp-{state.step:09d}"
    for unfinished in folder.glob(".tmp-*"):  # left by a killed process
        shutil.rmtree(unfinished, ignore_errors=True)
    temporary.mkdir()
    try:
        contents = (dict(model.state_dict()), named_optimizer_tensors(model, optimizer))
        hashes = {name: _save(temporary / name, tensors) for name, tensors in zip(TENSORS, contents, strict=True)}
        content = {"format": FORMAT, "state": asdict(state), "ledger_s": ledger, "sha256": hashes}
        write_json(temporary / "state.json", content, checksummed=True)
        if final.exists():  # a rename cannot replace a folder; until the new one is in place, `replaced` is valid
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


@dataclass
class Checkpoint:
    """A checkpoint that was read and verified.

    `corrected`: an earlier version of the code wrote it, after it had changed the plan's batch size and learning rate during
    the run.
    """

    state: TrainingState
    ledger: dict[str, float]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    corrected: bool


def latest_checkpoint(folder: Path, say: Callable[[str], None], before: float = math.inf) -> Checkpoint | None:
    """The newest intact checkpoint of a step less than `before`, or None.

    A damaged checkpoint is reported through `say` and renamed, and the one before it is used.
    """
    for path in checkpoints(folder):
        if step_of(path) >= before:
            continue
        try:
            return _read(path)
        except DAMAGE as error:
            say(f"checkpoint {path.name} is damaged ({error}); using the one before it")
            _set_aside(path)
        except OSError as error:  # perhaps temporary, so keep it
            say(f"checkpoint {path.name} cannot be read ({error}); using the one before it")
    return None


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it no longer counts as one of the last two."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        path.rename(aside)


def latest_accounts(folder: Path) -> dict[str, float]:
    """The ledger (seconds per account) of the newest checkpoint with an intact state.json; empty without one."""
    for path in checkpoints(folder):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            return _ledger_in(read_state(path))
    return {}


def _ledger_in(content: dict[str, Any]) -> dict[str, float]:
    """The ledger in state.json. Raises ValueError if it holds anything but durations."""
    ledger: dict[str, float] = content["ledger_s"]
    if not all(map(is_amount, ledger.values())):
        raise ValueError("its ledger holds a value that is not a duration")
    return ledger


def _read(path: Path) -> Checkpoint:
    content = read_state(path)
    if set(content["sha256"]) != set(TENSORS):
        raise ValueError(f"state.json does not list exactly {' and '.join(TENSORS)}")
    for name in TENSORS:
        if file_hash(member(path, name)) != content["sha256"][name]:
            raise ValueError(f"{name} does not match its checksum")
    model, optimizer = (load_file(path / name) for name in TENSORS)
    correction = content["state"].get("correction")
    corrected = correction is not None and correction["changed"] is True
    return Checkpoint(state_of(content["state"]), _ledger_in(content), model, optimizer, corrected)


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Load `tensors` into the model. Raises UserError if their names or shapes differ from the model's."""
    check_shapes(model, tensors, origin)
    model.load_state_dict(tensors)


def check_shapes(model: torch.nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Raise UserError if the names or shapes of `tensors` differ from the model's; `origin` names their file."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in tensors.items()}
    if own != theirs:
        different = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
        name = different[0]
        raise UserError(
            f"{origin} belongs to a model of another shape: {name} is {theirs.get(name, 'absent')} there and"
            f" {own.get(name, 'absent')} here ({len(different)} tensors differ); use the model.* options of that run, or"
            " fresh=true"
        )


def save_weights(path: Path, model: torch.nn.Module) -> str:
    """Write the final weights and return the file's sha256. Raises MachineError unless they read back bit for bit."""
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    digest = _save(temporary, tensors)
    written = load_file(temporary)
    if written.keys() != tensors.keys() or not all(torch.equal(written[name], tensors[name]) for name in tensors):
        raise MachineError(f"{path} did not read back as it was written; the disk may be faulty")
    temporary.replace(path)
    sync_folder(path.parent)
    return digest


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Write tensors, sync them to disk and return the file's sha256. Raises OSError if the disk fails."""
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    except SafetensorError as error:  # e.g. "No space left on device"
        raise OSError(str(error)) from error
    return file_hash(path)
