"""Tests of scores and intervals against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evals.statistics import groups_that_differ, interval, paired_difference, score_of, sign_test, standard_error
from evals.tasks.task import MACRO_F1, MEAN


def marks_of(scores: Any, group: str | None = None, supergroup: str | None = None) -> list[dict[str, Any]]:
    return [
        {"id": f"{group}:{number}", "group": group, "supergroup": supergroup, "score": float(score)}
        for number, score in enumerate(scores)
    ]


def draws(right: float, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < right


def labelled(n: int, answers: str, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with three labels of unequal frequency, of which about half are answered correctly."""
    random = np.random.default_rng(seed)
    golds = random.choice(list("aab") + ["c"] * (n > 0), size=n)
    given = np.where(random.random(n) < 0.5, golds, random.choice(list(answers), size=n))
    return [
        {"id": str(i), "gold": str(gold), "answer": str(answer), "score": float(gold == answer)}
        for i, (gold, answer) in enumerate(zip(golds, given, strict=True))
    ]


def test_the_mean_is_that_of_the_groups_and_of_the_supergroups() -> None:
    marks = marks_of([1, 0, 1, 1], "a", "x") + marks_of([0, 0.5], "b", "x") + marks_of([1], "c", "y")

    assert score_of(marks, MEAN) == pytest.approx(((0.75 + 0.25) / 2 + 1) / 2)
    without = [{**mark, "supergroup": None} for mark in marks]
    assert score_of(without, MEAN) == pytest.approx((0.75 + 0.25 + 1) / 3)
    assert score_of([{**mark, "group": None} for mark in without], MEAN) == pytest.approx(4.5 / 7)


def test_items_without_a_known_answer_do_not_count() -> None:
    unknown = [{"id": "x", "score": None, "gold": None, "answer": "a"}]

    for statistic in (MEAN, MACRO_F1):
        assert score_of(unknown, statistic) is None
        assert interval(unknown, statistic) is None
        assert standard_error(unknown, statistic) is None
        assert paired_difference(unknown, labelled(9, "abc"), statistic) is None
        assert score_of(labelled(90, "abc") + unknown, statistic) == score_of(labelled(90, "abc"), statistic)


@pytest.mark.parametrize("answers", ["abc", "abcz", "az"], ids=["labels", "and-another", "two-never"])
def test_macro_f1_is_that_of_scikit_learn(answers: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    marks = labelled(300, answers)
    gold, answer = ([mark[key] for mark in marks] for key in ("gold", "answer"))

    expected = metrics.f1_score(gold, answer, labels=sorted(set(gold)), average="macro", zero_division=0)

    assert score_of(marks, MACRO_F1) == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_macro_f1_is_that_of_resampling_the_items() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    marks = labelled(200, "abcz")
    gold, answer = (np.asarray([mark[key] for mark in marks]) for key in ("gold", "answer"))
    random = np.random.default_rng(5)
    values = []
    for _ in range(300):
        drawn = random.integers(200, size=200)
        values.append(metrics.f1_score(gold[drawn], answer[drawn], labels=list("abc"), average="macro"))

    assert interval(marks, MACRO_F1) == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.012)
    assert standard_error(marks, MACRO_F1) == pytest.approx(np.std(values), rel=0.15)


@pytest.mark.parametrize(("right", "n"), [(0.7, 400), (0.5, 2000), (0.95, 1000)])
def test_the_interval_of_a_mean_is_that_of_the_binomial_distribution(right: float, n: int) -> None:
    hits = round(right * n)
    marks = marks_of([1] * hits + [0] * (n - hits))

    low, high = stats.binomtest(hits, n).proportion_ci(method="wilson")

    assert interval(marks, MEAN) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_the_standard_error_of_a_mean_is_that_of_lm_evaluation_harness() -> None:
    scores = draws(0.3, 700, seed=1)

    assert standard_error(marks_of(scores), MEAN) == pytest.approx(stats.sem(scores), rel=1e-12)


def test_the_standard_error_of_groups_is_that_of_independent_means() -> None:
    groups = {"a": draws(0.3, 70, 1), "b": draws(0.9, 700, 2), "c": draws(0.5, 300, 3), "one": draws(1, 1, 4)}
    marks = [mark for name, scores in groups.items() for mark in marks_of(scores, name, "y" if name == "c" else "x")]
    weights = {"a": 1 / 6, "b": 1 / 6, "c": 1 / 2}

    expected = math.sqrt(sum((weight * stats.sem(groups[name])) ** 2 for name, weight in weights.items()))
    low, high = interval(marks, MEAN) or (0, 0)

    assert standard_error(marks, MEAN) == pytest.approx(expected, rel=1e-12)
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_uncertainty_of_small_groups_is_not_underestimated(size: int) -> None:
    scores = draws(0.4, 120, seed=1).reshape(-1, size)
    marks = [mark for number, group in enumerate(scores) for mark in marks_of(group, str(number))]

    expected = (
        math.sqrt(sum(group.var(ddof=1) / size for group in scores)) / len(scores) if size > 1 else stats.sem(scores)
    )
    low, high = interval(marks, MEAN) or (0, 0)

    assert standard_error(marks, MEAN) == pytest.approx(float(np.squeeze(expected)), rel=1e-12)
    assert (high - low) / (2 * 1.96) == pytest.approx(float(np.squeeze(expected)), rel=0.1)


@pytest.mark.parametrize("right", [0.0, 0.4, 1.0])
def test_groups_of_one_item_are_resampled_with_those_of_the_same_weight(right: float) -> None:
    scores = [draws(right, n, seed=n) for n in (2, 40, 9)]  # one item of each paradigm of phenomena of 2, 40 and 9
    marks = [
        mark
        for phenomenon, each in enumerate(scores)
        for number, score in enumerate(each)
        for mark in marks_of([score], f"{phenomenon}.{number}", str(phenomenon))
    ]
    expected = math.sqrt(sum(each.var(ddof=1) / len(each) for each in scores)) / len(scores)
    low, high = interval(marks, MEAN) or (-1, 2)

    assert standard_error(marks, MEAN) == pytest.approx(expected, rel=1e-12)
    assert 0 <= low <= high <= 1 + 1e-12
    assert (high > low) == (right not in (0, 1))


def test_one_item_has_no_standard_error() -> None:
    assert standard_error(marks_of([1]), MEAN) is None
    assert interval(marks_of([1]), MEAN) == (1.0, 1.0)


def test_items_are_resampled_within_their_groups() -> None:
    easy, hard = marks_of([1] * 500, "easy"), marks_of([0] * 500, "hard")

    assert interval(easy + hard, MEAN) == pytest.approx((0.5, 0.5), abs=1e-12)


def test_a_paired_difference_is_surer_than_that_of_two_intervals() -> None:
    before = draws(0.5, 1000, seed=1)
    after = before | draws(0.2, 1000, seed=2)  # the same items, and a few more

    value, (low, high) = paired_difference(marks_of(after), marks_of(before), MEAN) or (0, (0, 0))

    assert value == pytest.approx(after.mean() - before.mean())
    expected = stats.sem(after.astype(float) - before)
    assert (low, high) == pytest.approx((value - 1.96 * expected, value + 1.96 * expected), abs=0.25 * expected)
    unpaired = math.hypot(stats.sem(after), stats.sem(before))
    assert high - low < 0.6 * 2 * 1.96 * unpaired
    assert low > 0


def test_a_difference_counts_the_items_that_both_have_in_the_groups_of_the_first() -> None:
    ours = marks_of([1, 1, 0], "a") + marks_of([1], "b")
    theirs = [
        {**mark, "group": "elsewhere", "score": score} for mark, score in zip(ours[:0:-1], [0.5, 0, 0], strict=True)
    ]

    value, _ = paired_difference(ours, theirs, MEAN) or (0, (0, 0))

    assert value == pytest.approx((0.5 + 1) / 2 - (0 + 0.5) / 2)
    assert paired_difference(ours, marks_of([1], "other"), MEAN) is None


def test_a_model_does_not_differ_from_itself() -> None:
    marks = labelled(100, "abc")

    assert paired_difference(marks, list(reversed(marks)), MACRO_F1) == (0.0, (0.0, 0.0))
    assert groups_that_differ(marks, marks) == {"groups": 1, "better": 0, "worse": 0}


def test_a_paired_difference_of_macro_f1_is_that_of_the_scores() -> None:
    ours, theirs = labelled(400, "abc", seed=1), labelled(400, "abc", seed=1)
    for mark in theirs[:60]:
        mark["answer"] = "z"

    value, (low, high) = paired_difference(ours, theirs, MACRO_F1) or (0, (0, 0))

    assert value == pytest.approx((score_of(ours, MACRO_F1) or 0) - (score_of(theirs, MACRO_F1) or 0), abs=1e-12)
    assert 0 < low < value < high


def test_results_repeat() -> None:
    marks = labelled(100, "abcz")

    for statistic in (MEAN, MACRO_F1):
        assert interval(marks, statistic) == interval(marks, statistic)
        assert paired_difference(marks, labelled(100, "z"), statistic) == paired_difference(
            marks, labelled(100, "z"), statistic
        )


def test_scores_between_0_and_1_are_resampled_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(3).beta(2, 5, size=400)  # no two alike
    expected = scores.mean() - 1.96 * stats.sem(scores), scores.mean() + 1.96 * stats.sem(scores)

    whole = interval(marks_of(scores), MEAN)
    monkeypatch.setattr("evals.statistics.MAX_DRAWN", 1000)  # two resamples at once
    in_pieces = interval(marks_of(scores), MEAN)

    assert whole == pytest.approx(expected, abs=0.002)
    assert in_pieces == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 0), (8, 2), (480, 520), (530, 470), (33_000, 34_000)])
def test_the_sign_test_is_a_binomial_test(better: int, worse: int) -> None:
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0

    assert sign_test(better, worse) == pytest.approx(expected, rel=1e-9)


def test_groups_that_differ_are_counted_by_direction() -> None:
    hits = {"up": 61, "not-quite": 60, "down": 10}
    ours = [mark for name, right in hits.items() for mark in marks_of([1] * right + [0] * (100 - right), name)]
    ours += marks_of([0.5] * 100, "ties") + marks_of([1] * 5, "few")

    differ = groups_that_differ(ours, [{**mark, "score": 0.5} for mark in ours])

    assert differ == {"groups": 5, "better": 1, "worse": 1}
