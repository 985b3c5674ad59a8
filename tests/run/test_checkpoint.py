"""Checkpoints are exact and atomic, and damage is detected."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.checksum import add_checksum
from common.errors import UserError
from model.config import Shape
from model.gpt import GPT
from model.optim.build import configure_optimizers
from run.checkpoint import (
    TrainingState,
    checkpoints,
    file_hash,
    latest_accounts,
    latest_checkpoint,
    load_weights,
    restore_optimizer,
    save_checkpoint,
    save_weights,
)
from tests.model.losses import loss_of

SHAPE = Shape(1, 1, 32, 16, 64)


def trained(seed: int = 0) -> tuple[GPT, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = GPT(SHAPE)
    optimizer = configure_optimizers(model, 1e-2, 0.1, (0.9, 0.95), "cpu")
    step(model, optimizer)
    return model, optimizer


def step(model: GPT, optimizer: torch.optim.Optimizer) -> None:
    x = torch.arange(32).view(2, 16)
    loss_of(model, x, x).backward()
    optimizer.step()
    optimizer.zero_grad()


def silent(text: str) -> None:
    raise AssertionError(text)


def save(folder: Path, *steps: int, train_s: float = 1.0) -> Path:
    """Save a checkpoint of each step, with `train_s` in its ledger, and return the last one."""
    model, optimizer = trained()
    return [save_checkpoint(folder, model, optimizer, TrainingState(step=step), {"train": train_s}) for step in steps][
        -1
    ]


def latest_step(folder: Path, say: Callable[[str], None] = silent) -> int:
    """The step of the newest intact checkpoint."""
    found = latest_checkpoint(folder, say)
    assert found is not None
    return found.state.step


def refused(folder: Path) -> str:
    """The message about the newer of two checkpoints; asserts that the older one is used instead."""
    said: list[str] = []
    assert latest_step(folder, said.append) == 1
    (line,) = said
    assert "step-000000002 is damaged" in line
    assert "\n" not in line
    return line


def rewritten(folder: Path, **changes: object) -> None:
    """Change state.json and give it a valid checksum."""
    content = json.loads((folder / "state.json").read_text()) | changes
    (folder / "state.json").write_text(json.dumps(add_checksum(content)))


def test_a_restored_checkpoint_continues_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = TrainingState(step=7, tokens=70, flops=1e9, progress=0.1 + 0.2, loss=3.5, limits={"hours": 0.5, "steps": 9})
    save_checkpoint(tmp_path, model, optimizer, state, {"train": 1.5})
    found = latest_checkpoint(tmp_path, silent)
    assert found is not None
    assert (found.state, found.ledger) == (state, {"train": 1.5})
    other, other_optimizer = trained(seed=1)
    load_weights(other, found.model, "it")
    restore_optimizer(other, other_optimizer, found.optimizer)
    step(model, optimizer)
    step(other, other_optimizer)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 10)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000010", "step-000000002"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    path = save(tmp_path, 1, 2) / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    refused(tmp_path)


def test_after_damage_new_checkpoints_of_earlier_steps_are_kept(tmp_path: Path) -> None:
    """Both are damaged, so the run starts again. The damaged ones of later steps must not displace its new checkpoints."""
    for number in (180, 200):
        (save(tmp_path, number) / "state.json").write_text("{")
    assert latest_checkpoint(tmp_path, lambda text: None) is None
    save(tmp_path, 0, 20)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000020", "step-000000000"]
    assert latest_step(tmp_path) == 20


def test_a_read_error_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 180, 200)

    def refuse(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("run.checkpoint.file_hash", refuse)
    assert latest_checkpoint(tmp_path, lambda text: None) is None
    assert len(checkpoints(tmp_path)) == 2
    monkeypatch.undo()
    save(tmp_path, 20)
    assert "step-000000020" in [path.name for path in checkpoints(tmp_path)], "the newest checkpoint is never deleted"


def test_a_half_written_checkpoint_is_never_seen(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / ".tmp-000000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert latest_step(tmp_path) == 1


def test_a_kill_while_a_checkpoint_of_the_same_step_is_replaced_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run saves its first step again. A rename cannot replace a folder, so the old one must count in between."""
    save(tmp_path, 1, 2)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert latest_step(tmp_path) == 2
    assert len(checkpoints(tmp_path)) == 2
    monkeypatch.undo()
    save(tmp_path, 2)
    save(tmp_path, 3, train_s=2.0)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000003", "step-000000002"]
    assert {path.name for path in tmp_path.iterdir()} == {"step-000000003", "step-000000002"}, "nothing is left behind"
    assert latest_accounts(tmp_path) == {"train": 2.0}


def test_restoring_a_checkpoint_without_moments_clears_the_optimizer(tmp_path: Path) -> None:
    model, optimizer = trained()
    assert optimizer.state
    restore_optimizer(model, optimizer, {})
    assert not optimizer.state


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    model, _ = trained()
    other = GPT(Shape(1, 1, 64, 16, 64))
    with pytest.raises(UserError, match="another shape") as caught:
        load_weights(other, dict(model.state_dict()), "the checkpoint")
    assert len(caught.value.messages) == 1


def test_nothing_is_pickled(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    json.loads((folder / "state.json").read_text())


def test_finished_weights_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import run.checkpoint
    from common.errors import MachineError

    model, _ = trained()
    save_weights(tmp_path / "model.safetensors", model)
    lying = {name: value + 1 for name, value in model.state_dict().items()}
    monkeypatch.setattr(run.checkpoint, "load_file", lambda path: lying)
    with pytest.raises(MachineError, match="read back"):
        save_weights(tmp_path / "other.safetensors", model)
    assert not (tmp_path / "other.safetensors").exists()


# Crafted checkpoints: a checksum detects damage, but anyone can compute it.


@pytest.mark.parametrize("name", ["/dev/zero", "../../../../etc/passwd", "../step-000000001/model.safetensors", "x"])
def test_a_checkpoint_cannot_name_other_files(tmp_path: Path, name: str) -> None:
    """Hashing /dev/zero would never end."""
    folder = save(tmp_path, 1, 2)
    hashes = json.loads((folder / "state.json").read_text())["sha256"]
    rewritten(folder, sha256={**hashes, name: "0"})
    assert "does not list exactly" in refused(tmp_path)


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "pipe"])
def test_a_checkpoint_of_links_is_refused(tmp_path: Path, target: str) -> None:
    folder = save(tmp_path, 1, 2)
    (folder / "model.safetensors").unlink()
    if target == "pipe":
        os.mkfifo(folder / "model.safetensors")
    else:
        (folder / "model.safetensors").symlink_to(target)
    said = refused(tmp_path)
    assert "leads out" in said or "not a regular file" in said


def header(**tensor: object) -> bytes:
    """A safetensors file of four bytes of data, whose header describes one tensor."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **tensor}}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 4


@pytest.mark.parametrize(
    "content",
    [
        *(size.to_bytes(8, "little") + b"{" * 1000 for size in (2**60, 2**63, 2**64 - 1, 200_000_000, 0)),
        header(shape=[2**40, 2**40]),
        header(data_offsets=[0, 2**62]),
        header(data_offsets=[2**62, 0]),
        header(shape=[-1]),
        header(dtype="PICKLE"),
    ],
)
def test_a_hostile_safetensors_header_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = save(tmp_path, 1, 2)
    (folder / "model.safetensors").write_bytes(content)
    hashes = json.loads((folder / "state.json").read_text())["sha256"]
    rewritten(folder, sha256={**hashes, "model.safetensors": file_hash(folder / "model.safetensors")})
    refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 10**30},
        {"step": -1},
        {"step": "2"},
        {"tokens": 1.5},
        {"progress": -0.5},
        {"flops": True},
        {"limit_s": "9"},
        {"limits": {"steps": 0}},
        {"limits": {"steps": "9"}},
        {"limits": [9]},
        {"correction": [1]},
        {"more": 1},
    ],
)
def test_an_impossible_state_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = save(tmp_path, 1, 2)
    state = json.loads((folder / "state.json").read_text())["state"]
    rewritten(folder, state={**state, **changes})
    refused(tmp_path)


@pytest.mark.parametrize("ledger", [{"train": -5}, {"train": "1"}, {"train": 1e300}, [1], None])
def test_an_invalid_ledger_is_refused(tmp_path: Path, ledger: object) -> None:
    folder = save(tmp_path, 1, 2)
    rewritten(folder, ledger_s=ledger)
    refused(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 1_000_000, '{"format": 1, "sha256": 3}'])
def test_invalid_json_in_the_state_file_is_refused(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, 1, 2)
    (folder / "state.json").write_text(text)
    refused(tmp_path)
