"""Comparison with a kept evaluation: published totals, paired intervals, and baselines that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import MachineError, UserError
from evals.bookkeeping.baseline import (
    Baseline,
    check_items,
    compare,
    ratio,
    read_baseline,
    total,
    undefined_ratios,
    write_baseline,
)
from evals.tasks.minimal_pairs import MinimalPairs
from evals.tasks.task import Item, Task, TaskOptions

RIGHT = 34  # right answers of the competition's baseline


def marks_of(right: int, items: int = 100) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "score": float(i < right), "gold": 1, "answer": 1 + (i >= right), "logprobs": [-1.0]}
        for i in range(items)
    ]


def evaluation(**right: int) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    marks = {name: marks_of(count) for name, count in right.items()}
    return {"tasks": {name: {"score": n / 100, "statistic": "mean"} for name, n in right.items()}}, marks


def kept(path: Path, **right: int) -> Baseline:
    write_baseline(path, *evaluation(**right))
    found = read_baseline(path)
    assert found is not None
    return found


def task(count: int, name: str = "quiz") -> Task:
    return MinimalPairs(name, TaskOptions("minimal_pairs"), [Item(str(i)) for i in range(count)], "paradigm")


@pytest.mark.parametrize(
    ("counts", "summary", "published"),
    [
        # Totals with the quiz alone laid over the baseline of two tasks.
        ((78,), None, 3.29412),
        ((86,), None, 3.52941),
        ((68,), None, 3.0),
        ((26,), None, 1.76471),
        # Totals with quiz and summaries; the ratios of the summaries are those of the same settings.
        ((66,), 0.72885, 2.67003),
        ((68,), 0.72885, 2.72885),
        ((66,), 0.85658, 2.79775),
    ],
)
def test_published_totals_follow_from_counts(counts: tuple[int], summary: float | None, published: float) -> None:
    quiz = ratio(counts[0] / 100, RIGHT / 100)
    assert quiz is not None
    ratios = [quiz] if summary is None else [quiz, summary]
    assert total(ratios, n_tasks=2) == pytest.approx(published, abs=1.01e-5)


def test_an_evaluation_is_compared_task_by_task(tmp_path: Path) -> None:
    baseline = kept(tmp_path / "b.json", quiz=34, summaries=20, essays=10)
    found, marks = evaluation(quiz=78, summaries=30, other=5)
    comparison = compare(baseline, found["tasks"], marks)
    quiz = comparison["tasks"]["quiz"]
    assert (quiz["score"], quiz["baseline"]) == (0.78, 0.34)
    assert quiz["delta"] == pytest.approx(0.44)
    # 44 of 100 items became right and the others did not change: the normal approximation of a mean of 0 and 1.
    half = 1.96 * np.sqrt(0.44 * 0.56 / 100)
    assert quiz["interval"] == pytest.approx([0.44 - half, 0.44 + half], abs=0.02)
    assert quiz["ratio"] == pytest.approx(78 / 34)
    assert quiz["overlay"] == pytest.approx(2 + 78 / 34)
    assert comparison["total"] == pytest.approx(78 / 34 + 30 / 20 + 1)
    assert comparison["not_compared"] == ["other"]
    assert comparison["unchanged"] == ["essays"]
    assert undefined_ratios(comparison) == []


def test_an_evaluation_equals_itself(tmp_path: Path) -> None:
    baseline = kept(tmp_path / "b.json", quiz=34, summaries=20)
    found, marks = evaluation(quiz=34, summaries=20)
    comparison = compare(baseline, found["tasks"], marks)
    assert comparison["total"] == 2
    assert all(each["interval"] == [0, 0] and each["overlay"] == 2 for each in comparison["tasks"].values())


def test_tasks_that_people_judge_are_no_part_of_the_total(tmp_path: Path) -> None:
    found, marks = evaluation(quiz=34)
    marks["essays"] = [{"id": "1", "score": None, "gold": None, "answer": "text"}]
    found["tasks"]["essays"] = {"score": None, "statistic": "mean"}
    write_baseline(tmp_path / "b.json", found, marks)
    baseline = read_baseline(tmp_path / "b.json")
    assert baseline is not None
    assert baseline.marks["essays"][0]["answer"] == "text"
    assert compare(baseline, found["tasks"], marks)["total"] == 1


def test_a_baseline_of_zero_has_no_ratio_but_a_delta(tmp_path: Path) -> None:
    baseline = kept(tmp_path / "b.json", quiz=0, summaries=20)
    found, marks = evaluation(quiz=30, summaries=30)
    comparison = compare(baseline, found["tasks"], marks)
    quiz = comparison["tasks"]["quiz"]
    assert (quiz["delta"], quiz["ratio"], quiz["overlay"], comparison["total"]) == (
        pytest.approx(0.3),
        None,
        None,
        None,
    )
    (line,) = undefined_ratios(comparison)
    assert line.startswith("quiz: its score in baseline=")
    assert "is 0" in line


def test_other_items_and_another_statistic_are_refused(tmp_path: Path) -> None:
    baseline = kept(tmp_path / "b.json", quiz=34, summaries=20)
    check_items(baseline, [task(100), task(100, "summaries"), task(3, "new")])
    with pytest.raises(UserError) as caught:
        check_items(baseline, [task(90), replace(task(100, "summaries"), statistic="macro_f1")])  # type: ignore[type-var]
    quiz, summaries = caught.value.messages
    assert "quiz: of the 100 items in baseline=" in quiz
    assert "10 are missing here, and 0 items are new, e.g. '90'" in quiz
    assert "summaries: its score is macro_f1, and mean in baseline=" in summaries


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"evaluation": {"tasks": {}}, "marks": {"a": []}}',
        '{"evaluation": {"tasks": {"a": {"score": 1, "statistic": "median"}}}, "marks": {"a": []}}',
        '{"evaluation": {"tasks": {"a": {"score": "1", "statistic": "mean"}}}, "marks": {"a": []}}',
        '{"evaluation": {"tasks": {"a": {"score": 1, "statistic": "mean"}}}, "marks": {"a": [{"id": 1, "score": 1}]}}',
        '{"evaluation": {"tasks": {"a": {"score": 1, "statistic": "mean"}}}, "marks": {"a": [3]}}',
        '{"evaluation": {"tasks": []}, "marks": {}, "checksum": "0"}',
    ],
)
def test_a_file_that_is_not_a_baseline_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is not a kept evaluation") as caught:
        read_baseline(path)
    assert len(caught.value.messages) == 1
    assert str(path) in str(caught.value)


def test_a_changed_score_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    kept(path, quiz=34)
    content = json.loads(path.read_text())
    content["evaluation"]["tasks"]["quiz"]["score"] = 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="checksum"):
        read_baseline(path)


def test_places_of_a_baseline(tmp_path: Path) -> None:
    assert read_baseline(tmp_path / "none.json") is None
    with pytest.raises(UserError, match="baseline="):
        read_baseline(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="baseline="):
        write_baseline(tmp_path / "file" / "b.json", *evaluation(quiz=1))
