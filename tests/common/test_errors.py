"""Failures that are reported in one line, and failures that keep their traceback."""

from __future__ import annotations

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
