"""The ranking of a sweep over evaluate.py's options."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import MachineError, UserError
from evals.bookkeeping.ranking import Job, SweepResults, mean_interval, rank
from evals.statistics import interval, paired_difference

GENERATOR = np.random.default_rng(7)


def marks(share: float, count: int = 200) -> list[dict[str, Any]]:
    return [{"id": str(i), "score": float(GENERATOR.random() < share), "logprobs": [1, 2]} for i in range(count)]


def figures(given: list[dict[str, Any]]) -> dict[str, Any]:
    score = float(np.mean([mark["score"] for mark in given]))
    return {"items": len(given), "score": score, "interval": interval(given, "mean"), "statistic": "mean"}


def job(number: int, overrides: list[str], **of_task: list[dict[str, Any]]) -> Job:
    return Job(number, overrides, {name: figures(given) for name, given in of_task.items()}, of_task)


def test_the_best_job_is_first_and_the_others_are_compared_with_it() -> None:
    low, high = marks(0.3), marks(0.8)
    jobs = [
        job(0, ["checkpoint=a", "task.template=A"], quiz=low),
        job(1, ["checkpoint=a", "task.template=B"], quiz=high),
    ]
    best, other = rank(jobs)
    assert (best["job"], best["options"], best["difference"]) == (1, "task.template=B", None)
    assert (other["job"], other["options"]) == (0, "task.template=A")
    expected = paired_difference(low, high, "mean")
    assert expected is not None
    assert other["difference"] == pytest.approx(expected[0])
    assert other["difference_interval"] == pytest.approx(expected[1])
    assert best["interval"] == pytest.approx(figures(high)["interval"])


def test_jobs_of_several_tasks_are_ranked_by_the_mean_of_their_scores() -> None:
    one, two = {"a": marks(0.9), "b": marks(0.2)}, {"a": marks(0.5), "b": marks(0.4)}
    best, other = rank([job(0, ["x=1"], **one), job(1, ["x=2"], **two)])
    means = [np.mean([mark["score"] for of in each.values() for mark in of]) for each in (one, two)]
    assert best["score"] == pytest.approx(max(means))
    assert other["difference"] == pytest.approx(min(means) - max(means))


def test_the_interval_of_a_mean_is_that_of_independent_errors() -> None:
    """The mean of two values, each with +-0.3, has +-0.3 / sqrt(2)."""
    ends = mean_interval([(0.5, (0.2, 0.8)), (0.7, (0.4, 1.0))], 2)
    assert ends == pytest.approx((0.6 - 0.3 / math.sqrt(2), 0.6 + 0.3 / math.sqrt(2)))
    assert mean_interval([(0.5, (0.2, 0.8))], 2) is None


def test_jobs_of_different_tasks_or_items_are_not_compared() -> None:
    apart = [{**mark, "id": f"other {mark['id']}"} for mark in marks(0.5)]
    rows = rank([job(0, ["x=1"], a=marks(0.5)), job(1, ["x=2"], b=marks(0.9)), job(2, ["x=3"], a=apart)])
    assert [row["difference"] for row in rows] == [None, None, None]
    assert [row["job"] for row in rows][2] == 1


def test_jobs_without_a_score_or_that_failed_come_last() -> None:
    nothing = {"items": 1, "score": None, "interval": None, "statistic": "mean"}
    unknown = Job(0, ["x=0"], {"a": nothing}, {"a": [{"id": "0", "score": None}]})
    rows = rank([unknown, Job(1, ["x=1"], error="no such file"), job(2, ["x=2"], a=marks(0.5))])
    assert [row["job"] for row in rows] == [2, 0, 1]
    assert [row["error"] for row in rows] == [None, None, "no such file"]


def test_a_failed_job_is_named_and_the_others_are_still_ranked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = SweepResults()
    for number in (0, 2):
        with results.job(number, [f"x={number}"], tmp_path) as finished:
            finished({"tasks": {"quiz": figures(marks(0.5))}}, {"quiz": marks(0.5)})
    with pytest.raises(UserError), results.job(3, ["x=3"], tmp_path):
        raise UserError("task.template has no {text}")
    results.conclude()
    shown = capsys.readouterr().out
    assert "quiz: 2 jobs" in shown
    assert "job 3 failed (x=3): task.template has no {text}" in shown
    rows = json.loads((tmp_path / "ranking.json").read_text())["jobs"]
    assert {row["job"] for row in rows} == {0, 2, 3}
    assert (tmp_path / "2" / "report.html").is_file()
    assert "logprobs" not in results.jobs[0].marks["quiz"][0]


def test_no_ranking_without_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    SweepResults().conclude()
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MachineError, match=r"hydra\.sweep\.dir=FOLDER"),
        SweepResults().job(0, [], tmp_path / "file") as finished,
    ):
        finished({"tasks": {"quiz": figures(marks(0.5))}}, {"quiz": marks(0.5)})
