"""Published scaling laws: the compute-optimal model size for a number of FLOPs, and how much the laws disagree.

A law is a line in (ln C, ln N), with C = 6 N D and N = block matrices + one vocabulary matrix. Only N is
interpolated. The tokens D follow from the FLOPs or from the measured speed, so that a plan keeps its budget
(interpolating N and D separately is off by up to 4 % in 6ND).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, pstdev
from typing import Any

from common.errors import UserError
from common.json_io import write_text
from common.safe_read import load_json

Z_80 = 1.2816  # 80 % of a normal distribution lie within so many standard errors of its mean


@dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^alpha + B / D^beta, nats per token (Hoffmann et al. 2022, Eq. 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the expected loss of N parameters trained on D tokens that are each seen once."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    def line(self) -> tuple[float, float]:
        """Return (intercept, exponent) of ln N = intercept + exponent ln C, the minimum of L at 6 N D = C (their Eq. 4)."""
        total = self.alpha + self.beta
        exponent = self.beta / total
        prefactor = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return math.log(prefactor) - exponent * math.log(6), exponent


@dataclass(frozen=True)
class Uncertainty:
    """The standard errors of a law's line: `level` of ln N at the compute `pivot`, and `exponent` of the exponent.

    The two are independent at the pivot, so that the error of ln N grows with the distance from it.
    """

    pivot: float
    level: float
    exponent: float

    def of_ln_parameters(self, flops: float) -> float:
        """Return the standard error of ln N at `flops`."""
        return math.hypot(self.level, self.exponent * math.log(flops / self.pivot))


@dataclass(frozen=True)
class Law:
    """A law for the compute-optimal size, N = exp(intercept) C^exponent.

    measured: the range of C that the source measured, in FLOPs.
    uncertainty: the standard errors, where the source allows to state them.
    surface: L(N, D), for laws that are derived from one.
    draws, noise: bootstrap samples of the surface, and the standard deviation of ln L between equal runs. Only a law
    of the user's own runs has them, and only it predicts a loss: the absolute loss of a published law holds for its
    own corpus and vocabulary.
    curve: (slope, curvature) of the loss around the optimum, see `loss_curve`; None uses the published values.
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
        """Return the compute-optimal N for C = `flops`."""
        return math.exp(self.intercept + self.exponent * math.log(flops))

    def tokens(self, flops: float) -> float:
        """Return D = C / 6N at the optimum for C = `flops`."""
        return flops / (6 * self.parameters(flops))

    def extrapolates(self, flops: float) -> bool:
        """Return whether `flops` lies outside the range that the source measured."""
        return not self.measured[0] <= flops <= self.measured[1]

    def interval(self, flops: float) -> tuple[float, float] | None:
        """Return the 80 % interval of the optimal N; None without an uncertainty."""
        if self.uncertainty is None:
            return None
        width = math.exp(Z_80 * self.uncertainty.of_ln_parameters(flops))
        best = self.parameters(flops)
        return best / width, best * width

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float] | None:
        """Return (loss, low, high) of a run in nats per token; None where the law predicts no loss.

        The 80 % interval includes the noise between seeds.
        """
        if self.surface is None or not self.draws:
            return None
        loss = self.surface.loss(parameters, tokens)
        drawn = [math.log(surface.loss(parameters, tokens)) for surface in self.draws]
        width = math.exp(Z_80 * math.hypot(pstdev(drawn), self.noise))
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

# The measured range of each study, FLOPs.
CHINCHILLA_BUDGETS = (6e18, 3e21)  # the isoFLOP budgets
EPOCH_BUDGETS = (1.4e18, 1.3e22)  # the 245 runs reconstructed from Hoffmann et al.'s Figure 4
PORIAN_BUDGETS = (1.25e16, 2.56e19)

# Approach 3 in the precision of the paper's TeX source, as given by Besiroglu et al. 2024. At 2.21e19 FLOPs, Table A3
# has 400M parameters; these constants give 389M, the printed exponents (0.34, 0.28) only 326M.
CHINCHILLA_APPROACH_3 = Surface(E=1.69337, A=406.401, B=410.723, alpha=0.33917084, beta=0.2849083)

# Besiroglu et al. 2024 (arXiv 2404.10102): a new fit to the same runs. Their bootstrap gives the exponent a standard
# error of 0.018. Together with an error of 2 % in N at 3e19 FLOPs, where their runs lie, this reproduces the 80 %
# intervals of 150 bootstraps of the 240 runs from 1e15 to 1e20 FLOPs.
EPOCH = Surface(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
EPOCH_UNCERTAINTY = Uncertainty(pivot=3e19, level=0.02, exponent=0.018)

# Muennighoff et al. 2023 (arXiv 2305.16264), Appendix A, on C4.
MUENNIGHOFF = Surface(E=1.869, A=520.8, B=1487.7, alpha=0.3526596, beta=0.3526596)
MUENNIGHOFF_SIZES = (7e6, 9e9)  # parameters of the smallest and the largest model


def _of_table(name: str, source: str, points: tuple[tuple[float, float], ...]) -> Law:
    """Return the law of the least-squares line of ln N on ln C through points (N, C)."""
    exponent, intercept = linear_regression([math.log(c) for _, c in points], [math.log(n) for n, _ in points])
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
    """Return the range of C in FLOPs whose optimal sizes a study trained, from its smallest and largest model."""
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
LOCAL = "local"  # the law fitted to the user's own runs: budget/laws/fit.py


def save_law(law: Law, about: dict[str, Any], path: Path) -> None:
    """Write a law of the user's own runs in full precision; `about` names its tokenizer, corpora and runs."""
    write_text(path, json.dumps({"format": 1, "law": asdict(law), "about": about}, indent=1) + "\n")


def load_law(path: Path) -> tuple[Law, dict[str, Any]]:
    """Return the law and the `about` of `save_law`. Raises UserError for a file that is missing or cannot be read."""
    try:
        content = load_json(path)
        fields = dict(content["law"])
        fields["measured"] = tuple(fields["measured"])
        fields["uncertainty"] = Uncertainty(**fields["uncertainty"]) if fields["uncertainty"] else None
        fields["surface"] = Surface(**fields["surface"]) if fields["surface"] else None
        fields["curve"] = tuple(fields["curve"]) if fields["curve"] else None
        fields["draws"] = tuple(Surface(**surface) for surface in fields["draws"])
        return Law(**fields), dict(content["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "does not exist" if missing else f"cannot be read as a law ({type(error).__name__}: {error})"
        raise UserError(
            f"law=local: {path} {problem}; fit a law to your finished runs with"
            " make law (python -m budget.laws.refit outputs/*), or name another file with plan.law_file=FILE"
        ) from error


def law_range(flops: float, own: Law | None = None) -> tuple[float, float]:
    """Return the smallest and the largest N that the published laws, and the user's law `own`, give for `flops`."""
    sizes = [law.parameters(flops) for law in (*LAWS.values(), *([own] if own else []))]
    return min(sizes), max(sizes)


def support(law: Law, flops: float) -> str:
    """Return how well measurements support a law at `flops`.

    "measured": by the law's own source. "confirmed": by other measurements (Porian et al. 2024 found 12 to 22 tokens
    per parameter where Chinchilla has 20). "extrapolated": by none.
    """
    if not law.extrapolates(flops):
        return "measured"
    return "confirmed" if PORIAN_BUDGETS[0] <= flops <= PORIAN_BUDGETS[1] and law.name != LOCAL else "extrapolated"


# The loss around the optimum. At a fixed C, ln L = ln L* + curvature (ln(N / (centre N*)))^2, where N* is the law's
# size; and the best loss falls with the compute as d ln L* / d ln C = -slope. Rows are (C, slope, curvature, centre).
# Porian et al. 2024 (arXiv 2406.19146), measured isoFLOP curves on RefinedWeb and OpenWebText2:
PORIAN_CURVES = (
    (1.25e16, 0.062, 0.100, 1.0),
    (1e17, 0.052, 0.062, 1.0),
    (3e18, 0.046, 0.042, 1.0),
    (2.56e19, 0.043, 0.035, 1.0),
)
# Our own runs at smaller budgets: the preset `modern` with a context of 64 on SlimPajama, 143k to 1.7M parameters,
# 3e12 to 6e13 FLOPs, relative to Chinchilla's N* (bench/results/tune.json; docs/performance.md). The size of the
# bigram embedding changes with the width, so the curve includes its effect. Nothing was measured between this budget
# and Porian's.
SMALL_CURVE = (6e13, 0.050, 0.022, 0.87)
CURVES = (SMALL_CURVE, *PORIAN_CURVES)


def loss_curve(flops: float) -> tuple[float, float, float]:
    """Return (slope, curvature, centre) at C = `flops`.

    The values are interpolated in ln C between the measured budgets and constant outside them.
    """
    if flops <= CURVES[0][0]:
        return CURVES[0][1:]
    for (c0, *before), (c1, *after) in pairwise(CURVES):
        if flops <= c1:
            t = math.log(flops / c0) / math.log(c1 / c0)
            slope, curvature, centre = (x + t * (y - x) for x, y in zip(before, after, strict=True))
            return slope, curvature, centre
    return CURVES[-1][1:]


def curve_source(flops: float) -> str:
    """Return the source of `loss_curve` at `flops`, in one word.

    Below Porian's budgets, the curve is interpolated towards our own runs at smaller budgets.
    """
    return "porian" if flops >= PORIAN_BUDGETS[0] else "bench.quality.plan_neighbours"


def best_loss(flops: float) -> float:
    """Return ln of the best loss at `flops` up to a constant: the integral of -slope over ln C from the first budget."""
    total, low = 0.0, CURVES[0][0]
    if flops <= low:
        return -CURVES[0][1] * math.log(flops / low)
    for high in [*(curve[0] for curve in CURVES[1:] if curve[0] < flops), flops]:
        # The slope is linear in ln C between the measured budgets, so the trapezoidal rule is exact.
        total -= 0.5 * (loss_curve(low)[0] + loss_curve(high)[0]) * math.log(high / low)
        low = high
    return total


def relative_loss(law: Law, parameters: float, tokens: float) -> float:
    """Return ln of the expected loss up to a constant, so only differences between shapes have a meaning.

    Two terms raise it: less compute 6ND, and a size off the optimum for that compute.
    """
    flops = 6 * parameters * tokens
    level = -law.curve[0] * math.log(flops) if law.curve else best_loss(flops)
    _, curvature, centre = (*law.curve, 1.0) if law.curve else loss_curve(flops)
    return level + curvature * math.log(parameters / (centre * law.parameters(flops))) ** 2


REPEAT_DECAY = (
    15.387756  # R_D* of Muennighoff et al. 2023: a repetition has lost 1 - 1/e of its value after so many epochs
)


def effective_tokens(tokens: float, unique: float | None) -> float:
    """Return the number of tokens seen once that are worth as much as `tokens` from a corpus of `unique` tokens.

    D' = U + U R* (1 - exp(-R / R*)) with R = D / U - 1 repetitions (Muennighoff et al. 2023, Eq. 5). `unique` None
    means an unlimited corpus.
    """
    if unique is None or tokens <= unique:
        return tokens
    return unique * (1 + REPEAT_DECAY * -math.expm1(-(tokens / unique - 1) / REPEAT_DECAY))
