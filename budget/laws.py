"""Scaling laws: how many parameters a given number of FLOPs is best spent on.

A law is one regression in (ln C, ln N) over published points, with C = 6 N D and N = block matrices + one vocabulary
matrix. Only N is interpolated; tokens follow from the FLOPs or from the measured speed, so that a plan never breaks its
own budget (interpolating N and D separately is off by up to 4 % in 6ND).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Law:
    """Compute-optimal size N = exp(intercept) C^exponent. `fitted`: the range of C the source measured, FLOPs."""

    name: str
    source: str
    exponent: float
    intercept: float
    fitted: tuple[float, float]

    def parameters(self, flops: float) -> float:
        """N that `flops` (= 6 N D) are best spent on."""
        return math.exp(self.intercept + self.exponent * math.log(flops))

    def tokens(self, flops: float) -> float:
        """D = C / 6N at that optimum."""
        return flops / (6 * self.parameters(flops))

    def extrapolates(self, flops: float) -> bool:
        return not self.fitted[0] <= flops <= self.fitted[1]


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


def regress(name: str, source: str, points: tuple[tuple[float, float], ...], fitted: tuple[float, float]) -> Law:
    """Least squares of ln N on ln C, closed form; the same line inside and outside the table."""
    x = [math.log(flops) for _, flops in points]
    y = [math.log(parameters) for parameters, _ in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return Law(name, source, exponent, mean_y - exponent * mean_x, fitted)


LAWS = {
    law.name: law
    for law in (
        regress("chinchilla-table3", "Hoffmann et al. 2022, Table 3", CHINCHILLA_TABLE_3, CHINCHILLA_BUDGETS),
        regress("chinchilla-a2", "Hoffmann et al. 2022, Table A3", CHINCHILLA_APPROACH_2, CHINCHILLA_BUDGETS),
    )
}

# Porian et al. 2024 (arXiv 2406.19146), measured isoFLOP curves, RefinedWeb and OpenWebText2: at budget C the loss obeys
# ln L = ln L* + curvature (ln N/N*)^2, and the best loss falls as d ln L* / d ln C = -slope. (C, slope, curvature)
PORIAN_CURVES = ((1.25e16, 0.062, 0.100), (1e17, 0.052, 0.062), (3e18, 0.046, 0.042), (2.56e19, 0.043, 0.035))


def loss_curve(flops: float) -> tuple[float, float]:
    """(slope, curvature) at C, interpolated in ln C between the measured budgets and held constant outside them."""
    curves = PORIAN_CURVES
    if flops <= curves[0][0]:
        return curves[0][1:]
    for (c0, s0, k0), (c1, s1, k1) in pairwise(curves):
        if flops <= c1:
            t = math.log(flops / c0) / math.log(c1 / c0)
            return s0 + t * (s1 - s0), k0 + t * (k1 - k0)
    return curves[-1][1:]


def relative_loss(law: Law, parameters: float, tokens: float) -> float:
    """ln of the loss this spending should reach, up to a constant: only differences between shapes mean anything.

    Two terms: less useful compute (6ND) is worse, and so is missing the law's size for that compute.
    """
    flops = 6 * parameters * tokens
    slope, curvature = loss_curve(flops)
    return -slope * math.log(flops) + curvature * math.log(parameters / law.parameters(flops)) ** 2
