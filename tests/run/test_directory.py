"""The folder of a run: its name, its lock and its checks of the disk."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import UserError
from common.file_lock import try_lock
from run.directory import RunDirectory, full_disk, run_name

ROOT = Path(__file__).parents[2]


def test_the_name_depends_on_the_options_alone() -> None:
    assert run_name("a", {"x": 1, "y": [2]}) == run_name("a", {"y": [2], "x": 1})
    assert run_name("a", {"x": 1}) != run_name("a", {"x": 2})
    assert run_name("a", {"x": 1}).startswith("a-")


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from run.directory import RunDirectory\n"
        "d = RunDirectory(Path(sys.argv[1]), 'n', False); print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(UserError, match=f"in use by process {other.pid}"):
        RunDirectory(tmp_path, "n", False)
    with pytest.raises(UserError, match="in use"):
        RunDirectory(tmp_path, "n", True)
    other.kill()
    other.wait()
    RunDirectory(tmp_path, "n", False).close()  # the lock ends with the process


def test_fresh_sets_the_old_run_aside(tmp_path: Path) -> None:
    for number in (1, 2):
        run = RunDirectory(tmp_path, "n", fresh=True)
        (run.folder / "paid-for").write_text(str(number))
        run.close()
    assert (tmp_path / "n" / "paid-for").read_text() == "2"
    assert (tmp_path / "n.old-1" / "paid-for").read_text() == "1"


def test_a_requeued_slurm_job_continues_even_with_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work before the preemption must not be set aside."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for _ in range(2):
        run = RunDirectory(tmp_path, "n", fresh=True)
        (run.folder / "paid-for").touch()
        run.close()
    assert [path.name for path in tmp_path.iterdir()] == ["n"]


def test_a_run_that_is_set_aside_stays_locked_while_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another process could lock the old folder and then work in the new one."""
    RunDirectory(tmp_path, "n", False).close()
    rename, seen = Path.rename, list[str]()

    def looking(self: Path, target: Path) -> Path:
        if isinstance(try_lock(self / "lock"), str):
            seen.append("locked")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", looking)
    RunDirectory(tmp_path, "n", True).close()
    assert seen == ["locked"]


@pytest.mark.parametrize(
    ("error", "hint"),
    [(OSError(errno.ENOSPC, "No space left"), "free some space"), (OSError(errno.EIO, "I/O error"), "check the disk")],
)
def test_a_failed_write_gives_a_hint(error: OSError, hint: str) -> None:
    assert hint in str(full_disk(Path("x"), error, "what there was"))
    assert "what there was" in str(full_disk(Path("x"), error, "what there was"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output_dir=FOLDER"):
        RunDirectory(tmp_path / "file", "n", False)


def test_too_little_space_is_refused_before_training(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "n", False)
    run.require_space(1000)
    with pytest.raises(UserError, match="MB free"):
        run.require_space(10**18)


def test_existing_checkpoints_count_as_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run replaces them, so a disk that was large enough once still is."""
    run = RunDirectory(tmp_path, "n", False)
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_bavail=10, f_frsize=100))
    with pytest.raises(UserError, match="MB free"):
        run.require_space(3000)
    (run.folder / "checkpoint" / "step-1").mkdir(parents=True)
    (run.folder / "checkpoint" / "step-1" / "model.safetensors").write_bytes(bytes(2500))
    run.require_space(3000)
