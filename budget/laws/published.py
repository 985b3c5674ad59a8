"""Scaling laws: how many parameters a given number of FLOPs is best spent on, and how much they disagree.

A law is one line in (ln C, ln N), with C = 6 N D and N = block matrices + one vocabulary matrix. Only N is interpolated;
tokens follow from the FLOPs or from the measured speed, so that a plan never breaks its own budget (interpolating N and D
separately is off by up to 4 % in 6ND).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import pstdev
from typing import Any

from common.errors import UserError
from common.json_io import write_text
from common.safe_read import load_json

DEVIATES_80 = 1.2816  # standard errors on each side that hold 80 % of a normal distribution


@dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^alpha + B / D^beta, nats per token (Hoffmann et al. 2022, Eq. 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Expected loss of N parameters trained on D tokens, each seen once."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    def line(self) -> tuple[float, float]:
        """(intercept, exponent) of ln N = intercept + exponent ln C where L is least at 6 N D = C (their Eq. 4)."""
        total = self.alpha + self.beta
        exponent = self.beta / total
        prefactor = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return math.log(prefactor) - exponent * math.log(6), exponent


@dataclass(frozen=True)
class Uncertainty:
    """Standard errors of a law's line: of ln N at the compute `pivot`, and of the exponent; independent of each other
    there, so that the error of ln N grows with the distance from the pivot."""

    pivot: float
    level: float
    exponent: float

    def of_ln_parameters(self, flops: float) -> float:
        """Standard error of ln N at `flops`."""
        return math.hypot(self.level, self.exponent * math.log(flops / self.pivot))


@dataclass(frozen=True)
class Law:
    """Compute-optimal size N = exp(intercept) C^exponent.

    measured: the range of C that the source measured, FLOPs. uncertainty: where the source gives what it takes to state
    one. surface: for laws that come from one. draws: bootstraps of it, and noise: the standard deviation of ln L between
    runs alike; known for a law of the user's own runs, the only kind that predicts a loss: a literature law's absolute
    loss holds for its own corpus and vocabulary. curve: (slope, curvature) of the loss around the optimum, see
    `loss_curve`, where one's own runs gave them.
    """

    name: str
    source: str
    exponent: float
    intercept: float
    measured: tuple[float, float]
    uncertainty: Uncertainty | None = None
    surface: Surface | None = None
    draws: tuple[Surface, ...] = ()
    noise: float = 0.0
    curve: tuple[float, float] | None = None

    def parameters(self, flops: float) -> float:
        """N that `flops` (= 6 N D) are best spent on."""
        return math.exp(self.intercept + self.exponent * math.log(flops))

    def tokens(self, flops: float) -> float:
        """D = C / 6N at that optimum."""
        return flops / (6 * self.parameters(flops))

    def extrapolates(self, flops: float) -> bool:
        """Whether the source measured nothing at so many FLOPs."""
        return not self.measured[0] <= flops <= self.measured[1]

    def interval(self, flops: float) -> tuple[float, float] | None:
        """N that the optimum is within with 80 % probability; None without an uncertainty."""
        if self.uncertainty is None:
            return None
        width = math.exp(DEVIATES_80 * self.uncertainty.of_ln_parameters(flops))
        best = self.parameters(flops)
        return best / width, best * width

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float] | None:
        """(loss, low, high) of a run, the 80 % interval with the noise between seeds; None where the law cannot say."""
        if self.surface is None or not self.draws:
            return None
        loss = self.surface.loss(parameters, tokens)
        drawn = [math.log(each.loss(parameters, tokens)) for each in self.draws]
        width = math.exp(DEVIATES_80 * math.hypot(pstdev(drawn), self.noise))
        return loss, loss / width, loss * width


# Hoffmann et al. 2022 (arXiv 2203.15556), Table 3: parameters, FLOPs (Approach 1), all nine rows.
CHINCHILLA_TABLE_3 = (
    (400e6, 1.92e19),
    (1e9, 1.21e20),
    (10e9, 1.23e22),
    (67e9, 5.76e23),
    (175e9, 3.85e24),
    (280e9, 9.90e24),
    (520e9, 3.43e25),
    (1e12, 1.27e26),
    (10e12, 1.30e28),
)

# The same paper, Table A3, Approach 2 (isoFLOP profiles): parameters, FLOPs.
CHINCHILLA_APPROACH_2 = (
    (400e6, 1.84e19),
    (1e9, 1.20e20),
    (10e9, 1.32e22),
    (67e9, 6.88e23),
    (175e9, 4.54e24),
    (280e9, 1.18e25),
    (520e9, 4.19e25),
    (1e12, 1.59e26),
    (10e12, 1.75e28),
)

CHINCHILLA_BUDGETS = (6e18, 3e21)  # the isoFLOP budgets that were run
EPOCH_BUDGETS = (1.4e18, 1.3e22)  # of the 245 runs reconstructed from Hoffmann et al.'s Figure 4
PORIAN_BUDGETS = (1.25e16, 2.56e19)

# Approach 3 in the precision of the paper's TeX source, as Besiroglu et al. 2024 read it. The printed exponents (0.34,
# 0.28) give 326M parameters at 2.21e19 FLOPs, where Table A3 says 400M and these 389M.
CHINCHILLA_APPROACH_3 = Surface(E=1.69337, A=406.401, B=410.723, alpha=0.33917084, beta=0.2849083)

# Besiroglu et al. 2024 (arXiv 2404.10102): the same runs fitted again. Their bootstrap gives the exponent a standard
# error of 0.018; with an error of 2 % in N at 3e19 FLOPs, where their runs are, it reproduces the 80 % intervals that
# 150 bootstraps of the 240 runs give from 1e15 to 1e20 FLOPs.
EPOCH = Surface(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
EPOCH_UNCERTAINTY = Uncertainty(pivot=3e19, level=0.02, exponent=0.018)

# Muennighoff et al. 2023 (arXiv 2305.16264), Appendix A, on C4.
MUENNIGHOFF = Surface(E=1.869, A=520.8, B=1487.7, alpha=0.3526596, beta=0.3526596)
MUENNIGHOFF_SIZES = (7e6, 9e9)


def regress(
    points: tuple[tuple[float, float], ...],
) -> tuple[float, float]:
    """(intercept, exponent): least squares of ln N on ln C, closed form; the same line inside and outside the table."""
    x = [math.log(flops) for _, flops in points]
    y = [math.log(parameters) for parameters, _ in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return mean_y - exponent * mean_x, exponent


def _of_table(name: str, source: str, points: tuple[tuple[float, float], ...]) -> Law:
    intercept, exponent = regress(points)
    return Law(name, source, exponent, intercept, CHINCHILLA_BUDGETS)


def _of_surface(
    name: str, source: str, surface: Surface, measured: tuple[float, float], uncertainty: Uncertainty | None = None
) -> Law:
    intercept, exponent = surface.line()
    return Law(name, source, exponent, intercept, measured, uncertainty, surface)


def _of_porian(name: str, corpus: str, prefactor: float, exponent: float) -> Law:
    source = f"Porian et al. 2024 (arXiv 2406.19146), tuned runs on {corpus}"
    return Law(name, source, exponent, math.log(prefactor), PORIAN_BUDGETS)


def _budgets_of_sizes(surface: Surface, sizes: tuple[float, float]) -> tuple[float, float]:
    """The compute whose optimum the smallest and the largest model of a study are: what its sizes can speak for."""
    intercept, exponent = surface.line()
    low, high = (math.exp((math.log(size) - intercept) / exponent) for size in sizes)
    return low, high


HOFFMANN = "Hoffmann et al. 2022 (arXiv 2203.15556)"
LAWS = {
    law.name: law
    for law in (
        _of_table("chinchilla-table3", f"{HOFFMANN}, Table 3", CHINCHILLA_TABLE_3),
        _of_table("chinchilla-a2", f"{HOFFMANN}, Table A3, Approach 2", CHINCHILLA_APPROACH_2),
        _of_surface("chinchilla-a3", f"{HOFFMANN}, Eq. 10", CHINCHILLA_APPROACH_3, CHINCHILLA_BUDGETS),
        _of_surface("epoch", "Besiroglu et al. 2024 (arXiv 2404.10102)", EPOCH, EPOCH_BUDGETS, EPOCH_UNCERTAINTY),
        _of_surface(
            "muennighoff-c4",
            "Muennighoff et al. 2023 (arXiv 2305.16264)",
            MUENNIGHOFF,
            _budgets_of_sizes(MUENNIGHOFF, MUENNIGHOFF_SIZES),
        ),
        _of_porian("porian-refinedweb", "RefinedWeb", 0.118926, 0.496895),
        _of_porian("porian-openwebtext2", "OpenWebText2", 0.046935, 0.518454),
    )
}
LOCAL = "local"  # fitted from the user's own runs: budget/laws/fit.py


def save_law(law: Law, about: dict[str, Any], path: Path) -> None:
    """Write a law of the user's own, in full precision, with what it is about (tokenizer, corpus, runs)."""
    write_text(path, json.dumps({"format": 1, "law": asdict(law), "about": about}, indent=1) + "\n")


def load_law(path: Path) -> tuple[Law, dict[str, Any]]:
    """The law that `save_law` wrote, and what it is about. Raises UserError for a file that is missing or no such file."""
    try:
        content = load_json(path)
        known = dict(content["law"])
        known["measured"] = tuple(known["measured"])
        known["uncertainty"] = Uncertainty(**known["uncertainty"]) if known["uncertainty"] else None
        known["surface"] = Surface(**known["surface"]) if known["surface"] else None
        known["curve"] = tuple(known["curve"]) if known["curve"] else None
        known["draws"] = tuple(Surface(**each) for each in known["draws"])
        return Law(**known), dict(content["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"is no readable law ({type(error).__name__}: {error})"
        raise UserError(
            f"law=local: {path} {what}; make it from your finished runs with"
            " make law (python -m budget.laws.refit outputs/*), or name another with plan.law_file=FILE"
        ) from error


def law_range(flops: float, own: Law | None = None) -> tuple[float, float]:
    """The least and the largest N that the published laws, and the user's `own`, give for `flops`."""
    sizes = [law.parameters(flops) for law in (*LAWS.values(), *([own] if own else []))]
    return min(sizes), max(sizes)


def support(law: Law, flops: float) -> str:
    """How well a law is supported at `flops`: "measured" by its own source; "confirmed" by other measurements (Porian et
    al. 2024, who found 12 to 22 tokens per parameter where Chinchilla has 20); or "extrapolated"."""
    if not law.extrapolates(flops):
        return "measured"
    return "confirmed" if PORIAN_BUDGETS[0] <= flops <= PORIAN_BUDGETS[1] and law.name != LOCAL else "extrapolated"


# At budget C the loss obeys ln L = ln L* + curvature (ln N / (centre N*))^2, and the best loss falls as
# d ln L* / d ln C = -slope; N* is the law's size. Porian et al. 2024 (arXiv 2406.19146): measured isoFLOP curves, RefinedWeb
# and OpenWebText2. (C, slope, curvature, centre)
PORIAN_CURVES = (
    (1.25e16, 0.062, 0.100, 1.0),
    (1e17, 0.052, 0.062, 1.0),
    (3e18, 0.046, 0.042, 1.0),
    (2.56e19, 0.043, 0.035, 1.0),
)
# Far below those: `modern` with contexts of 64 on SlimPajama, 143k to 1.7M parameters, 3e12 to 6e13 FLOPs, N* being
# Chinchilla's (bench/results/tune.json; docs/performance.md). A size has the bigram embedding of its width, so the curve is of
# both. Nothing was measured between this budget and Porian's.
SMALL_CURVE = (6e13, 0.050, 0.022, 0.87)
CURVES = (SMALL_CURVE, *PORIAN_CURVES)


def loss_curve(flops: float) -> tuple[float, float, float]:
    """(slope, curvature, centre) at C, interpolated in ln C between the measured budgets and held constant outside them."""
    if flops <= CURVES[0][0]:
        return CURVES[0][1:]
    for (c0, *before), (c1, *after) in pairwise(CURVES):
        if flops <= c1:
            t = math.log(flops / c0) / math.log(c1 / c0)
            slope, curvature, centre = (x + t * (y - x) for x, y in zip(before, after, strict=True))
            return slope, curvature, centre
    return CURVES[-1][1:]


def curve_source(flops: float) -> str:
    """Where `loss_curve` is from at C, in a word; below Porian's budgets it leads over to what was measured far below."""
    return "porian" if flops >= PORIAN_BUDGETS[0] else "bench.quality.plan_neighbours"


def best_loss(flops: float) -> float:
    """ln of the best loss at C, up to a constant: the integral of -slope over ln C from the first measured budget."""
    total, at = 0.0, CURVES[0][0]
    if flops <= at:
        return -CURVES[0][1] * math.log(flops / at)
    for edge in [*(curve[0] for curve in CURVES[1:] if curve[0] < flops), flops]:
        total -= 0.5 * (loss_curve(at)[0] + loss_curve(edge)[0]) * math.log(edge / at)  # the slope is linear in ln C
        at = edge
    return total


def relative_loss(law: Law, parameters: float, tokens: float) -> float:
    """ln of the loss this spending should reach, up to a constant: only differences between shapes mean anything.

    Two terms: less useful compute (6ND) is worse, and so is missing the best size for that compute.
    """
    flops = 6 * parameters * tokens
    level = -law.curve[0] * math.log(flops) if law.curve else best_loss(flops)
    _, curvature, centre = (*law.curve, 1.0) if law.curve else loss_curve(flops)
    return level + curvature * math.log(parameters / (centre * law.parameters(flops))) ** 2


REPEAT_DECAY = (
    15.387756  # R_D* of Muennighoff et al. 2023: the epochs after which repeating has lost 1 - 1/e of its value
)


def effective_tokens(tokens: float, unique: float | None) -> float:
    """How many tokens seen once `tokens` from a corpus of `unique` tokens are worth: D' of Muennighoff et al. 2023, Eq. 5.

    U + U R* (1 - exp(-R / R*)) with R = D / U - 1 repetitions. `unique` None: as many as wanted.
    """
    if unique is None or tokens <= unique:
        return tokens
    return unique * (1 + REPEAT_DECAY * -math.expm1(-(tokens / unique - 1) / REPEAT_DECAY))
