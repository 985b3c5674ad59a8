"""Values at or around the plan for a sweep's budget: the meaning of `${plan_relative:NAME}` in sweeps/*.yaml.

The sweeps come from a competition with three hours of an A100, whose published values (24, 18, 12 and 8 layers of width 768)
are far too large for two CPU cores. If the plan is of that size, the published values are used. Otherwise the values stand in
the same proportions to the plan's own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import UserError
from config import EvalConfig
from model.config import PLAIN
from sweeps.engine.job import CONFIG_HEAD, ROOT

# The published shapes are used if the plan has at least this many parameters (counted as the scaling law counts them).
PUBLISHED_FROM = 60e6
PUBLISHED_DEPTHS, PUBLISHED_WIDTH, PUBLISHED_BEST = (8, 12, 18, 24), 768, 18
# From deep and narrow to wide and flat, all with 12 n_layer n_embd^2 near 127M, the value of 18 x 768.
PUBLISHED_SAME = ("41x512", "26x640", "18x768", "10x1024", "7x1280")
PUBLISHED_BATCH, PUBLISHED_BLOCK = 66 * 512, 512
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Evaluated tokens as a share of the planned tokens. This takes 1 % of the time, so jobs that are four times as slow still
# evaluate all of them (eval.max_fraction).
EVALUATED = 1 / 32
LEAST_EVALUATED = 4096
# Of the plan's FLOPs. The largest size is slower than planned and still fits into the hours.
SLICES = (0.125, 0.25, 0.5)

Plan = Mapping[str, Any]


def uses_published_shapes(plan: Plan) -> bool:
    """Whether the budget is large enough for the published shapes."""
    return float(plan["parameters_law"]) >= PUBLISHED_FROM


def depths(plan: Plan) -> list[str]:
    """8/18, 12/18, 18/18 and 24/18 of the planned depth, without duplicates."""
    if uses_published_shapes(plan):
        return [str(layers) for layers in PUBLISHED_DEPTHS]
    base = max(3, int(plan["n_layer"]))  # with fewer, several of the depths would be equal
    layers = [max(1, round(base * depth / PUBLISHED_BEST)) for depth in PUBLISHED_DEPTHS]
    return [str(depth) for depth in dict.fromkeys(layers)]


def planned(key: str, plan: Plan) -> list[str]:
    return [str(plan[key])]


def published_or_planned(published: int, key: str, plan: Plan) -> list[str]:
    return [str(published if uses_published_shapes(plan) else plan[key])]


def layers_only(shapes: Callable[[Plan], list[str]], plan: Plan) -> list[str]:
    return [shape.split("x")[0] for shape in shapes(plan)]


def width_by_depth(shapes: Callable[[Plan], list[str]], plan: Plan) -> list[str]:
    """An interpolation that gives every job the width that belongs to its depth."""
    return [f"${{width_of:{','.join(shapes(plan))}}}"]


def width_depth(plan: Plan) -> list[str]:
    """Shapes with nearly the same 12 n_layer n_embd^2, from deep and narrow to wide and flat; one per depth."""
    if uses_published_shapes(plan):
        return list(PUBLISHED_SAME)
    # For a smaller one, 64 would be the only width.
    base = max(8 * 64**2, int(plan["n_layer"]) * int(plan["n_embd"]) ** 2)
    shapes = [(round(base / width**2), width) for width in range(64, 2049, 64)]
    good = [(layers, width) for layers, width in shapes if layers and abs(layers * width**2 / base - 1) <= 0.15]
    return [f"{layers}x{width}" for layers, width in dict(good).items() if layers <= 64]


def learning_rates(plan: Plan) -> list[str]:
    return [f"{factor * float(plan['learning_rate']):.3g}" for factor in FACTORS]


def batches(plan: Plan) -> list[str]:
    """Batch sizes in tokens, in whole sequences. A smaller batch means more steps for the same number of tokens."""
    block = int(plan["block_size"])
    sequences = [max(1, round(factor * int(plan["batch_tokens"]) / block)) for factor in FACTORS]
    return [str(count * block) for count in dict.fromkeys(sequences)]


def isoflop_budgets(plan: Plan) -> list[str]:
    return [f"{share * float(plan['flops']):.3g}" for share in SLICES]


def isoflop_sizes(plan: Plan) -> list[str]:
    """The planned shape, and those nearest to 1/4, 1/2, 2 and 4 times its n_layer n_embd^2, each with a different depth.

    A size with no shape within a factor of 1.5 is left out."""
    base = int(plan["n_layer"]) * int(plan["n_embd"]) ** 2
    shapes = [
        (layers, width) for width in range(64, 4097, 64) for layers in range(1, 65) if 16 <= width / layers <= 128
    ]
    width_at = {int(plan["n_layer"]): int(plan["n_embd"])}  # by depth
    for factor in (0.25, 4.0, 0.5, 2.0):
        free = [(layers, width) for layers, width in shapes if layers not in width_at]
        distance = {(layers, width): abs(math.log2(layers * width**2 / (factor * base))) for layers, width in free}
        # Among shapes within 15 % of the size, the one nearest to the usual width of 64 per layer is taken.
        best = min(free, key=lambda shape: (max(distance[shape], 0.2), abs(shape[1] / shape[0] - 64)))
        if distance[best] < math.log2(1.5) + 0.01:
            width_at[best[0]] = best[1]
    by_size = sorted(width_at.items(), key=lambda shape: shape[0] * shape[1] ** 2)
    return [f"{layers}x{width}" for layers, width in by_size]


def baseline_depths(plan: Plan) -> list[str]:
    """24 and 18 layers, or 4/3 of the planned depth and the planned depth."""
    if uses_published_shapes(plan):
        return ["24", "18"]
    base = max(3, int(plan["n_layer"]))
    return [str(round(base * 4 / 3)), str(base)]


def block_option(name: str, plan: Plan) -> list[str]:
    return [str(plan["block"][name])]


def eval_tokens(plan: Plan) -> list[str]:
    """A number of validation tokens that every job can afford. Otherwise each job would cut it according to its own speed."""
    tokens = EvalConfig().tokens
    while tokens > max(LEAST_EVALUATED, EVALUATED * float(plan["tokens"])):
        tokens //= 2
    return [str(tokens)]


# Names with a single value. A job's own measurements could choose a slightly different one, so all jobs of a sweep share it.
PLANNED = ("n_layer", "n_embd", "optimizer", "learning_rate", "block_size", "bigram_rows")
FIXED = (*PLANNED, *PLAIN, "batch", "depths_width", "eval_tokens", "baseline_batch", "baseline_block")
VALUES: dict[str, Callable[[Plan], list[str]]] = {
    **{name: partial(planned, name) for name in PLANNED},
    "batch": partial(planned, "batch_tokens"),
    **{name: partial(block_option, name) for name in PLAIN},
    "eval_tokens": eval_tokens,
    "depths": depths,
    "depths_width": partial(published_or_planned, PUBLISHED_WIDTH, "n_embd"),
    "width_depth_layers": partial(layers_only, width_depth),
    "width_depth_widths": partial(width_by_depth, width_depth),
    "learning_rates": learning_rates,
    "batches": batches,
    "isoflop_budgets": isoflop_budgets,
    "isoflop_layers": partial(layers_only, isoflop_sizes),
    "isoflop_widths": partial(width_by_depth, isoflop_sizes),
    "baseline_depths": baseline_depths,
    "baseline_batch": partial(published_or_planned, PUBLISHED_BATCH, "batch_tokens"),
    "baseline_block": partial(published_or_planned, PUBLISHED_BLOCK, "block_size"),
}


def make_plan(yaml: str) -> dict[str, Any]:
    """The plan for a configuration, made by plan.py in its own process, which may need the device for itself.

    Raises UserError with the error lines of plan.py.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sweep.yaml").write_text(CONFIG_HEAD + yaml)
        command = [sys.executable, str(ROOT / "plan.py"), "-cd", folder, "-cn", "sweep", "output=json", "probe=false"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise UserError(
            *(lines or [f"plan.py failed, so the sweep's values cannot be chosen: {done.stderr.strip()[-300:]}"])
        )
    return dict(json.loads(done.stdout))
