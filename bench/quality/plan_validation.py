"""Is the plan right? A law from two small budgets on this machine chooses a size for a larger one; then five sizes run there.

    make prove-plan CORPUS=../shared/corpus/slimpajama      # about an hour on two idle cores

1. One cell with three seeds: how large is noise?
2. Five sizes at each of two budgets in FLOPs, a factor of two apart; `budget.laws.refit` makes a law of them.
3. `train.py law=local` plans and runs a budget in hours about four times as large as the larger of the two.
4. Four more sizes run for the same hours: half and twice the chosen one, and two between.

Passed when the chosen size is within 1 % of the best loss of the five, and better than half and twice its size; tokens
are within 2 % of the plan's, and the wall clock within 5 % of the budget. Whatever comes out is written down. A run that
is finished is not run again, so that the command can be stopped and typed again.
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
# (layers, width): 70 thousand to 10 million parameters in steps of 1.2 to 2, none of a single wide layer
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
    """N as laws count it."""
    shape = Shape(layers, max(1, width // 64), width, BLOCK, VOCAB, **PRESETS["modern"])
    return shape.matmul_parameters()


def run(place: Path, corpus: str, name: str, *arguments: str) -> Path:
    """The folder of a run of train.py, which is started unless it is finished."""
    options = [
        *(*corpus_options(corpus, TOKENIZER), f"model.block_size={BLOCK}", f"eval.tokens={EVAL_TOKENS}"),
        *("eval.max_fraction=0.3", f"output_dir={place}", f"name={name}", *arguments),
    ]
    print("\n$ train.py", *options, flush=True)
    if run_script("train.py", options, capture=False).returncode:
        sys.exit(f"{name} failed")
    folders = [folder for folder in place.glob(f"{name}-*") if (folder / "result.json").exists()]
    if len(folders) != 1:
        sys.exit(f"{place} holds {len(folders)} runs named {name}: of other settings? Empty it or give another --place")
    return folders[0]


def sized(layers: int, width: int) -> list[str]:
    return [f"model.n_layer={layers}", f"model.n_embd={width}"]


def cell(flops: float, shape: tuple[int, int]) -> list[str]:
    """The arguments of a run that spends `flops` as laws count them, 6ND, so that a slice is one in the fit as well."""
    return [f"budget.tokens={flops / (6 * parameters(*shape)):.6g}", *sized(*shape)]


def slice_of(place: Path, corpus: str, flops: float, centre: int) -> list[Path]:
    """Runs of one budget: SIZES of them around LADDER[centre], more beyond where the best one lies at an edge."""
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
    found = read_run(folder, "loss")
    if isinstance(found, str):
        sys.exit(f"{folder}: {found}")
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """What of a run the proof looks at."""
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
    """Shapes of LADDER nearest to half, 0.7, 1.4 and twice the chosen number of parameters, none twice."""
    shapes: list[tuple[int, int]] = []
    for factor in (0.5, 0.7, 1.4, 2.0):
        target = factor * chosen
        free = [s for s in LADDER if s not in shapes and abs(math.log(parameters(*s) / chosen)) > 0.1]
        shapes.append(min(free, key=lambda s: abs(math.log(parameters(*s) / target))))
    return shapes


def held_out_hours(rows: list[dict[str, Any]], flops: float) -> float:
    """Hours in which a model of the larger slice's best size trains on HELD_OUT times its compute, at the best speed
    that its size reached in the slices."""
    slice_rows = [row for row in rows if abs(math.log(row["flops_6nd"] / flops)) < 0.1]
    best = min(slice_rows, key=lambda row: row["loss"])["parameters_law"]
    speed = max(row["flops_6nd"] / row["training_hours"] for row in rows if row["parameters_law"] == best)
    return round(HELD_OUT * flops / speed, 3)


def verdict(chosen: dict[str, Any], others: list[dict[str, Any]], hours: float) -> dict[str, Any]:
    """Each point of the proof, with its number."""
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
    """What the law was made of, and the held-out runs beside what was predicted."""
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
    parser.add_argument("--flops", type=float, default=2.5e12, help="compute of the larger slice (default: 2.5e12)")
    parser.add_argument("--centre", type=int, default=2, help="index in LADDER of the middle size of the slices")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "prove-plan", help="folder of the runs")
    options = parser.parse_args()
    place, corpus = options.place, options.corpus
    shape = LADDER[options.centre]
    # The default seed's run is the slice's own.
    noise = [run(place, corpus, f"seed{seed}", *cell(options.flops, shape), f"seed={seed}") for seed in OTHER_SEEDS]
    small = slice_of(place, corpus, options.flops / FACTOR, options.centre)
    large = slice_of(place, corpus, options.flops, options.centre)
    folders = small + large + noise
    runs = [finished(folder) for folder in folders]
    found = fit([each.point for each in runs], source=f"{len(runs)} runs of bench.prove_plan")
    print("\n".join(format_fit(found)), flush=True)
    law = place / "law.json"
    refit = [sys.executable, "-m", "budget.laws.refit", *map(str, folders), "--output", str(law)]
    subprocess.run(refit, cwd=ROOT, check=True)
    hours = held_out_hours([outcome(folder) for folder in folders], options.flops)
    # A law made again is another law: what was planned from the old one is not mistaken for its outcome.
    held_out = f"held-out-{hashlib.sha256(law.read_bytes()).hexdigest()[:6]}-{hours}h"
    budget = [f"budget.hours={hours}", "law=local", f"plan.law_file={law}"]
    chosen = outcome(run(place, corpus, f"{held_out}-planned", *budget))
    others = [
        outcome(run(place, corpus, f"{held_out}-{layers}x{width}", *budget, *sized(layers, width)))
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
