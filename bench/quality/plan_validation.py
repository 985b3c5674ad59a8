"""Validate the plan: fit a law to two small budgets on this machine, let it choose a size for a larger one, and compare sizes.

    make prove-plan CORPUS=FOLDER      # about an hour on two idle cores

1. One configuration runs with three seeds, to measure the noise.
2. Five sizes run at each of two budgets in FLOPs, a factor of two apart; `budget.laws.refit` fits a law to them.
3. `train.py law=local` plans and runs a budget in hours with about four times the FLOPs of the larger of the two.
4. Four more sizes run for the same hours: half and twice the chosen size, and two in between.

The plan passes if the chosen size is within 1 % of the best loss of the five and better than half and twice the size, the
tokens are within 2 % of the plan's, and the wall clock is within 5 % of the budget. The result is written in any case.
Finished runs are not run again, so the command can be stopped and repeated.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT, argument_parser, corpus_options, result_of, run_script, write_result
from budget.laws.fit import Fit, fit
from budget.laws.refit import FinishedRun, draw_slices, format_fit, read_run
from model.config import PRESETS, Shape, padded_vocab

RESULT = RESULTS / "prove_plan.json"
PICTURE = ROOT / "docs" / "prove_plan.png"
TOKENIZER, VOCAB, BLOCK = "bytes", padded_vocab(257), 256
EVAL_TOKENS = 131072  # the same in every run, so that losses can be compared
# (layers, width): 70 thousand to 10 million parameters in steps of a factor of 1.2 to 2, without single wide layers
LADDER = (
    *((1, 64), (2, 64), (3, 64), (4, 64), (2, 128), (3, 128), (4, 128), (3, 192), (4, 192), (4, 256), (6, 256)),
    *((6, 320), (6, 384)),
)
SIZES = 5
MOST_SIZES = 8
OTHER_SEEDS = (1, 2)
FACTOR = 2.0  # between the slices
HELD_OUT = 4.0  # times the larger slice's compute


def parameters(layers: int, width: int) -> int:
    """The number of parameters N as the scaling laws count it."""
    shape = Shape(layers, max(1, width // 64), width, BLOCK, VOCAB, **PRESETS["modern"])
    return shape.matmul_parameters()


def run(place: Path, corpus: str, name: str, *arguments: str) -> Path:
    """Run train.py, unless that run is finished, and return the run's folder."""
    options = [
        *(*corpus_options(corpus, TOKENIZER), f"model.block_size={BLOCK}", f"eval.tokens={EVAL_TOKENS}"),
        *("eval.max_fraction=0.3", f"output_dir={place}", f"name={name}", *arguments),
    ]
    print("\n$ train.py", *options, flush=True)
    if run_script("train.py", options, capture=False).returncode:
        sys.exit(f"{name} failed")
    folders = [folder for folder in place.glob(f"{name}-*") if (folder / "result.json").exists()]
    if len(folders) != 1:
        sys.exit(
            f"{place} has {len(folders)} runs named {name}, perhaps with other settings; empty it or use another --place"
        )
    return folders[0]


def size_options(layers: int, width: int) -> list[str]:
    """The options for a size."""
    return [f"model.n_layer={layers}", f"model.n_embd={width}"]


def cell(flops: float, shape: tuple[int, int]) -> list[str]:
    """The options of a run that spends `flops`, counted as 6ND, so that the fit sees the runs of a slice as one slice."""
    return [f"budget.tokens={flops / (6 * parameters(*shape)):.6g}", *size_options(*shape)]


def run_slice(place: Path, corpus: str, flops: float, centre: int) -> list[Path]:
    """Run SIZES sizes around LADDER[centre] at one budget, and more if the best one is at an edge. Returns their folders."""
    low = max(0, min(centre - SIZES // 2, len(LADDER) - SIZES))
    high = low + SIZES - 1
    folders: dict[int, Path] = {}
    while True:
        for i in range(low, high + 1):
            if i not in folders:
                name = f"c{flops:.3g}-{LADDER[i][0]}x{LADDER[i][1]}".replace("+", "")
                folders[i] = run(place, corpus, name, *cell(flops, LADDER[i]))
        best = min(folders, key=lambda i: finished(folders[i]).point.loss)
        if len(folders) >= MOST_SIZES:
            break
        if best == low and low > 0:
            low -= 1
        elif best == high and high < len(LADDER) - 1:
            high += 1
        else:
            break
    return list(folders.values())


def finished(folder: Path) -> FinishedRun:
    """Read a finished run. Exits with the reason if it cannot be used for a law."""
    run = read_run(folder, "loss")
    if isinstance(run, str):
        sys.exit(f"{folder}: {run}")
    return run


def outcome(folder: Path) -> dict[str, Any]:
    """The figures of a run in the result."""
    result = result_of(folder)
    keys = ("n_layer", "n_embd", "parameters_law")
    return {
        "name": result["name"],
        **{key: result["model"][key] for key in keys},
        "tokens": result["spent"]["tokens"],
        "planned_tokens": result["plan"]["predicted_tokens"],
        "flops_6nd": result["spent"]["flops_6nd"],
        "hours": result["spent"]["hours"],
        "training_hours": result["spent"]["training_hours"],
        "why_off": result["plan"].get("why_off", []),
        "overshoot_s": result["spent"]["overshoot_s"],
        "predicted_loss": result["plan"]["predicted_loss"],
        "loss": result["eval"]["loss"],
        "loss_se": result["eval"]["loss_se"],
        "bits_per_byte": result["eval"]["bits_per_byte"],
    }


def rivals(chosen: int) -> list[tuple[int, int]]:
    """The shapes in LADDER nearest to 0.5, 0.7, 1.4 and 2 times the chosen number of parameters, all different."""
    shapes: list[tuple[int, int]] = []
    for factor in (0.5, 0.7, 1.4, 2.0):
        target = factor * chosen
        free = [s for s in LADDER if s not in shapes and abs(math.log(parameters(*s) / chosen)) > 0.1]
        shapes.append(min(free, key=lambda s: abs(math.log(parameters(*s) / target))))
    return shapes


def held_out_hours(rows: list[dict[str, Any]], flops: float) -> float:
    """Hours in which the best size of the larger slice spends HELD_OUT times its FLOPs, at that size's best speed."""
    slice_rows = [row for row in rows if abs(math.log(row["flops_6nd"] / flops)) < 0.1]
    best = min(slice_rows, key=lambda row: row["loss"])["parameters_law"]
    speed = max(row["flops_6nd"] / row["training_hours"] for row in rows if row["parameters_law"] == best)
    return round(HELD_OUT * flops / speed, 3)


def verdict(chosen: dict[str, Any], others: list[dict[str, Any]], hours: float) -> dict[str, Any]:
    """The criteria and whether each is met."""
    best = min([chosen, *others], key=lambda row: row["loss"])
    smaller = [row for row in others if row["parameters_law"] <= 0.6 * chosen["parameters_law"]]
    larger = [row for row in others if row["parameters_law"] >= 1.7 * chosen["parameters_law"]]
    tokens, clock = chosen["tokens"] / chosen["planned_tokens"] - 1, chosen["hours"] / hours - 1
    return {
        "above_the_best": chosen["loss"] / best["loss"] - 1,
        "within_1_percent": chosen["loss"] <= 1.01 * best["loss"],
        "better_than_half_and_twice": all(chosen["loss"] < row["loss"] for row in smaller + larger)
        and bool(smaller)
        and bool(larger),
        "tokens_off": tokens,
        "tokens_within_2_percent": abs(tokens) <= 0.02,
        "clock_off": clock,
        "clock_within_5_percent": abs(clock) <= 0.05,
        "predicted_loss_off": chosen["loss"] / chosen["predicted_loss"] - 1 if chosen["predicted_loss"] else None,
    }


def picture(found: Fit, chosen: dict[str, Any], others: list[dict[str, Any]], hours: float) -> None:
    """Draw the slices of the law, and the held-out runs with the prediction."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_slices(left, found, "loss")
    rows = sorted([chosen, *others], key=lambda row: row["parameters_law"])
    sizes, losses = [row["parameters_law"] for row in rows], [row["loss"] for row in rows]
    best = min(losses)
    right.axhspan(best, 1.01 * best, color="#16a34a", alpha=0.13, linewidth=0, label="within 1 % of the best")
    right.plot(sizes, losses, marker="o", color="C0", label=f"{hours:g} hours each")
    right.plot(chosen["parameters_law"], chosen["loss"], marker="*", markersize=16, color="#f97316", linestyle="none",
               label="the planner's choice")  # fmt: skip
    if chosen["predicted_loss"]:
        right.axhline(chosen["predicted_loss"], color="0.4", linestyle="--", lw=1, label="predicted for the choice")
    right.set(xscale="log", xlabel="parameters (blocks + one vocabulary matrix)", ylabel="loss")
    right.set_title("The held-out budget")
    right.legend(fontsize=8)
    right.grid(alpha=0.2)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argument_parser(__doc__, corpus=True)
    parser.add_argument("--flops", type=float, default=2.5e12, help="FLOPs of the larger slice (default: 2.5e12)")
    parser.add_argument("--centre", type=int, default=2, help="index in LADDER of the middle size of the slices")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "prove-plan", help="folder of the runs")
    options = parser.parse_args()
    place, corpus = options.place, options.corpus
    shape = LADDER[options.centre]
    # The run with the default seed is part of the slice.
    noise = [run(place, corpus, f"seed{seed}", *cell(options.flops, shape), f"seed={seed}") for seed in OTHER_SEEDS]
    small = run_slice(place, corpus, options.flops / FACTOR, options.centre)
    large = run_slice(place, corpus, options.flops, options.centre)
    folders = small + large + noise
    runs = [finished(folder) for folder in folders]
    found = fit([done.point for done in runs], source=f"{len(runs)} runs of bench.quality.plan_validation")
    print("\n".join(format_fit(found)), flush=True)
    law = place / "law.json"
    refit = [sys.executable, "-m", "budget.laws.refit", *map(str, folders), "--output", str(law)]
    subprocess.run(refit, cwd=ROOT, check=True)
    hours = held_out_hours([outcome(folder) for folder in folders], options.flops)
    # The name contains a hash of the law, so that runs planned with an earlier law are not mistaken for runs with this one.
    held_out = f"held-out-{hashlib.sha256(law.read_bytes()).hexdigest()[:6]}-{hours}h"
    budget = [f"budget.hours={hours}", "law=local", f"plan.law_file={law}"]
    chosen = outcome(run(place, corpus, f"{held_out}-planned", *budget))
    others = [
        outcome(run(place, corpus, f"{held_out}-{layers}x{width}", *budget, *size_options(layers, width)))
        for layers, width in rivals(chosen["parameters_law"])
    ]
    content = {
        "how": f"make prove-plan CORPUS=FOLDER ARGS='--flops {options.flops:g} --centre {options.centre}'",
        "corpus": runs[0].corpus,
        "held_out_hours": hours,
        "noise_of_ln_loss": found.law.noise,
        "law": {"exponent": found.law.exponent, "intercept": found.law.intercept, "warnings": found.warnings},
        "slices": [
            {"flops": s.flops, "best": s.parameters, "loss": s.loss, "curvature": s.curvature, "refused": s.refused}
            for s in found.slices
        ],
        "verdict": verdict(chosen, others, hours),
        "chosen": chosen,
        "others": others,
        "runs": [outcome(folder) for folder in folders],
    }
    write_result(RESULT, content)
    picture(found, chosen, others, hours)
    print(json.dumps(content["verdict"], indent=1))


if __name__ == "__main__":
    main()
