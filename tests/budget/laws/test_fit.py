"""Fitting, against runs that were simulated from a known law."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime

import budget.laws.fit
from budget.laws.fit import Point, estimate_noise, fit, fit_line, fit_slice, fit_surface, group_by_budget, objective
from budget.laws.published import EPOCH, Surface
from common.errors import UserError


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use fewer bootstrap samples, for speed."""
    monkeypatch.setattr(budget.laws.fit, "BOOTSTRAPS", 50)


SMALL = Surface(E=1.7, A=60.0, B=120.0, alpha=0.32, beta=0.33)


def optimum(surface: Surface, flops: float) -> float:
    """Return the surface's compute-optimal number of parameters."""
    intercept, exponent = surface.line()
    return math.exp(intercept + exponent * math.log(flops))


def runs(surface: Surface, budgets: list[float], spread: list[float], noise: float = 0.0, seed: int = 0) -> list[Point]:
    """Return runs at each budget, of sizes around its optimum, with losses on the surface plus noise."""
    draw = np.random.default_rng(seed)
    points = []
    for flops in budgets:
        best = optimum(surface, flops)
        for factor in spread:
            tokens = flops / (6 * factor * best)
            loss = surface.loss(factor * best, tokens) * math.exp(noise * draw.standard_normal())
            points.append(Point(factor * best, tokens, loss))
    return points


FIVE = [0.45, 0.67, 1.0, 1.5, 2.25]


def test_fit_slice_recovers_the_true_minimum() -> None:
    points = [Point(n, 1e13 / (6 * n), 3 * math.exp(0.05 * math.log(n / 3e5) ** 2)) for n in (1e5, 2e5, 4e5, 8e5)]
    found = fit_slice(points)
    assert (found.parameters, found.loss, found.curvature) == pytest.approx((3e5, 3.0, 0.05), rel=1e-6)
    assert not found.refused


@pytest.mark.parametrize(("losses", "side"), [([3.0, 3.1, 3.2, 3.3], "smallest"), ([3.3, 3.2, 3.1, 3.0], "largest")])
def test_a_minimum_at_an_edge_is_refused_and_names_the_run_to_add(losses: list[float], side: str) -> None:
    points = [Point(n, 1e13 / (6 * n), loss) for n, loss in zip((1e5, 2e5, 4e5, 8e5), losses, strict=True)]
    refused = fit_slice(points).refused
    assert side in refused
    assert ("6.7e+04" if side == "smallest" else "1.2e+06") in refused


def test_two_sizes_are_too_few_for_a_parabola() -> None:
    assert "add 1 more" in fit_slice([Point(1e5, 1e8, 3.0), Point(2e5, 5e7, 3.0)]).refused


def test_runs_are_grouped_by_compute() -> None:
    points = [Point(1e6, 1e9, 3), Point(2e6, 5.2e8, 3), Point(1e6, 4e9, 2.5), Point(1e6, 1e8, 4)]
    assert [len(each) for each in group_by_budget(points)] == [1, 2, 1]


def unequal(surface: Surface, budgets: list[float], measure: str, power: float, noise: float = 0.0) -> list[Point]:
    """Return runs of equal budget in `measure`, whose 6ND changes with their size as (size / best)^power."""
    draw = np.random.default_rng(0)
    points = []
    for point in runs(surface, budgets, FIVE):
        flops = min(budgets, key=lambda c: abs(math.log(c / point.flops)))
        tokens = point.tokens * (point.parameters / optimum(surface, flops)) ** power
        loss = surface.loss(point.parameters, tokens) * math.exp(noise * draw.standard_normal())
        points.append(Point(point.parameters, tokens, loss, spent={measure: flops}))
    return points


# Attention costs the smallest sizes of this scale a third of their FLOPs and the largest a tenth; a GPU runs them at
# half the speed.
@pytest.mark.parametrize(("measure", "power"), [("flops", 0.15), ("hours", 0.3), ("hours", -0.1), ("flops_6nd", 0.2)])
def test_equal_budgets_form_a_slice_in_any_measure(measure: str, power: float) -> None:
    points = unequal(SMALL, [1e13, 4e13], measure, power)
    assert [len(each) for each in group_by_budget(points)] == [5, 5]
    for each in fit(points).slices:
        assert not each.refused
        assert [p.flops for p in each.points] == pytest.approx([each.flops] * 5)
        assert each.spread == pytest.approx(5 ** abs(power), rel=0.01)
        assert each.parameters == pytest.approx(optimum(SMALL, each.flops), rel=0.05)


def test_without_a_surface_the_usual_slope_moves_the_losses_with_a_warning() -> None:
    found = fit(unequal(SMALL, [1e13], "flops", 0.15))
    (only,) = found.slices
    assert only.parameters == pytest.approx(optimum(SMALL, only.flops), rel=0.12)  # its own slope is 0.08
    assert any("usual slope" in line for line in found.warnings)
    assert not any("usual slope" in line for line in fit(runs(SMALL, [1e13], FIVE)).warnings)


def test_mixed_measures_are_grouped_into_the_largest_slices() -> None:
    by_flops, exact = unequal(SMALL, [1e13], "flops", 0.15), runs(SMALL, [4e13], FIVE)
    stray = Point(1e6, 1e9, 3.0)
    assert [len(each) for each in group_by_budget([*by_flops, *exact, stray])] == [5, 5, 1]


def test_equal_hours_on_a_different_machine_form_a_separate_slice() -> None:
    points = [Point(n, tokens, 3.0, spent={"hours": 1.0}) for tokens in (1e8, 1e9) for n in (1e6, 1.1e6, 1.2e6)]
    assert [len(each) for each in group_by_budget(points)] == [3, 3]


def test_noise_is_estimated_from_repeated_seeds() -> None:
    draw = np.random.default_rng(0)
    points = [Point(n, 1e9, 3 * math.exp(0.01 * draw.standard_normal())) for n in (1e6, 2e6) for _ in range(50)]
    assert estimate_noise([points]) == pytest.approx(0.01, rel=0.2)
    assert estimate_noise([[Point(1e6, 1e9, 3), Point(2e6, 1e9, 3)]]) == 0.002


def test_runs_with_other_settings_do_not_count_as_noise() -> None:
    """A learning rate that costs 10 % of the loss is not noise."""
    points = [Point(n, 1e9, 3 * worse, setup) for n in (1e6, 2e6) for setup, worse in (("a", 1.0), ("b", 1.1))]
    assert estimate_noise([points]) == 0.002


def test_only_the_best_settings_of_each_size_are_fitted() -> None:
    points = runs(SMALL, [1e13, 4e13], FIVE)
    worse = [replace(points[1], loss=1.1 * points[1].loss, setup="worse")]
    found, clean = fit(points + worse), fit(points)
    assert found.law == clean.law
    assert any("other settings" in line and line.endswith(": 1") for line in found.warnings)
    assert not any("settings" in line for line in clean.warnings)


def test_fit_recovers_the_law_behind_the_slices() -> None:
    found = fit(runs(SMALL, [1e13, 4e13, 1.6e14], FIVE, noise=0.002))
    truth = optimum(SMALL, 6.4e14)
    low, high = found.law.interval(6.4e14) or (0, 0)
    assert found.law.parameters(6.4e14) == pytest.approx(truth, rel=0.12)
    assert low < truth < high
    assert found.law.exponent == pytest.approx(0.5, abs=0.03)


def test_the_prior_decides_an_unstable_exponent() -> None:
    found = fit(runs(SMALL, [1e13, 2e13], FIVE, noise=0.004, seed=3))
    assert found.law.exponent == pytest.approx(0.5, abs=0.025)
    assert any("unstable" in line and "to do without it takes" in line for line in found.warnings)
    free, error = found.free
    assert error > 0.03
    assert math.isfinite(free)


def test_free_exponent_is_exact_without_noise_over_three_decades() -> None:
    found = fit(runs(EPOCH, [1e17, 1e18, 1e19, 1e20], FIVE))
    assert found.free[0] == pytest.approx(EPOCH.line()[1], abs=0.01)
    assert not any("unstable" in line for line in found.warnings)


def test_a_slice_with_its_minimum_at_an_edge_is_excluded_from_the_line() -> None:
    good = runs(SMALL, [1e13, 4e13], FIVE)
    bad = runs(SMALL, [1.6e14], [2, 3, 4.5])
    found = fit(good + bad)
    assert found.law.parameters(1e13) == pytest.approx(fit(good).law.parameters(1e13), rel=0.02)
    assert any("smallest size is the best" in line for line in found.warnings)


def test_the_analytic_gradient_equals_the_numerical_one() -> None:
    draw = np.random.default_rng(0)
    ln_n, ln_d = draw.uniform(11, 20, 30), draw.uniform(14, 24, 30)
    ln_loss = np.log([EPOCH.loss(n, d) for n, d in zip(np.exp(ln_n), np.exp(ln_d), strict=True)])
    theta = np.array([6.0, 7.0, 0.5, 0.33, 0.4])
    _, gradient = objective(theta, ln_n, ln_d, ln_loss)
    numeric = approx_fprime(theta, lambda t: objective(t, ln_n, ln_d, ln_loss)[0], 1e-7)
    assert gradient == pytest.approx(numeric, rel=1e-4, abs=1e-6)


def test_fit_surface_recovers_the_constants_of_besiroglu() -> None:
    """240 runs as Hoffmann et al.'s (57M to 16B parameters, 1.4e18 to 1.3e22 FLOPs) with noise of half a percent."""
    draw = np.random.default_rng(1)
    points = []
    while len(points) < 240:
        n, flops = math.exp(draw.uniform(math.log(57e6), math.log(16e9))), math.exp(draw.uniform(42, 51))
        d = flops / (6 * n)
        if 2 < d / n < 300:
            points.append(Point(n, d, EPOCH.loss(n, d) * math.exp(0.005 * draw.standard_normal())))
    found = fit_surface(points)
    assert pytest.approx(EPOCH.E, abs=0.06) == found.E
    assert (found.alpha, found.beta) == pytest.approx((EPOCH.alpha, EPOCH.beta), abs=0.04)
    exact = fit_surface([Point(p.parameters, p.tokens, EPOCH.loss(p.parameters, p.tokens)) for p in points])
    assert pytest.approx((EPOCH.E, EPOCH.A, EPOCH.B), rel=0.01) == (exact.E, exact.A, exact.B)
    assert (exact.alpha, exact.beta) == pytest.approx((EPOCH.alpha, EPOCH.beta), rel=0.01)


def test_the_predicted_loss_holds_at_a_larger_budget() -> None:
    found = fit(runs(SMALL, [1e13, 4e13], FIVE, noise=0.002))
    size = optimum(SMALL, 1.6e14)
    tokens = 1.6e14 / (6 * size)
    loss, low, high = found.law.predict(size, tokens) or (0, 0, 0)
    assert loss == pytest.approx(SMALL.loss(size, tokens), rel=0.02)
    assert low < SMALL.loss(size, tokens) < high


def test_runs_without_slices_fall_back_to_approach_3_with_a_warning() -> None:
    draw = np.random.default_rng(2)
    points = []
    for _ in range(20):
        n, d = math.exp(draw.uniform(11, 15)), math.exp(draw.uniform(14, 18))
        points.append(Point(n, d, SMALL.loss(n, d)))
    found = fit(points)
    assert any("approach 3 alone" in line for line in found.warnings)
    assert found.law.parameters(1e13) == pytest.approx(optimum(SMALL, 1e13), rel=0.2)


def test_too_few_runs_are_refused_and_the_missing_runs_named() -> None:
    with pytest.raises(UserError, match="at least three sizes at one budget"):
        fit(runs(SMALL, [1e13], [1.0, 2.0]))
    with pytest.raises(UserError, match="no finished run"):
        fit([])


def test_the_line_is_weighted_by_the_slices_errors() -> None:
    base = fit_slice(runs(SMALL, [1e13], FIVE))
    sure, unsure = (replace(base, parameters=n, error=e) for n, e in ((1e6, 0.02), (2e6, 0.5)))
    intercept, exponent, _ = fit_line([sure, unsure])
    assert math.exp(intercept + exponent * math.log(base.flops)) == pytest.approx(1e6, rel=0.01)
