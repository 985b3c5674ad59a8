"""Test the extrapolation of a refitted law: fit the three smallest budgets of published isoFLOP runs, predict a 68 times larger.

    python -m bench.quality.law_extrapolation FILE

FILE: the tuned runs of Porian et al. 2024 (arXiv:2406.19146) as CSV with columns dataset, C, N, D, L. The best size at 3.4e18
FLOPs, from parabolas through all twelve budgets, is 189M parameters on RefinedWeb and 188M on OpenWebText2.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from bench.common import RESULTS, argument_parser, write_result
from budget.laws.fit import Point, fit, group_by_budget

RESULT = RESULTS / "replay.json"
TARGET = 3.4e18
TRUTH = {"RefinedWeb": 189e6, "OpenWebText2": 188e6}
BUDGETS = 3
GOAL = 0.15


def read_points(path: Path) -> dict[str, list[Point]]:
    """The runs by corpus."""
    points: dict[str, list[Point]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            points.setdefault(row["dataset"], []).append(Point(float(row["N"]), float(row["D"]), float(row["L"])))
    return points


def replay(points: list[Point], truth: float) -> dict[str, Any]:
    """Predict the best size at TARGET FLOPs from the smallest budgets and compare it with `truth`."""
    cheap = [point for budget in group_by_budget(points)[:BUDGETS] for point in budget]
    fitted = fit(cheap)
    size = fitted.law.parameters(TARGET)
    return {
        "runs": len(cheap),
        "budgets": [part.flops for part in fitted.slices],
        "best_sizes": [part.parameters for part in fitted.slices],
        "predicted": size,
        "interval_80": fitted.law.interval(TARGET),
        "truth": truth,
        "error": size / truth - 1,
        "free_exponent": fitted.free,
        "flagged_unstable": any("unstable" in warning for warning in fitted.warnings),
        "whole_curve": math.exp(fit(points).law.intercept) * TARGET ** fit(points).law.exponent,
        "goal_met": abs(size / truth - 1) <= GOAL,
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("path", type=Path, metavar="FILE")
    path = parser.parse_args().path
    if not path.exists():
        print(f"skipped: {path} does not exist")
        return
    points = read_points(path)
    content = {"how": "python -m bench.quality.law_extrapolation FILE", "target_flops": TARGET}
    content |= {name: replay(points[name], truth) for name, truth in TRUTH.items()}
    write_result(RESULT, content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
