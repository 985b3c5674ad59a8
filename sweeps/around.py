"""Values chosen by or around the plan of a sweep's own budget: what `${around:WHAT}` in sweeps/*.yaml stands for.

The published values of the competition that these sweeps come from (24, 18, 12 and 8 layers of width 768 and three hours of
an A100) mean nothing on two CPU cores. So where the plan is of that size, they are taken as they are, and elsewhere values
in the same proportions around what the plan chooses.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from config import EvalConfig
from errors import UserError
from model.shape import PLAIN
from sweeps.jobs import HEAD, ROOT

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
    """The planned width with 8, 12, 18 and 24 eighteenths of the planned depth, all different."""
    if published(plan):
        return [f"{layers}x{PUBLISHED_WIDTH}" for layers in PUBLISHED_DEPTHS]
    base = max(3, int(plan["n_layer"]))  # of less, the quarters would fall together
    layers = [max(1, round(base * each / PUBLISHED_BEST)) for each in PUBLISHED_DEPTHS]
    return [f"{each}x{plan['n_embd']}" for each in dict.fromkeys(layers)]


def width_depth(plan: Plan) -> list[str]:
    """Shapes of nearly the same 12 n_layer n_embd^2, from deep and narrow to wide and flat."""
    if published(plan):
        return list(PUBLISHED_SAME)
    base = max(8 * 64**2, int(plan["n_layer"]) * int(plan["n_embd"]) ** 2)  # of less, 64 wide is the only width
    shapes = [(round(base / width**2), width) for width in range(64, 2049, 64)]
    good = [(layers, width) for layers, width in shapes if layers and abs(layers * width**2 / base - 1) <= 0.15]
    return [f"{layers}x{width}" for layers, width in good if layers <= 64]


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
    """Five shapes of about a quarter to four times the planned blocks, each a factor of two from the next."""
    base = int(plan["n_layer"]) * int(plan["n_embd"]) ** 2
    found = []
    for factor in FACTORS:
        shapes = [
            (layers, width) for width in range(64, 4097, 64) for layers in range(1, 65) if 16 <= width / layers <= 128
        ]
        best = min(shapes, key=lambda s: (abs(s[0] * s[1] ** 2 / (factor * base) - 1), abs(s[1] / s[0] - 64)))
        found.append(f"{best[0]}x{best[1]}")
    return list(dict.fromkeys(found))


def baseline_sizes(plan: Plan) -> list[str]:
    """24 and 18 layers; elsewhere four and three thirds of the planned depth."""
    if published(plan):
        return ["24x768", "18x768"]
    base = max(3, int(plan["n_layer"]))
    return [f"{round(base * 4 / 3)}x{plan['n_embd']}", f"{base}x{plan['n_embd']}"]


def baseline_batch(plan: Plan) -> list[str]:
    return [str(PUBLISHED_BATCH if published(plan) else plan["batch_tokens"])]


def baseline_block(plan: Plan) -> list[str]:
    return [str(PUBLISHED_BLOCK if published(plan) else plan["block_size"])]


def of_the_block(knob: str, plan: Plan) -> list[str]:
    return [str(plan["block"][knob])]


def eval_tokens(plan: Plan) -> list[str]:
    """So many validation tokens that every job of a sweep can afford them, as each would else cut them to its own speed."""
    tokens = EvalConfig().tokens
    while tokens > max(LEAST_EVALUATED, EVALUATED * float(plan["tokens"])):
        tokens //= 2
    return [str(tokens)]


# One value each: what a job's own measurements would choose a little differently each time is the same in all jobs of a sweep.
FIXED = (
    *("size", "batch", "optimizer", "learning_rate", "block_size", "bigram_rows", *PLAIN),
    *("eval_tokens", "baseline_batch", "baseline_block"),
)
VALUES: dict[str, Callable[[Plan], list[str]]] = {
    "size": lambda plan: [f"{plan['n_layer']}x{plan['n_embd']}"],
    "batch": lambda plan: [str(plan["batch_tokens"])],
    "optimizer": lambda plan: [str(plan["optimizer"])],
    "learning_rate": lambda plan: [str(plan["learning_rate"])],
    "block_size": lambda plan: [str(plan["block_size"])],
    "bigram_rows": lambda plan: [str(plan["bigram_rows"])],
    **{knob: partial(of_the_block, knob) for knob in PLAIN},
    "eval_tokens": eval_tokens,
    "depths": depths,
    "width_depth": width_depth,
    "learning_rates": learning_rates,
    "batches": batches,
    "isoflop_budgets": isoflop_budgets,
    "isoflop_sizes": isoflop_sizes,
    "baseline_sizes": baseline_sizes,
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
