"""A scaling law from a user's own runs: approaches 2 and 3 of Hoffmann et al. 2022, with their uncertainty.

Approach 2 decides the size: a parabola of ln L in ln N for each compute budget, and one line through their minima; runs
whose budget was not exactly one in 6ND are first moved to one by approach 3. A free exponent from cheap budgets is
unstable and mostly low, so that it has a prior (a = 0.50 +- 0.02, from Hoffmann et al.'s approaches 1 and 2, which no
small run takes part in) and the runs decide the prefactor: tokens per parameter. Approach 3, L = E + A / N^alpha + B /
D^beta, predicts the loss, and decides the size only where there are no slices.

Besiroglu et al. 2024 say what goes wrong in approach 3: averaging the Huber terms makes the objective so small that
L-BFGS-B stops early. Here they are summed, the gradient is analytic, the best of many starts is polished.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from budget.laws.published import LOCAL, Law, Surface, Uncertainty, loss_curve
from common.errors import UserError
from common.noise import squares_within

PRIOR = (0.50, 0.02)  # exponent of N*(C) and its standard error
SAME_BUDGET = 0.10  # runs within 10 % of each other's compute are one slice
MOST_SPREAD = 2.0  # largest to smallest 6ND of runs alike in another measure: attention and speed by size explain that
WINDOW = 0.04  # points within 4 % of the least loss of their slice are what the parabola is drawn through
FEWEST_IN_SLICE = 3
NOISE_FLOOR = 0.002  # of ln L between seeds (Porian et al. 2024, for losses of 3 nats)
LACK_OF_FIT = 0.05  # of ln N*: Porian et al.'s slices, nearly free of noise, lie 3 to 5 % (rms) off their own line
HUBER = 1e-3
FEWEST_FOR_SURFACE = 8  # five constants, and something left to say how well they fit
STABLE_ERROR = 0.03  # standard error of a free exponent below which it is worth a look
STABLE_DECADES = 2.0
BOOTSTRAPS = 200


@dataclass(frozen=True)
class Point:
    """A finished run: N as laws count it, tokens seen (or the new ones that repeated tokens are worth), 6 N D, final loss
    in nats per token (or bits per byte). setup: stands for everything else but the seed that decided the loss. spent: by
    other measures of a budget, such as FLOPs with attention."""

    parameters: float
    tokens: float
    loss: float
    setup: str = ""
    spent: Mapping[str, float] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True)
class Slice:
    """The runs of one budget, and the parabola ln L = ln L* + curvature (ln N / N*)^2 through the best of them.

    points: the runs, moved to the compute `flops`; spread: their largest to smallest 6ND before. refused: why there is no
    minimum to read off; then the other figures are NaN.
    """

    flops: float
    points: tuple[Point, ...]
    spread: float = 1.0
    parameters: float = math.nan
    loss: float = math.nan
    curvature: float = math.nan
    error: float = math.nan  # standard error of ln N*
    refused: str = ""


@dataclass(frozen=True)
class Fit:
    """What the runs say. `free`: the exponent without a prior and its standard error, NaN with fewer than two slices.
    `warnings`: what cannot be said, and the runs that it would take."""

    law: Law
    slices: tuple[Slice, ...]
    free: tuple[float, float]
    warnings: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------- approach 2


def cluster_by(points: Sequence[Point], value: Callable[[Point], float], width: float) -> list[list[Point]]:
    """The points by a value: neighbours up to `width` times the first of their window."""
    found: list[list[Point]] = []
    for point in sorted(points, key=value):
        if found and value(point) <= value(found[-1][0]) * width:
            found[-1].append(point)
        else:
            found.append([point])
    return found


def flops_spread(points: Sequence[Point]) -> float:
    """Largest to smallest 6ND."""
    return max(p.flops for p in points) / min(p.flops for p in points)


def equal_in_measure(points: Sequence[Point], measure: str) -> list[list[Point]]:
    """The points that spent the same in one measure, and not too different 6ND: hours hold for one machine only."""
    having = [point for point in points if measure in point.spent]
    same = cluster_by(having, lambda p: p.spent[measure], 1 + SAME_BUDGET)
    return [part for each in same for part in cluster_by(each, lambda p: p.flops, MOST_SPREAD)]


def group_by_budget(points: Sequence[Point]) -> list[tuple[Point, ...]]:
    """The points by budget, in order of compute.

    Runs are a slice that spent the same 6ND, or the same in a measure of `Point.spent`: attention, repetition or speed
    then give each size another 6ND. Of all such slices the one with the most sizes is cut out first, of equal ones that
    with the closest 6ND; so runs of different kinds of budget may be mixed.
    """
    left, slices = list(points), []
    measures = list(dict.fromkeys(name for point in points for name in point.spent))
    while left:
        found = cluster_by(left, lambda p: p.flops, 1 + SAME_BUDGET)
        found += [each for measure in measures for each in equal_in_measure(left, measure)]
        best = max(found, key=lambda each: (len({p.parameters for p in each}), -flops_spread(each)))
        slices.append(tuple(best))
        left = [point for point in left if not any(point is each for each in best)]
    return sorted(slices, key=common_flops)


def common_flops(points: Sequence[Point]) -> float:
    """The compute of a slice, 6ND: the geometric mean of its sizes'."""
    return float(np.exp(np.mean([math.log(p.flops) for p in points])))


def at_common_flops(points: Sequence[Point], surface: Surface | None) -> tuple[Point, ...]:
    """The runs of a slice as they would have come out at its common compute: tokens more or fewer at the same size, and
    the loss that the surface's slope in D gives them; without a surface the usual slope of the best loss (loss_curve)."""
    flops, found = common_flops(points), []
    for p in points:
        factor = flops / p.flops
        if surface:
            change = surface.loss(p.parameters, p.tokens * factor) / surface.loss(p.parameters, p.tokens)
        else:
            change = factor ** -loss_curve(flops)[0]
        found.append(replace(p, tokens=p.tokens * factor, loss=p.loss * change))
    return tuple(found)


def best_setups(points: Sequence[Point]) -> tuple[Point, ...]:
    """A slice without the runs that another setup of their size did better: a law is about runs that are set right."""
    losses: dict[tuple[float, str], list[float]] = {}
    for point in points:
        losses.setdefault((point.parameters, point.setup), []).append(point.loss)
    least: dict[float, tuple[float, str]] = {}
    for (size, setup), found in losses.items():
        least[size] = min(least.get(size, (math.inf, "")), (float(np.mean(found)), setup))
    return tuple(point for point in points if least[point.parameters][1] == point.setup)


def merge_repeats(points: Sequence[Point]) -> list[Point]:
    """Runs of the same size at the same budget (other seeds) as one point, their mean."""
    sizes: dict[float, list[Point]] = {}
    for point in points:
        sizes.setdefault(point.parameters, []).append(point)
    return [
        Point(size, float(np.mean([p.tokens for p in same])), float(np.exp(np.mean([math.log(p.loss) for p in same]))))
        for size, same in sorted(sizes.items())
    ]


def parabola(ln_n: np.ndarray, ln_loss: np.ndarray) -> tuple[float, float, float]:
    """(ln N*, ln L*, curvature) of the least-squares parabola; curvature <= 0 means that there is no minimum."""
    centre = ln_n.mean()
    curvature, slope, level = np.polyfit(ln_n - centre, ln_loss, 2)
    if curvature <= 0:
        return math.nan, math.nan, float(curvature)
    best = -slope / (2 * curvature)
    return float(centre + best), float(level - slope * slope / (4 * curvature)), float(curvature)


def near_minimum(merged: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """(ln N, ln L) of the points within WINDOW of the least loss, and of its two neighbours: a parabola needs three."""
    ln_n, ln_loss = np.log([p.parameters for p in merged]), np.log([p.loss for p in merged])
    best = int(ln_loss.argmin())
    near = ln_loss <= ln_loss[best] + math.log1p(WINDOW)
    near[max(0, best - 1) : best + 2] = True
    return ln_n[near], ln_loss[near]


def fit_slice(points: Sequence[Point]) -> Slice:
    """The minimum of one budget's runs. Refuses one that lies at an edge: then it is somewhere beyond."""
    merged = merge_repeats(points)
    found = Slice(common_flops(merged), tuple(points))
    if len(merged) < FEWEST_IN_SLICE:
        missing = FEWEST_IN_SLICE - len(merged)
        return replace(found, refused=f"{len(merged)} sizes are no parabola; add {missing} more around them")
    best = min(range(len(merged)), key=lambda i: merged[i].loss)
    if best in (0, len(merged) - 1):
        side, factor = ("smallest", 1 / 1.5) if best == 0 else ("largest", 1.5)
        target = merged[best].parameters * factor
        return replace(
            found, refused=f"the {side} size is the best, the minimum lies beyond it; add a run of about {target:.2g}"
        )
    top, level, curvature = parabola(*near_minimum(merged))
    smallest, largest = (math.log(merged[i].parameters) for i in (0, -1))
    if not math.isfinite(top) or not smallest <= top <= largest:
        return replace(found, refused="the parabola's minimum is outside the sizes that were run; add sizes")
    return replace(found, parameters=math.exp(top), loss=math.exp(level), curvature=curvature)


def estimate_noise(slices: Sequence[Sequence[Point]]) -> float:
    """Standard deviation of ln L between runs that differ in their seed alone, at least NOISE_FLOOR: from runs of one size,
    budget and setup, and from what the parabolas through the best four or more sizes of a budget leave."""
    squares, freedom = squares_within(
        [math.log(p.loss) for p in points if (p.parameters, p.setup) == equal_in_measure]
        for points in slices
        for equal_in_measure in dict.fromkeys((p.parameters, p.setup) for p in points)
    )
    for points in slices:
        ln_n, ln_loss = near_minimum(merge_repeats(points))
        if len(ln_n) > 3:
            residual = ln_loss - np.polyval(np.polyfit(ln_n - ln_n.mean(), ln_loss, 2), ln_n - ln_n.mean())
            squares += float((residual**2).sum())
            freedom += len(ln_n) - 3
    return max(NOISE_FLOOR, math.sqrt(squares / freedom)) if freedom else NOISE_FLOOR


def add_noise(points: Sequence[Point], noise: float, draw: np.random.Generator) -> list[Point]:
    """The points as another set of seeds might have given them."""
    factors = np.exp(noise * draw.standard_normal(len(points)))
    return [replace(p, loss=p.loss * float(f)) for p, f in zip(points, factors, strict=True)]


def with_standard_error(found: Slice, noise: float, draw: np.random.Generator) -> Slice:
    """The slice with the standard error of its ln N*: how far it moves when the losses move by the noise."""
    again = [fit_slice(add_noise(found.points, noise, draw)).parameters for _ in range(BOOTSTRAPS)]
    at_common_flops = np.log(np.array([n for n in again if math.isfinite(n)]) / found.parameters)
    if len(at_common_flops) < BOOTSTRAPS // 4:  # most draws had their minimum at an edge
        return replace(found, error=0.5)
    return replace(found, error=math.hypot(LACK_OF_FIT, float(np.std(at_common_flops))))


def fit_line(slices: Sequence[Slice], prior: tuple[float, float] | None = PRIOR) -> tuple[float, float, float]:
    """(intercept, exponent, standard error of the exponent) of ln N* on ln C, weighted by the slices' errors, with a
    normal prior on the exponent. Without a prior it takes two slices."""
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
    """Sum of Huber_delta(LSE(a - alpha ln N, b - beta ln D, e) - ln L) and its gradient; theta = (a, b, e, alpha, beta)."""
    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * ln_n, b - beta * ln_d, np.full_like(ln_n, e)])
    top = terms.max(axis=0)
    weights = np.exp(terms - top)
    total = weights.sum(axis=0)
    weights /= total
    residual = top + np.log(total) - ln_loss
    size = np.abs(residual)
    value = np.where(size <= HUBER, 0.5 * residual**2, HUBER * (size - 0.5 * HUBER)).sum()
    slope = np.clip(residual, -HUBER, HUBER)
    along = slope * weights
    gradient = np.array(
        [along[0].sum(), along[1].sum(), along[2].sum(), -(along[0] * ln_n).sum(), -(along[1] * ln_d).sum()]
    )
    return float(value), gradient


def _starts() -> np.ndarray:
    """Hoffmann et al.'s grid of 4,500 starts, (4500, 5)."""
    a = b = np.arange(0.0, 26.0, 5.0)
    e = np.arange(-1.0, 1.01, 0.5)
    alpha = beta = np.arange(0.0, 2.01, 0.5)
    return np.stack([g.ravel() for g in np.meshgrid(a, b, e, alpha, beta, indexing="ij")], axis=1)


def fit_surface(points: Sequence[Point], start: Surface | None = None, n_starts: int = 40) -> Surface:
    """Approach 3 through `points`. With `start`, from there alone; else from the best of a grid of starts."""
    from scipy.optimize import minimize

    ln_n, ln_d, ln_loss = (np.log([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss"))
    if start is not None:
        starts = np.array([[math.log(start.A), math.log(start.B), math.log(start.E), start.alpha, start.beta]])
    else:
        grid = _starts()
        values = np.array([objective(theta, ln_n, ln_d, ln_loss)[0] for theta in grid])
        starts = grid[np.argsort(values)[:n_starts]]
    # The objective is a sum of terms of order HUBER^2; in units of that L-BFGS-B's tolerances mean what they say.
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


# ---------------------------------------------------------------------------------------------------------- a whole


def fit(points: Sequence[Point], seed: int = 0, source: str = "own runs") -> Fit:
    """The law of these runs. Raises UserError where they cannot give one, with what is missing."""
    draw = np.random.default_rng(seed)
    given = len(points)
    groups = [best_setups(each) for each in group_by_budget(points)]
    points = [point for each in groups for point in each]
    different = len({(p.parameters, p.tokens) for p in points})
    surface = fit_surface(points) if different >= FEWEST_FOR_SURFACE and len(groups) > 1 else None
    level = [at_common_flops(each, surface) for each in groups]
    noise = estimate_noise(level)
    slices = [replace(fit_slice(at), spread=flops_spread(each)) for at, each in zip(level, groups, strict=True)]
    good = [with_standard_error(each, noise, draw) for each in slices if not each.refused]
    warnings = [f"at {each.flops:.2g} FLOPs: {each.refused}" for each in slices if each.refused]
    if len(points) < given:
        warnings.append(
            f"runs left out because other settings did better at their size and budget: {given - len(points)}"
        )
    if surface is None and any(each.spread > 1 + SAME_BUDGET for each in good):
        warnings.append("6ND differs within a slice: its losses were moved to one compute along the usual slope")
    surfaces = _surface_draws(points, surface, noise, draw) if surface else ()
    measured = (min(p.flops for p in points), max(p.flops for p in points)) if points else (math.nan, math.nan)
    if good:
        intercept, exponent, error = fit_line(good)
        uncertainty = _uncertainty(good, error)
        free, doubts = _free_exponent(good)
        warnings += doubts
    elif surface:
        intercept, exponent = surface.line()
        lines = np.array([each.line() for each in surfaces])
        pivot, free = math.sqrt(measured[0] * measured[1]), (math.nan, math.nan)
        sizes = lines[:, 0] + lines[:, 1] * math.log(pivot)
        uncertainty = Uncertainty(pivot, max(LACK_OF_FIT, float(np.std(sizes))), float(np.std(lines[:, 1])))
        warnings.append(
            "no budget has sizes on both sides of its best one: the size rests on approach 3 alone, which put the optimum"
            " of measured curves at 1.5 times its place; run five sizes, each 1.5 times the last, at one budget"
        )
    else:
        raise UserError(
            f"{len(points)} runs in {len(slices)} budgets give no law: {'; '.join(warnings) or 'no finished run'}; "
            "run at least three sizes at one budget, the best of them in the middle"
        )
    if surface is None:
        warnings.append(
            f"{different} different runs are too few for a predicted loss; it takes {FEWEST_FOR_SURFACE}, at two budgets"
        )
    law = Law(LOCAL, source, exponent, intercept, measured, uncertainty, surface, surfaces, noise, _curve(good))
    by_flops = {each.flops: each for each in good}
    return Fit(law, tuple(by_flops.get(each.flops, each) for each in slices), free, tuple(warnings))


def _uncertainty(slices: Sequence[Slice], exponent_error: float) -> Uncertainty:
    """Of `fit_line`'s line: level and exponent are independent at the weighted mean of ln C."""
    weight = np.array([1 / each.error**2 for each in slices])
    pivot = float(np.average(np.log([each.flops for each in slices]), weights=weight))
    return Uncertainty(math.exp(pivot), float(weight.sum()) ** -0.5, exponent_error)


def _curve(slices: Sequence[Slice]) -> tuple[float, float] | None:
    """(slope, curvature) of the loss that at least two slices show; None where they show none."""
    if len(slices) < 2:
        return None
    x, y = np.log([s.flops for s in slices]), np.log([s.loss for s in slices])
    slope = -float(np.polyfit(x, y, 1)[0])
    return (slope, float(np.median([s.curvature for s in slices]))) if slope > 0 else None


def _surface_draws(
    points: Sequence[Point], surface: Surface, noise: float, draw: np.random.Generator, n: int = 50
) -> tuple[Surface, ...]:
    """About n surfaces through runs drawn with replacement and moved by the noise."""
    found = []
    for _ in range(n):
        chosen = [points[i] for i in draw.integers(len(points), size=len(points))]
        if len({(p.parameters, p.tokens) for p in chosen}) >= 5:
            found.append(fit_surface(add_noise(chosen, noise, draw), start=surface))
    return tuple(found)


def _free_exponent(slices: Sequence[Slice]) -> tuple[tuple[float, float], list[str]]:
    """The exponent that the slices alone give with its error, and why not to trust it."""
    if len(slices) < 2:
        return (math.nan, math.nan), ["one budget says nothing about the exponent; it is the prior's"]
    _, exponent, error = fit_line(slices, None)
    decades = math.log10(slices[-1].flops / slices[0].flops)
    if error <= STABLE_ERROR and decades >= STABLE_DECADES:
        return (exponent, error), []
    runs = sum(len(s.points) for s in slices)
    needed = math.ceil(runs * max(1.0, (error / PRIOR[1]) ** 2))
    return (exponent, error), [
        f"the exponent alone would be {exponent:.2f} +- {error:.2f} from {decades:.1f} decades of compute: unstable; the"
        f" prior {PRIOR[0]:.2f} +- {PRIOR[1]:.2f} decides. It would take {STABLE_DECADES:.0f} decades and"
        f" about {needed} runs to do without"
    ]
