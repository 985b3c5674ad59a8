"""Values chosen by or around the plan of a sweep's own budget: what `${plan_relative:WHAT}` in sweeps/*.yaml stands for.

The published values of the competition that these sweeps come from (24, 18, 12 and 8 layers of width 768 and three hours of
an A100) mean nothing on two CPU cores. So where the plan is of that size, they are taken as they are, and elsewhere values
in the same proportions around what the plan chooses.
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
from sweeps.engine.job import HEAD, ROOT

# From so many parameters (as a law counts them) on, the published shapes are within reach of the budget.
PUBLISHED_FROM = 60e6
PUBLISHED_DEPTHS, PUBLISHED_WIDTH, PUBLISHED_BEST = (8, 12, 18, 24), 768, 18
# Wider against deeper at 12 n_layer n_embd^2 = 127M, that of 18 x 768.
PUBLISHED_SAME = ("41x512", "26x640", "18x768", "10x1024", "7x1280")
PUBLISHED_BATCH, PUBLISHED_BLOCK = 66 * 512, 512
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
EVALUATED = (
    1 / 32
)  # of the planned tokens: 1 % of the time, so that jobs four times as slow need not cut it (eval.max_fraction)
LEAST_EVALUATED = 4096
SLICES = (0.125, 0.25, 0.5)  # of the plan's compute: the largest size is slower, and still within the hours

Plan = Mapping[str, Any]


def published(plan: Plan) -> bool:
    """Whether the published shapes suit the budget."""
    return float(plan["parameters_law"]) >= PUBLISHED_FROM


def depths(plan: Plan) -> list[str]:
    """8, 12, 18 and 24 eighteenths of the planned depth, all different."""
    if published(plan):
        return [str(layers) for layers in PUBLISHED_DEPTHS]
    base = max(3, int(plan["n_layer"]))  # of less, the quarters would fall together
    layers = [max(1, round(base * each / PUBLISHED_BEST)) for each in PUBLISHED_DEPTHS]
    return [str(each) for each in dict.fromkeys(layers)]


def depths_width(plan: Plan) -> list[str]:
    return [str(PUBLISHED_WIDTH if published(plan) else plan["n_embd"])]


def layers_of(shapes: Callable[[Plan], list[str]], plan: Plan) -> list[str]:
    return [shape.split("x")[0] for shape in shapes(plan)]


def widths_of(shapes: Callable[[Plan], list[str]], plan: Plan) -> list[str]:
    """What every job finds its own width by, from its depth."""
    return [f"${{width_of:{','.join(shapes(plan))}}}"]


def width_depth(plan: Plan) -> list[str]:
    """Shapes of nearly the same 12 n_layer n_embd^2, from deep and narrow to wide and flat; one of each depth."""
    if published(plan):
        return list(PUBLISHED_SAME)
    base = max(8 * 64**2, int(plan["n_layer"]) * int(plan["n_embd"]) ** 2)  # of less, 64 wide is the only width
    shapes = [(round(base / width**2), width) for width in range(64, 2049, 64)]
    good = [(layers, width) for layers, width in shapes if layers and abs(layers * width**2 / base - 1) <= 0.15]
    return [f"{layers}x{width}" for layers, width in dict(good).items() if layers <= 64]


def learning_rates(plan: Plan) -> list[str]:
    return [f"{factor * float(plan['learning_rate']):.3g}" for factor in FACTORS]


def batches(plan: Plan) -> list[str]:
    """Tokens per step in whole sequences; with as many tokens in all, a smaller batch is more steps."""
    block = int(plan["block_size"])
    sequences = [max(1, round(factor * int(plan["batch_tokens"]) / block)) for factor in FACTORS]
    return [str(each * block) for each in dict.fromkeys(sequences)]


def isoflop_budgets(plan: Plan) -> list[str]:
    return [f"{share * float(plan['flops']):.3g}" for share in SLICES]


def isoflop_sizes(plan: Plan) -> list[str]:
    """The planned shape and those nearest to a quarter, half, twice and four times its blocks, each of another depth; where
    none is within a factor of 1.5, it is left out."""
    base = int(plan["n_layer"]) * int(plan["n_embd"]) ** 2
    shapes = [
        (layers, width) for width in range(64, 4097, 64) for layers in range(1, 65) if 16 <= width / layers <= 128
    ]
    found = {int(plan["n_layer"]): int(plan["n_embd"])}
    for factor in (0.25, 4.0, 0.5, 2.0):
        free = [(layers, width) for layers, width in shapes if layers not in found]
        off = {(layers, width): abs(math.log2(layers * width**2 / (factor * base))) for layers, width in free}
        # Within 15 % of the size, the usual proportions count more than the size.
        best = min(free, key=lambda shape: (max(off[shape], 0.2), abs(shape[1] / shape[0] - 64)))
        if off[best] < math.log2(1.5) + 0.01:
            found[best[0]] = best[1]
    return [f"{layers}x{width}" for layers, width in sorted(found.items(), key=lambda shape: shape[0] * shape[1] ** 2)]


def baseline_depths(plan: Plan) -> list[str]:
    """24 and 18 layers; elsewhere four and three thirds of the planned depth."""
    if published(plan):
        return ["24", "18"]
    base = max(3, int(plan["n_layer"]))
    return [str(round(base * 4 / 3)), str(base)]


def baseline_batch(plan: Plan) -> list[str]:
    return [str(PUBLISHED_BATCH if published(plan) else plan["batch_tokens"])]


def baseline_block(plan: Plan) -> list[str]:
    return [str(PUBLISHED_BLOCK if published(plan) else plan["block_size"])]


def of_the_block(name: str, plan: Plan) -> list[str]:
    return [str(plan["block"][name])]


def eval_tokens(plan: Plan) -> list[str]:
    """So many validation tokens that every job of a sweep can afford them, as each would else cut them to its own speed."""
    tokens = EvalConfig().tokens
    while tokens > max(LEAST_EVALUATED, EVALUATED * float(plan["tokens"])):
        tokens //= 2
    return [str(tokens)]


# One value each: what a job's own measurements would choose a little differently each time is the same in all jobs of a sweep.
FIXED = (
    *("n_layer", "n_embd", "depths_width", "batch", "optimizer", "learning_rate", "block_size", "bigram_rows", *PLAIN),
    *("eval_tokens", "baseline_batch", "baseline_block"),
)
VALUES: dict[str, Callable[[Plan], list[str]]] = {
    "n_layer": lambda plan: [str(plan["n_layer"])],
    "n_embd": lambda plan: [str(plan["n_embd"])],
    "batch": lambda plan: [str(plan["batch_tokens"])],
    "optimizer": lambda plan: [str(plan["optimizer"])],
    "learning_rate": lambda plan: [str(plan["learning_rate"])],
    "block_size": lambda plan: [str(plan["block_size"])],
    "bigram_rows": lambda plan: [str(plan["bigram_rows"])],
    **{name: partial(of_the_block, name) for name in PLAIN},
    "eval_tokens": eval_tokens,
    "depths": depths,
    "depths_width": depths_width,
    "width_depth_layers": partial(layers_of, width_depth),
    "width_depth_widths": partial(widths_of, width_depth),
    "learning_rates": learning_rates,
    "batches": batches,
    "isoflop_budgets": isoflop_budgets,
    "isoflop_layers": partial(layers_of, isoflop_sizes),
    "isoflop_widths": partial(widths_of, isoflop_sizes),
    "baseline_depths": baseline_depths,
    "baseline_batch": baseline_batch,
    "baseline_block": baseline_block,
}


def plan_of(yaml: str) -> dict[str, Any]:
    """The plan of a configuration, from plan.py in a process of its own, which may need the device to itself.

    Raises UserError with what plan.py says.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sweep.yaml").write_text(HEAD + yaml)
        command = [sys.executable, str(ROOT / "plan.py"), "-cd", folder, "-cn", "sweep", "output=json", "probe=false"]
        answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        lines = [line.removeprefix("error: ") for line in answer.stderr.splitlines() if line.startswith("error: ")]
        raise UserError(*(lines or [f"no plan to choose the sweep's values by: {answer.stderr.strip()[-300:]}"]))
    return dict(json.loads(answer.stdout))
