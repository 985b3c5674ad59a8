"""metrics.jsonl stays readable after full disks and kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from run.history import read_metrics
from run.metrics import Metrics


def test_a_full_disk_loses_only_the_points_written_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    metrics = Metrics(tmp_path / "metrics.jsonl", said.append)
    metrics.write({"step": 1, "loss": 3.0})
    opened = Metrics._open

    def full(self: Metrics) -> None:
        raise OSError(28, "No space left on device")

    metrics.close()
    monkeypatch.setattr(Metrics, "_open", full)
    metrics.write({"step": 2, "loss": 2.0})
    metrics.write({"step": 3, "loss": 2.0})
    monkeypatch.setattr(Metrics, "_open", opened)
    metrics.write({"step": 4, "loss": 1.0})
    metrics.close()
    assert [point["step"] for point in read_metrics(tmp_path)] == [1, 4]
    assert len(said) == 1
    assert "No space left" in said[0]


def test_an_incomplete_line_spoils_no_other(tmp_path: Path) -> None:
    """After a kill or a full disk cut the last line short, the next process starts a new line."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    metrics = Metrics(path, print)
    metrics.write({"event": "resume", "step": 0})
    metrics.write({"step": 1, "loss": 2.5})
    metrics.close()
    assert read_metrics(tmp_path) == [{"event": "resume", "step": 0}, {"step": 1, "loss": 2.5}]
    assert [bool(line) for line in path.read_text().split("\n")] == [True, True, True, True, False]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 2.5


def test_a_setback_discards_later_points_like_a_resume(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", print)
    for step in (1, 2, 3):
        metrics.write({"step": step, "loss": 9.0})
    metrics.write({"event": "setback", "step": 1, "text": "why"})
    metrics.write({"step": 2, "loss": 1.0})
    metrics.close()
    kept = [point["step"] for point in read_metrics(tmp_path) if "loss" in point]
    assert kept == [1, 2]
