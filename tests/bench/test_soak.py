"""The verdicts of bench.faults.soak on synthetic figures, and a small form of each part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.faults.soak import Sample, large_corpus, long_record, long_run, verdicts


def samples(**growth: float) -> list[Sample]:
    """Samples of half an hour in which each figure grows linearly by the given share."""
    start = {"memory_mb": 400.0, "files": 20.0, "threads": 9.0, "disk_mb": 30.0}
    values = [
        {name: value * (1 + growth.get(name, 0.0) * i / 1800) for name, value in start.items()} for i in range(1800)
    ]
    return [
        Sample(float(i), v["memory_mb"], int(v["files"]), int(v["threads"]), v["disk_mb"]) for i, v in enumerate(values)
    ]


def speeds(last: float) -> list[dict[str, Any]]:
    """Points of a run whose speed changes linearly to `last` times its start."""
    return [{"hours": i / 2000, "tokens_per_second": 5e4 * (1 + (last - 1) * i / 1000)} for i in range(1000)]


@pytest.mark.parametrize(
    ("growth", "last", "bad"),
    [
        ({}, 1.0, set()),
        ({"memory_mb": 0.015}, 0.95, set()),
        ({"memory_mb": 0.06}, 1.0, {"memory_mb"}),
        ({"memory_mb": -0.5}, 1.3, set()),
        ({"files": 0.5}, 1.0, {"files"}),
        ({"threads": 0.5, "disk_mb": 3.0}, 1.0, {"threads", "disk_mb"}),
        ({}, 0.7, {"tokens_per_second"}),
    ],
)
def test_growth_is_detected(growth: dict[str, float], last: float, bad: set[str]) -> None:
    found = verdicts(samples(**growth), speeds(last))
    assert set(found) == {"memory_mb", "files", "threads", "disk_mb", "tokens_per_second"}
    assert {name for name, figure in found.items() if not figure["flat"]} == bad


def test_the_beginning_and_the_end_are_ignored() -> None:
    """Libraries load in the first minutes, and the report is made at the end."""
    found = samples()
    early = [Sample(s.second, s.memory_mb / 4, 3, 2, 0.0) if s.second < 100 else s for s in found]
    late = [Sample(s.second, 2 * s.memory_mb, 90, 80, s.disk_mb) if s.second > 1790 else s for s in early]
    assert all(figure["flat"] for figure in verdicts(late, speeds(1.0)).values())


@pytest.mark.slow
def test_the_time_of_a_report_is_proportional_to_the_lines(tmp_path: Path) -> None:
    """The time grows in proportion to the lines. The seconds themselves depend on the machine and are not tested."""
    (tmp_path / "tenth").mkdir()
    tenth, found = long_record(100_000, tmp_path / "tenth"), long_record(1_000_000, tmp_path)
    assert found["seconds"] < 40 * tenth["seconds"], (tenth, found)
    assert found["report_bytes"] < 1_000_000
    assert found["peak_memory_mb"] < 2000, found


@pytest.mark.slow
def test_preparing_ten_times_the_text_needs_no_more_memory(tmp_path: Path) -> None:
    """With bytes: the training sample of a BPE tokenizer would still grow with so little text."""
    found = large_corpus(0.06, tmp_path, "bytes")
    assert found["whole"]["megabytes"] > 9 * found["tenth"]["megabytes"]
    assert found["constant"], found


@pytest.mark.slow
def test_a_short_run_is_observed(tmp_path: Path) -> None:
    found = long_run(0.5, tmp_path)
    assert found["steps"]["number"] > 100
    assert found["checkpoints_seen"] > 3
    assert found["overshoot_s"] < 0
    assert set(found["verdicts"]) == {"memory_mb", "files", "threads", "disk_mb", "tokens_per_second"}
    assert all(sample["threads"] > 0 and sample["memory_mb"] > 50 for sample in found["samples"])
