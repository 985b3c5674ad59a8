"""Failures that are reported in one line, and failures that keep their traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import reported


def test_a_busy_gpu_is_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The context manager handles it, because every script first uses the GPU in a different place."""
    with pytest.raises(SystemExit) as caught, reported():
        raise RuntimeError(
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCompile with `TORCH_USE_CUDA_DSA`"
        )
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "probe=false" in said


def test_any_other_error_of_torch_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes"), reported():
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_reader_that_is_gone_ends_the_command_quietly(lines: int) -> None:
    assert _printing(lines, "pipe") == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_full_disk_under_the_output_is_one_line(lines: int) -> None:
    status, said = _printing(lines, "full")
    assert status == 1
    assert said.startswith("error: output cannot be written (No space left on device)")
    assert said.count("\n") == 1


def test_a_closed_output_is_no_error() -> None:
    assert _printing(10, "closed") == (0, "")


def _printing(lines: int, output: str) -> tuple[int, str]:
    """The exit status and standard error of a command that prints to a closed pipe, a full disk or a closed stream."""
    code = f"from common.errors import reported\nwith reported():\n  for n in range({lines}): print('line', n)"
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full" if output == "full" else os.devnull).open("w") as file:
        stdout = write if output == "pipe" else file
        words = [sys.executable, "-c", code]
        if output == "closed":
            words = ["bash", "-c", 'exec "$@" >&-', "bash", *words]
        done = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    os.close(write)
    return done.returncode, done.stderr
