"""Fit a scaling law to a user's own runs: approaches 2 and 3 of Hoffmann et al. 2022, with their uncertainty.

Approach 2 decides the size. It fits a parabola of ln L in ln N to the runs of each compute budget (a slice), and a
line through the minima. Runs whose 6ND differs within a slice are first moved to the same 6ND by approach 3. A free
exponent from cheap budgets is unstable and mostly too low. It therefore has a prior, a = 0.50 +- 0.02, from Hoffmann
et al.'s approaches 1 and 2, which used no small runs; the user's runs decide the prefactor, that is, the tokens per
parameter. Approach 3, L = E + A / N^alpha + B / D^beta, predicts the loss. It decides the size only where no slice
has a minimum.

Besiroglu et al. 2024 (arXiv 2404.10102) explain a pitfall of approach 3: averaging the Huber terms makes the
objective so small that L-BFGS-B stops early. Here the terms are summed, the gradient is analytic, and the best of
many starts is refined with BFGS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from budget.laws.published import LOCAL, Law, Surface, Uncertainty, loss_curve
from common.errors import UserError
from common.noise import squares_within

PRIOR = (0.50, 0.02)  # mean and standard error of the exponent of N*(C)
SAME_BUDGET = 0.10  # runs within 10 % of each other's compute form a slice
MOST_SPREAD = 2.0  # largest 6ND over the smallest in a slice by another measure; attention and speed explain so much
WINDOW = 0.04  # the parabola is fitted to the points within 4 % of the lowest loss of their slice
FEWEST_IN_SLICE = 3  # sizes
NOISE_FLOOR = 0.002  # standard deviation of ln L between seeds (Porian et al. 2024, for losses of 3 nats)
LACK_OF_FIT = 0.05  # in ln N*: the nearly noise-free minima of Porian et al. lie 3 to 5 % (rms) off their own line
HUBER = 1e-3  # delta of the Huber loss, in ln L (Hoffmann et al. 2022)
FEWEST_FOR_SURFACE = 8  # runs for the five constants of approach 3, with some degrees of freedom left
STABLE_ERROR = 0.03  # a free exponent needs a smaller standard error,
STABLE_DECADES = 2.0  # and this range of compute, to count as stable
FALLBACK_ERROR = 0.5  # standard error of ln N* where most resampled slices have their minimum at an edge
BOOTSTRAPS = 200  # resamplings per slice
SURFACE_BOOTSTRAPS = 50  # resamplings of all runs
STARTS = 40  # of the grid of starting points, the best


@dataclass(frozen=True)
class Point:
    """A finished run.

    parameters: N as laws count it. tokens: D, as the number of new tokens that repeated ones are worth. loss: nats
    per token, or bits per byte. setup: identifies everything else that decided the loss, except the seed. spent: the
    budget in other measures, such as FLOPs with attention or hours, by name.
    """

    parameters: float
    tokens: float
    loss: float
    setup: str = ""
    spent: Mapping[str, float] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        """Training compute, 6 N D FLOPs."""
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True)
class Slice:
    """The runs of one budget, and the parabola ln L = ln L* + curvature (ln N / N*)^2 through the best of them.

    points: the runs, moved to the compute `flops`. spread: the largest 6ND over the smallest, before they were moved.
    parameters, loss: N* and L*. error: the standard error of ln N*. refused: why the parabola has no usable minimum;
    then these figures are NaN.
    """

    flops: float
    points: tuple[Point, ...]
    spread: float = 1.0
    parameters: float = math.nan
    loss: float = math.nan
    curvature: float = math.nan
    error: float = math.nan
    refused: str = ""


@dataclass(frozen=True)
class Fit:
    """A law with the slices that it rests on.

    free: the exponent without a prior and its standard error, NaN with fewer than two slices. warnings: what the runs
    do not determine, and the runs that would.
    """

    law: Law
    slices: tuple[Slice, ...]
    free: tuple[float, float]
    warnings: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------- approach 2


def cluster_by(points: Sequence[Point], value: Callable[[Point], float], width: float) -> list[list[Point]]:
    """Return the points in clusters by a value, each up to `width` times the smallest value in it."""
    clusters: list[list[Point]] = []
    for point in sorted(points, key=value):
        if clusters and value(point) <= value(clusters[-1][0]) * width:
            clusters[-1].append(point)
        else:
            clusters.append([point])
    return clusters


def flops_spread(points: Sequence[Point]) -> float:
    """Return the largest 6ND over the smallest."""
    return max(p.flops for p in points) / min(p.flops for p in points)


def equal_in_measure(points: Sequence[Point], measure: str) -> list[list[Point]]:
    """Return clusters of points that spent the same in one measure and differ in 6ND by MOST_SPREAD at most.

    The limit separates machines of different speed, where the measure is hours.
    """
    measured = [point for point in points if measure in point.spent]
    equal = cluster_by(measured, lambda p: p.spent[measure], 1 + SAME_BUDGET)
    return [part for cluster in equal for part in cluster_by(cluster, lambda p: p.flops, MOST_SPREAD)]


def group_by_budget(points: Sequence[Point]) -> list[tuple[Point, ...]]:
    """Return the points in slices of equal budget, in order of compute.

    A slice has the same 6ND, or the same budget in a measure of `Point.spent`; attention, repetition and speed then
    give each size a different 6ND. Slices are taken one after the other, the one with the most sizes first, and among
    equal ones that with the smallest spread in 6ND. Runs with different kinds of budget may therefore be mixed.
    """
    left, slices = list(points), []
    measures = list(dict.fromkeys(name for point in points for name in point.spent))
    while left:
        clusters = cluster_by(left, lambda p: p.flops, 1 + SAME_BUDGET)
        clusters += [cluster for measure in measures for cluster in equal_in_measure(left, measure)]
        best = max(clusters, key=lambda cluster: (len({p.parameters for p in cluster}), -flops_spread(cluster)))
        slices.append(tuple(best))
        left = [point for point in left if not any(point is taken for taken in best)]
    return sorted(slices, key=common_flops)


def common_flops(points: Sequence[Point]) -> float:
    """Return the compute of a slice: the geometric mean of the runs' 6ND."""
    return float(np.exp(np.mean([math.log(p.flops) for p in points])))


def at_common_flops(points: Sequence[Point], surface: Surface | None) -> tuple[Point, ...]:
    """Return the runs of a slice as if all had spent its common compute, each at the same size with other tokens.

    The loss follows the surface's slope in D, or, without a surface, the usual slope of the best loss (`loss_curve`).
    """
    flops, moved = common_flops(points), []
    for p in points:
        factor = flops / p.flops
        if surface:
            change = surface.loss(p.parameters, p.tokens * factor) / surface.loss(p.parameters, p.tokens)
        else:
            change = factor ** -loss_curve(flops)[0]
        moved.append(replace(p, tokens=p.tokens * factor, loss=p.loss * change))
    return tuple(moved)


def best_setups(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return a slice without runs that another setup of the same size beat; a law is about well-tuned runs."""
    losses: dict[tuple[float, str], list[float]] = {}
    for point in points:
        losses.setdefault((point.parameters, point.setup), []).append(point.loss)
    best: dict[float, tuple[float, str]] = {}  # lowest mean loss and its setup, by size
    for (size, setup), values in losses.items():
        best[size] = min(best.get(size, (math.inf, "")), (float(np.mean(values)), setup))
    return tuple(point for point in points if best[point.parameters][1] == point.setup)


def merge_repeats(points: Sequence[Point]) -> list[Point]:
    """Return runs of the same size (other seeds) merged into one point each, sorted by size."""
    sizes: dict[float, list[Point]] = {}
    for point in points:
        sizes.setdefault(point.parameters, []).append(point)
    return [
        Point(size, float(np.mean([p.tokens for p in same])), float(np.exp(np.mean([math.log(p.loss) for p in same]))))
        for size, same in sorted(sizes.items())
    ]


def parabola(ln_n: np.ndarray, ln_loss: np.ndarray) -> tuple[float, float, float]:
    """Return (ln N*, ln L*, curvature) of the least-squares parabola; the first two are NaN where it has no minimum."""
    centre = ln_n.mean()
    curvature, slope, level = np.polyfit(ln_n - centre, ln_loss, 2)
    if curvature <= 0:
        return math.nan, math.nan, float(curvature)
    best = -slope / (2 * curvature)
    return float(centre + best), float(level - slope * slope / (4 * curvature)), float(curvature)


def near_minimum(merged: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """Return (ln N, ln L) of the points within WINDOW of the lowest loss, and of its two neighbours."""
    ln_n, ln_loss = np.log([p.parameters for p in merged]), np.log([p.loss for p in merged])
    best = int(ln_loss.argmin())
    near = ln_loss <= ln_loss[best] + math.log1p(WINDOW)
    near[max(0, best - 1) : best + 2] = True
    return ln_n[near], ln_loss[near]


def fit_slice(points: Sequence[Point]) -> Slice:
    """Fit the minimum of one budget's runs; refuses a minimum at an edge, because the real one may lie beyond it."""
    merged = merge_repeats(points)
    result = Slice(common_flops(merged), tuple(points))
    if len(merged) < FEWEST_IN_SLICE:
        missing = FEWEST_IN_SLICE - len(merged)
        return replace(result, refused=f"too few sizes for a parabola ({len(merged)}); add {missing} more around them")
    best = min(range(len(merged)), key=lambda i: merged[i].loss)
    if best in (0, len(merged) - 1):
        side, factor = ("smallest", 1 / 1.5) if best == 0 else ("largest", 1.5)
        target = merged[best].parameters * factor
        return replace(
            result,
            refused=f"the {side} size is the best, so the minimum may lie beyond it; add a run of about {target:.2g}"
            " parameters",
        )
    ln_best, ln_level, curvature = parabola(*near_minimum(merged))
    smallest, largest = (math.log(merged[i].parameters) for i in (0, -1))
    if not math.isfinite(ln_best) or not smallest <= ln_best <= largest:
        return replace(result, refused="the minimum of the parabola lies outside the sizes that were run; add sizes")
    return replace(result, parameters=math.exp(ln_best), loss=math.exp(ln_level), curvature=curvature)


def estimate_noise(slices: Sequence[Sequence[Point]]) -> float:
    """Return the standard deviation of ln L between runs that differ only in their seed, at least NOISE_FLOOR.

    It is pooled over runs of the same size, budget and setup, and over the residuals of parabolas through four or
    more sizes.
    """
    squares, freedom = squares_within(
        [math.log(p.loss) for p in points if (p.parameters, p.setup) == setup]
        for points in slices
        for setup in dict.fromkeys((p.parameters, p.setup) for p in points)
    )
    for points in slices:
        ln_n, ln_loss = near_minimum(merge_repeats(points))
        if len(ln_n) > 3:
            residual = ln_loss - np.polyval(np.polyfit(ln_n - ln_n.mean(), ln_loss, 2), ln_n - ln_n.mean())
            squares += float((residual**2).sum())
            freedom += len(ln_n) - 3
    return max(NOISE_FLOOR, math.sqrt(squares / freedom)) if freedom else NOISE_FLOOR


def add_noise(points: Sequence[Point], noise: float, draw: np.random.Generator) -> list[Point]:
    """Return the points with noise added to their ln L, as other seeds might have given them."""
    factors = np.exp(noise * draw.standard_normal(len(points)))
    return [replace(p, loss=p.loss * float(f)) for p, f in zip(points, factors, strict=True)]


def with_standard_error(fitted: Slice, noise: float, draw: np.random.Generator) -> Slice:
    """Return the slice with the standard error of ln N*: its spread when noise is added to the losses, and LACK_OF_FIT."""
    minima = [fit_slice(add_noise(fitted.points, noise, draw)).parameters for _ in range(BOOTSTRAPS)]
    shifts = np.log(np.array([n for n in minima if math.isfinite(n)]) / fitted.parameters)
    if len(shifts) < BOOTSTRAPS // 4:  # most samples have their minimum at an edge
        return replace(fitted, error=FALLBACK_ERROR)
    return replace(fitted, error=math.hypot(LACK_OF_FIT, float(np.std(shifts))))


def fit_line(slices: Sequence[Slice], prior: tuple[float, float] | None = PRIOR) -> tuple[float, float, float]:
    """Return (intercept, exponent, standard error of the exponent) of ln N* on ln C.

    The slices are weighted by their errors. `prior` is the mean and the standard deviation of a normal prior on the
    exponent; without one, at least two slices are needed.
    """
    x = np.log([s.flops for s in slices])
    y = np.log([s.parameters for s in slices])
    weight = np.array([1 / s.error**2 for s in slices])
    mean_x, mean_y = float(np.average(x, weights=weight)), float(np.average(y, weights=weight))
    precision = float((weight * (x - mean_x) ** 2).sum())
    moment = float((weight * (x - mean_x) * (y - mean_y)).sum())
    if prior:
        precision, moment = precision + prior[1] ** -2, moment + prior[0] * prior[1] ** -2
    exponent = moment / precision
    return mean_y - exponent * mean_x, exponent, precision**-0.5


# ------------------------------------------------------------------------------------------------------- approach 3


def objective(theta: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray, ln_loss: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the sum of Huber_delta(LSE(a - alpha ln N, b - beta ln D, e) - ln L) and its gradient (5,).

    theta = (a, b, e, alpha, beta); LSE is log-sum-exp (Hoffmann et al. 2022, Eq. 3).
    """
    from scipy.special import huber

    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * ln_n, b - beta * ln_d, np.full_like(ln_n, e)])  # (3, runs)
    level = np.logaddexp.reduce(terms)
    residual = level - ln_loss
    # (3, runs): the derivative by each term, which is the Huber loss's slope times the term's softmax weight
    slope = np.clip(residual, -HUBER, HUBER) * np.exp(terms - level)
    gradient = np.array([*slope.sum(axis=1), -(slope[0] * ln_n).sum(), -(slope[1] * ln_d).sum()])
    return float(huber(HUBER, residual).sum()), gradient


def fit_surface(points: Sequence[Point], start: Surface | None = None) -> Surface:
    """Fit approach 3 to the points, from `start` where given, otherwise from the best points of a grid.

    The grid consists of the 4,500 starting points of Hoffmann et al.
    """
    from scipy.optimize import minimize

    ln_n, ln_d, ln_loss = (np.log([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss"))
    if start is not None:
        starts = np.array([[math.log(start.A), math.log(start.B), math.log(start.E), start.alpha, start.beta]])
    else:
        prefactors, exponents = np.arange(0.0, 26.0, 5.0), np.arange(0.0, 2.01, 0.5)
        grid = np.array(list(product(prefactors, prefactors, np.arange(-1.0, 1.01, 0.5), exponents, exponents)))
        values = np.array([objective(theta, ln_n, ln_d, ln_loss)[0] for theta in grid])
        starts = grid[np.argsort(values)[:STARTS]]
    # The terms of the objective are of order HUBER^2. Scaled to order 1, L-BFGS-B's tolerances have their usual
    # meaning.
    scale = HUBER**-2

    def scaled(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(theta, ln_n, ln_d, ln_loss)
        return scale * value, scale * gradient

    options = {"maxiter": 5000, "ftol": 1e-12, "gtol": 1e-8}
    bounds = [(-50, 60), (-50, 60), (-20, 10), (1e-3, 3), (1e-3, 3)]
    results = [minimize(scaled, theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for theta in starts]
    best = min(results, key=lambda r: r.fun)
    polished = minimize(scaled, best.x, jac=True, method="BFGS", options={"gtol": 1e-9})
    inside = all(low <= value <= high for value, (low, high) in zip(polished.x, bounds, strict=True))
    a, b, e, alpha, beta = polished.x if inside and polished.fun <= best.fun else best.x
    return Surface(math.exp(e), math.exp(a), math.exp(b), float(alpha), float(beta))


# ------------------------------------------------------------------------------------------------------- the whole law


def fit(points: Sequence[Point], source: str = "own runs") -> Fit:
    """Fit the law of these runs. Raises UserError where they do not determine one, naming the runs that are missing."""
    draw = np.random.default_rng(0)  # for the bootstrap samples
    given = len(points)
    groups = [best_setups(group) for group in group_by_budget(points)]
    points = [point for group in groups for point in group]
    different = len({(p.parameters, p.tokens) for p in points})
    surface = fit_surface(points) if different >= FEWEST_FOR_SURFACE and len(groups) > 1 else None
    moved = [at_common_flops(group, surface) for group in groups]
    noise = estimate_noise(moved)
    slices = [replace(fit_slice(runs), spread=flops_spread(group)) for runs, group in zip(moved, groups, strict=True)]
    good = [with_standard_error(fitted, noise, draw) for fitted in slices if not fitted.refused]
    warnings = [f"at {fitted.flops:.2g} FLOPs: {fitted.refused}" for fitted in slices if fitted.refused]
    if len(points) < given:
        warnings.append(
            f"runs left out because other settings did better at the same size and budget: {given - len(points)}"
        )
    if surface is None and any(fitted.spread > 1 + SAME_BUDGET for fitted in good):
        warnings.append("6ND differs within a slice; the losses were moved to the same 6ND along the usual slope")
    surfaces = _surface_draws(points, surface, noise, draw) if surface else ()
    measured = (min(p.flops for p in points), max(p.flops for p in points)) if points else (math.nan, math.nan)
    free = (math.nan, math.nan)
    if good:
        intercept, exponent, error = fit_line(good)
        uncertainty = _uncertainty(good, error)
        free, free_warnings = _free_exponent(good)
        warnings += free_warnings
    elif surface:
        intercept, exponent = surface.line()
        uncertainty = _surface_uncertainty(surfaces, measured)
        warnings.append(
            "no budget has sizes on both sides of its best one, so the size rests on approach 3 alone, which placed the"
            " optimum of measured curves 1.5 times too high; run five sizes at one budget, each 1.5 times the last"
        )
    else:
        raise UserError(
            f"{len(points)} runs in {len(slices)} budgets do not determine a law: {'; '.join(warnings) or 'no finished run'};"
            " run at least three sizes at one budget, with the best of them in the middle"
        )
    if surface is None:
        warnings.append(
            f"too few different runs to predict a loss ({different}); it takes {FEWEST_FOR_SURFACE}, at two budgets"
        )
    law = Law(LOCAL, source, exponent, intercept, measured, uncertainty, surface, surfaces, noise, _curve(good))
    with_errors = {fitted.flops: fitted for fitted in good}
    return Fit(law, tuple(with_errors.get(fitted.flops, fitted) for fitted in slices), free, tuple(warnings))


def _surface_uncertainty(surfaces: Sequence[Surface], measured: tuple[float, float]) -> Uncertainty:
    """Return the uncertainty of a law from approach 3: the spread of bootstrapped surfaces at the middle of the range."""
    lines = np.array([surface.line() for surface in surfaces])
    pivot = math.sqrt(measured[0] * measured[1])
    ln_sizes = lines[:, 0] + lines[:, 1] * math.log(pivot)
    return Uncertainty(pivot, max(LACK_OF_FIT, float(np.std(ln_sizes))), float(np.std(lines[:, 1])))


def _uncertainty(slices: Sequence[Slice], exponent_error: float) -> Uncertainty:
    """Return the uncertainty of `fit_line`'s line; level and exponent are independent at the weighted mean of ln C."""
    weight = np.array([1 / s.error**2 for s in slices])
    pivot = float(np.average(np.log([s.flops for s in slices]), weights=weight))
    return Uncertainty(math.exp(pivot), float(weight.sum()) ** -0.5, exponent_error)


def _curve(slices: Sequence[Slice]) -> tuple[float, float] | None:
    """Return (slope, curvature) of the loss around the optimum; None where two slices or more do not show a falling loss."""
    if len(slices) < 2:
        return None
    x, y = np.log([s.flops for s in slices]), np.log([s.loss for s in slices])
    slope = -float(np.polyfit(x, y, 1)[0])
    return (slope, float(np.median([s.curvature for s in slices]))) if slope > 0 else None


def _surface_draws(
    points: Sequence[Point], surface: Surface, noise: float, draw: np.random.Generator
) -> tuple[Surface, ...]:
    """Return the surfaces fitted to bootstrap samples of the runs, with noise added."""
    surfaces = []
    for _ in range(SURFACE_BOOTSTRAPS):
        sample = [points[i] for i in draw.integers(len(points), size=len(points))]
        if len({(p.parameters, p.tokens) for p in sample}) >= 5:  # as many as the surface has constants
            surfaces.append(fit_surface(add_noise(sample, noise, draw), start=surface))
    return tuple(surfaces)


def _free_exponent(slices: Sequence[Slice]) -> tuple[tuple[float, float], list[str]]:
    """Return the exponent without a prior and its standard error, and a warning where it is not stable."""
    if len(slices) < 2:
        return (math.nan, math.nan), ["a single budget does not determine the exponent, so the prior does"]
    _, exponent, error = fit_line(slices, None)
    decades = math.log10(slices[-1].flops / slices[0].flops)
    if error <= STABLE_ERROR and decades >= STABLE_DECADES:
        return (exponent, error), []
    runs = sum(len(s.points) for s in slices)
    needed = math.ceil(runs * max(1.0, (error / PRIOR[1]) ** 2))
    return (exponent, error), [
        f"without a prior the exponent would be {exponent:.2f} +- {error:.2f} from {decades:.1f} decades of compute, which is"
        f" unstable, so the prior {PRIOR[0]:.2f} +- {PRIOR[1]:.2f} decides; to do without it takes"
        f" {STABLE_DECADES:.0f} decades and about {needed} runs"
    ]
