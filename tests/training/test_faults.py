"""Faults of the machine during a run: a full disk, a read-only folder, a lost ledger, a damaged checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import command, folder_of, runs_named, train


def mounted(folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    answer = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if answer.returncode:
        pytest.skip("mounting a small file system needs root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_a_disk_too_small_is_refused_before_training(place: Path, disk: Path) -> None:
    mounted(disk, "size=1m")
    answer = train(place, "budget.steps=10", f"output_dir={disk}", name="small", status=2)
    assert answer.stderr.count("\n") == 1
    assert "MB free" in answer.stderr
    assert list(disk.iterdir()) == []


def test_checkpoints_survive_a_disk_that_fills_up(place: Path, disk: Path) -> None:
    """Another program fills the disk after the first checkpoint: the run warns, and resumes when there is space."""
    mounted(disk, "size=8m")
    arguments = ("budget.steps=400", f"output_dir={disk}", "checkpoint.every_s=0.2", "checkpoint.max_fraction=1.0")
    process = subprocess.Popen(
        command(place, *arguments, name="full"), cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(disk.glob("full-*/checkpoint/step-0000001*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while handle.write(b"\0" * 4096):
            pass
    output, error = process.communicate(timeout=120)
    assert process.returncode == 1, output + error
    assert "Traceback" not in error
    assert "could not be written" in error
    assert "no checkpoint at step" in output
    ballast.unlink()
    train(place, *arguments, name="full")
    result = json.loads(next(disk.glob("full-*/result.json")).read_text())
    assert (result["status"], result["spent"]["steps"]) == ("finished", 400)


def test_a_read_only_output_folder_is_an_error_of_one_line(place: Path, disk: Path) -> None:
    mounted(disk, "size=1m,ro")
    answer = train(place, "budget.steps=10", f"output_dir={disk}", name="readonly", status=2)
    assert answer.stderr.count("\n") == 1
    assert "cannot be written" in answer.stderr


def stopped_run(place: Path, name: str, *arguments: str) -> Path:
    """The folder of a run that was stopped in the middle."""
    process = subprocess.Popen(command(place, *arguments, name=name), cwd=place, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [path for run in runs_named(place / "outputs", name) for path in run.glob("metrics.jsonl")]
        if found and found[0].read_text().count('"loss"') > 50:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    return folder_of(place, name)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        pytest.param("", marks=pytest.mark.slow),
        pytest.param('{"ledger_s": {"setup": 0}}', marks=pytest.mark.slow),
    ],
)
def test_a_damaged_ledger_does_not_reset_the_budget(place: Path, damage: str) -> None:
    """The checkpoint has the accounts as well."""
    name = f"ledger{len(damage)}"
    folder = stopped_run(place, name, "budget.hours=0.004")
    before = sum(json.loads((folder / "ledger.json").read_text())["ledger_s"].values())
    (folder / "ledger.json").write_text(damage)
    train(place, "budget.hours=0.004", name=name)
    result = json.loads((folder / "result.json").read_text())
    assert result["spent"]["hours"] * 3600 > before + 1
    assert result["spent"]["hours"] < 0.004 * 1.1


@pytest.mark.parametrize("damage", ["{", pytest.param('{"n_layer": 1}', marks=pytest.mark.slow)])
def test_a_damaged_plan_is_an_error_of_one_line_and_keeps_the_checkpoints(place: Path, damage: str) -> None:
    """The plan and its copy are damaged: an error of one line, and the checkpoints stay."""
    name = f"plan{len(damage)}"
    folder = stopped_run(place, name, "budget.steps=100000")
    (folder / "plan.json").write_text(damage)
    (folder / "checkpoint" / "plan.json").write_text(damage)
    answer = train(place, "budget.steps=100000", name=name, status=2)
    assert answer.stderr.count("\n") == 1
    assert str(folder.relative_to(place) / "checkpoint" / "plan.json") in answer.stderr
    assert "fresh=true" in answer.stderr
    assert list(folder.glob("checkpoint/step-*"))


def test_a_damaged_checkpoint_costs_one_interval_and_one_warning(place: Path) -> None:
    arguments = ("budget.steps=400", "checkpoint.every_s=0.2", "checkpoint.max_fraction=1.0")
    folder = stopped_run(place, "damaged", *arguments)
    newest = sorted(folder.glob("checkpoint/step-*"))[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 255
    (newest / "model.safetensors").write_bytes(content)
    answer = train(place, *arguments, name="damaged")
    assert answer.stdout.count("is damaged") == 1
    assert "resuming at step" in answer.stdout


def test_a_shard_with_a_flipped_byte_is_an_error_of_one_line(place: Path, tmp_path: Path) -> None:
    arguments = ("budget.steps=5", f"data.cache_dir={tmp_path}")
    train(place, *arguments, name="flipped")
    shard = next(tmp_path.glob("*/train-*.bin"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    answer = train(place, *arguments, "seed=2", name="flipped2", status=2)
    assert answer.stderr.count("\n") == 1
    assert shard.name in answer.stderr


def test_many_signals_stop_a_run_once(place: Path) -> None:
    """Many signals in a row, as schedulers send them, also while the run saves after the first one."""
    process = subprocess.Popen(
        command(place, "budget.steps=100000", name="storm"),
        cwd=place,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list((place / "outputs").glob("storm-*/checkpoint/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2)
    for number in numbers * 100:
        if process.poll() is not None:
            break
        process.send_signal(number)
        time.sleep(0.001)
    _, error = process.communicate(timeout=30)
    # A signal after everything is saved may end the process by the system's default; a shell reports the same status.
    assert process.returncode in {128 + n for n in numbers} | {-n for n in numbers}, error
    assert error == b""
    assert json.loads((folder_of(place, "storm") / "status.json").read_text())["status"] == "stopped"


@pytest.mark.slow
def test_a_suspended_process_is_charged_for_the_time_and_warns(place: Path) -> None:
    """SIGSTOP for a minute during training is recorded as idle, and the run still ends in time."""
    hours = 80 / 3600
    process = subprocess.Popen(
        command(place, f"budget.hours={hours}", name="asleep"), cwd=place, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list((place / "outputs").glob("asleep-*/checkpoint/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(60)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    result = json.loads((folder_of(place, "asleep") / "result.json").read_text())
    assert "the process was suspended" in output
    assert 59 < result["standstill_s"] < 62
    assert result["ledger_s"]["idle"] > 59
    assert result["spent"]["overshoot_s"] <= 0
    assert result["progress"] > 0.99  # a last step that might pass the deadline is not started
    assert result["ledger_s"]["train"] > 8, "the time that was left was used"


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", range(800, 4000, 200))
def test_a_run_on_a_full_disk_of_any_size_can_be_resumed(place: Path, disk: Path, kilobytes: int) -> None:
    """Whichever write fails first, the same command finishes the run when there is more space."""
    mounted(disk, f"size={kilobytes}k")
    arguments = ("budget.steps=60", f"output_dir={disk}", "checkpoint.every_s=0.01", "checkpoint.max_fraction=1.0")
    answer = subprocess.run(command(place, *arguments, name="any"), cwd=place, capture_output=True, text=True)
    assert "Traceback" not in answer.stderr
    assert answer.returncode in (0, 1, 2)
    subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
    train(place, *arguments, name="any")
    result = json.loads(next(disk.glob("any-*/result.json")).read_text())
    assert (result["status"], result["spent"]["steps"]) == ("finished", 60)


@pytest.fixture
def allowance(tmp_path: Path, disk: Path) -> Callable[[int], None]:
    """`allowance(kilobytes)` sets the quota of `disk`. It is btrfs, as some Linux kernels have no quotas for ext4."""
    image, allowed = tmp_path / "image", disk / "v"
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("a quota needs Debian's btrfs-progs")
    with image.open("wb") as file:
        file.truncate(200 << 20)
    disk.mkdir()
    for words in (
        ["mkfs.btrfs", "-q", str(image)],
        ["mount", "-o", "loop", str(image), str(disk)],
        ["btrfs", "quota", "enable", str(disk)],
        ["btrfs", "subvolume", "create", str(allowed)],
    ):
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip(f"{words[0]} needs root, and a Linux with btrfs and loop devices")

    def allow(kilobytes: int) -> None:
        subprocess.run(["btrfs", "qgroup", "limit", f"{kilobytes}K", str(allowed)], check=True)

    return allow


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", range(500, 4000, 500))
def test_a_run_under_a_quota_of_any_size_can_be_resumed(
    place: Path, disk: Path, allowance: Callable[[int], None], kilobytes: int
) -> None:
    """The quota is exhausted while the disk has space: the error names it, and the run resumes with a larger quota."""
    allowance(kilobytes)
    arguments = (
        "budget.steps=60",
        f"output_dir={disk / 'v'}",
        "checkpoint.every_s=0.01",
        "checkpoint.max_fraction=1.0",
    )
    answer = subprocess.run(command(place, *arguments, name="quota"), cwd=place, capture_output=True, text=True)
    assert "Traceback" not in answer.stderr
    assert answer.returncode in (0, 1, 2)
    assert answer.returncode == 0 or "quota" in answer.stderr.lower()
    allowance(64 << 10)
    train(place, *arguments, name="quota")
    result = json.loads(next((disk / "v").glob("quota-*/result.json")).read_text())
    assert (result["status"], result["spent"]["steps"]) == ("finished", 60)


def test_two_processes_cannot_use_one_run_folder(place: Path) -> None:
    process = subprocess.Popen(command(place, "budget.steps=100000", name="two"), cwd=place, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not list((place / "outputs").glob("two-*/status.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    answer = train(place, "budget.steps=100000", name="two", status=2)
    assert f"in use by process {process.pid} on {os.uname().nodename}" in answer.stderr
    process.kill()
    process.wait()
