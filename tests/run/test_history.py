"""Reading metrics.jsonl."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

import run.history
from run.history import read_metrics


def test_a_very_long_file_is_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations, events and both ends are kept; steps that a resume rolled back are not."""
    monkeypatch.setattr(run.history, "MOST_LINES", 100)
    lines = [{"step": step, "loss": 3.0} for step in range(1, 9001)]
    lines += [{"event": "resume", "step": 5000}, *({"step": step, "loss": 2.0} for step in range(5001, 10_001))]
    lines[4000:4000] = [{"step": 4000, "val_loss": 2.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_metrics(tmp_path)
    assert 50 < len(found) < 110
    assert found[-1]["step"] == 10_000
    assert [point["step"] for point in found if "val_loss" in point] == [4000]
    assert [point["event"] for point in found if "event" in point] == ["resume"]
    steps = [point["step"] for point in found if "loss" in point]
    assert steps == sorted(steps)
    assert {point["loss"] for point in found if point["step"] > 5000 and "loss" in point} == {2.0}
    apart = [after - before for before, after in pairwise(steps)]
    assert max(apart) < 5 * min(apart[1:-1])
