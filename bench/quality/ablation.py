"""Ablation at equal wall clock: leave one part out of `modern`, and add one part to `classic`.

    python -m bench.quality.ablation CORPUS --at-once      # 45 minutes on two idle cores

Every run has the same time, start-up included, and the same validation tokens. The speed of a shared machine, and so the number
of tokens of a run, varies by more than most parts gain. So the unchanged recipe is run again after every third row, in an
order that differs between seeds. Its runs give the loss as a function of the tokens, and a row is compared with it at the
row's own number of tokens: `per_token`. The cost of a part in time is measured separately, with alternating steps with and
without it: `step`. Both together give `worse`, in nats at equal wall clock. `noise` is the standard deviation of a difference,
from the rows with several seeds.

Finished runs are not run again, and runs in the result file are kept, so more seeds of some rows (--seeds 2 3 --only ROW ...)
improve the result. `--at-once` runs all seeds at the same time and divides the cores among them. Writes
bench/results/ablate.json.
"""

from __future__ import annotations

import json
import math
import random
import shlex
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from bench.common import RESULTS, ROOT, argument_parser, read_result, write_result
from bench.peers.stint_run import (
    finished_run,
    hours_option,
    restart_with_train_environment,
    run_folder_name,
    run_with_budget,
)
from bench.speed.train_step import Step, relative_token_time
from common.cpu import usable_cores
from device.device import Device, open_device
from model.config import Shape
from model.optim.settings import OptimSettings
from run.report.console import Console

RESULT = RESULTS / "ablate.json"
NORMAL = 1.4826  # standard deviation / median absolute deviation of a normal distribution
BETWEEN = 3  # rows between two runs of the recipe
ROUNDS = 12  # steps timed of each model
MODERN = ("model=modern", "optim=muon", "schedule=linear", "model.block_size=64")
CLASSIC = ("model=classic", "optim=adamw", "schedule=cosine", "model.block_size=64")

# The changed options of each row.
WITHOUT: dict[str, tuple[str, ...]] = {
    "Muon": ("optim=adamw",),
    "bigram embedding": ("model.bigram_rows=0",),
    "untied head": ("model.tie=true",),
    "embedding norm": ("model.embed_norm=false",),
    "x0 shortcut": ("model.x0_shortcut=false",),
    "query and key norm": ("model.qk_norm=false",),
    "zero initialisation": ("model.initialisation=gpt2",),
    "squared ReLU": ("model.activation=gelu",),
    "RMS norm": ("model.norm=layernorm",),
    "rotary positions": ("model.position=learned",),
    "linear schedule": ("schedule=cosine",),
    "short context": ("model.block_size=256",),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "value embeddings": ("model.value_embeddings=true",),
    "NorMuon": ("optim.normuon=true",),
    "cautious decay": ("optim.cautious=true",),
    "softcap 15": ("model.softcap=15",),
    "document mask": ("model.document_mask=true",),
    "a quarter of the bigram rows": ("model.bigram_rows=65536",),
    "four times the bigram rows": ("model.bigram_rows=1048576",),
}
WITH: dict[str, tuple[str, ...]] = {
    "Muon": ("optim=muon",),
    "bigram embedding": ("model.bigram_rows=262144",),
    "untied head and embedding norm": ("model.tie=false", "model.embed_norm=true"),
    "value embeddings": ("model.value_embeddings=true",),
    "x0 shortcut": ("model.x0_shortcut=true",),
    "query and key norm": ("model.qk_norm=true",),
    "zero initialisation": ("model.initialisation=zero",),
    "squared ReLU": ("model.activation=relu2",),
    "RMS norm": ("model.norm=rmsnorm",),
    "rotary positions": ("model.position=rotary",),
    "linear schedule": ("schedule=linear",),
}


def rows_of(sizes: list[str]) -> dict[str, list[str]]:
    """The options of every row, by name."""
    rows = {"modern": [*MODERN, *sizes], "classic": [*CLASSIC, *sizes]}
    rows |= {f"modern without {name}": [*MODERN, *sizes, *change] for name, change in WITHOUT.items()}
    rows |= {f"modern with {name}": [*MODERN, *sizes, *change] for name, change in OPTIONS.items()}
    rows |= {f"classic with {name}": [*CLASSIC, *sizes, *change] for name, change in WITH.items()}
    return rows


def run_order(rows: dict[str, list[str]], seed: int) -> Iterator[tuple[str, str]]:
    """The (name of the run, name of its row) of a seed, in order: the recipe, three rows, the recipe, ..., the recipe."""
    for recipe in ("modern", "classic"):
        changed = [name for name in rows if name.startswith(f"{recipe} ")]
        random.Random(seed).shuffle(changed)
        for at, name in enumerate(changed):
            if at % BETWEEN == 0:
                yield f"{recipe} {at // BETWEEN}", recipe
            yield name, name
        if changed:
            yield f"{recipe} end", recipe


def differences(runs: list[dict[str, Any]], recipe: str) -> tuple[float, dict[str, list[float]]]:
    """The slope of a recipe's loss against ln tokens, and the differences of each row from the recipe.

    A difference is the loss of a run minus the loss that the recipe would reach with as many tokens and the same seed,
    according to a line through the recipe's own runs."""
    finished = [run for run in runs if run["row"].split(" ")[0] == recipe and "loss" in run]
    own = [run for run in finished if run["row"] == recipe]
    seeds = sorted({run["seed"] for run in own})

    def features(run: dict[str, Any]) -> list[float]:
        return [math.log(run["tokens"]), *(float(run["seed"] == seed) for seed in seeds)]

    if len(own) <= len(seeds):
        return 0.0, {}
    losses = np.array([run["loss"] for run in own])
    line, *_ = np.linalg.lstsq(np.array([features(run) for run in own]), losses, rcond=None)
    by_row: dict[str, list[float]] = {}
    for run in finished:
        if run["row"] != recipe and run["seed"] in seeds:
            by_row.setdefault(run["row"], []).append(run["loss"] - float(line @ features(run)))
    return float(line[0]), by_row


def estimate_noise(differences: dict[str, list[float]]) -> float | None:
    """The standard deviation of one difference, from the rows with several. The median makes it robust against outliers."""
    deviations = [
        abs(value - statistics.mean(values)) * math.sqrt(len(values) / (len(values) - 1))
        for values in differences.values()
        if len(values) > 1
        for value in values
    ]
    return NORMAL * statistics.median(deviations) if deviations else None


def summary(
    runs: list[dict[str, Any]], steps: dict[str, float | None]
) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, float | None]]:
    """The table of rows, and for each recipe the slope of its loss against ln tokens and the noise of one difference.

    `steps`: by row, the time of its step relative to the recipe's."""
    slopes, worse, noise = {}, {}, {}
    for recipe in ("modern", "classic"):
        slopes[recipe], by_row = differences(runs, recipe)
        noise[recipe] = estimate_noise(by_row)
        worse |= by_row
    rows = []
    for row in dict.fromkeys(run["row"] for run in runs):
        own = [run for run in runs if run["row"] == row and "loss" in run]
        if not own:
            continue
        per_token = statistics.mean(worse[row]) if row in worse else None
        step = steps.get(row)
        lost = -slopes[row.split(" ")[0]] * math.log(step) if step else None
        rows.append(
            {
                "name": row,
                "loss": statistics.mean(run["loss"] for run in own),
                "tokens": round(statistics.mean(run["tokens"] for run in own)),
                "runs": len(own),
                "per_token": per_token,
                "step": step,
                "worse": None if per_token is None or lost is None else per_token + lost,
            }
        )
    return rows, slopes, noise


def step_like_run(folder: Path, device: Device) -> Step:
    """A training step with the shape, batch and optimizer settings of a finished run."""
    plan = json.loads((folder / "plan.json").read_text())
    shape = Shape.from_dict(json.loads((folder / "model.json").read_text())["shape"])
    optim = OmegaConf.load(folder / "config.yaml").optim
    settings = OptimSettings(**{field.name: optim[field.name] for field in fields(OptimSettings)})
    settings = replace(settings, name=plan["optimizer"])
    sequences = plan["batch_tokens"] // shape.block_size
    return Step(shape, sequences, settings, device, at_once=device.micro_batch(shape, sequences))


def main() -> None:
    restart_with_train_environment()
    parser = argument_parser(__doc__, corpus=True)
    parser.add_argument("--minutes", type=float, default=1.0, help="time of each run, start-up included")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sizes", nargs="+", default=["model.n_layer=2", "model.n_embd=64"])
    parser.add_argument("--at-once", action="store_true", help="all seeds at the same time")
    parser.add_argument("--only", nargs="+", help="rows to run (default: all)")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "ablate", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    corpus = str(Path(options.corpus).resolve())
    rows = rows_of(options.sizes)
    rows = {name: row for name, row in rows.items() if not options.only or name in (*options.only, "modern", "classic")}
    threads = max(1, usable_cores() // len(options.seeds)) if options.at_once else usable_cores()

    budget = hours_option(options.minutes)

    def runs_of(seed: int) -> list[dict[str, Any]]:
        return [
            run_with_budget(budget, options.place, corpus, name, seed, [*rows[row], f"device.threads={threads}"])
            | {"row": row}
            for name, row in run_order(rows, seed)
        ]

    with ThreadPoolExecutor(len(options.seeds) if options.at_once else 1) as pool:
        runs = [run for of_seed in pool.map(runs_of, options.seeds) for run in of_seed]
    steps = relative_step_times(options.place, options.seeds[0], rows, open_device("cpu", threads, "float32", 1.0))
    setting = {"minutes": options.minutes, "sizes": options.sizes, "threads": threads}
    commands = [" ".join(["python -m bench.quality.ablation CORPUS", *map(shlex.quote, sys.argv[2:])])]
    before = read_result(options.output)
    if {key: before.get(key) for key in setting} == setting:
        new = {(run["name"], run["seed"]) for run in runs}
        runs = [run for run in before["runs"] if (run["name"], run["seed"]) not in new] + runs
        steps = {row["name"]: row["step"] for row in before["rows"]} | {row: s for row, s in steps.items() if s}
        commands = list(dict.fromkeys([*before["how"].split("; "), *commands]))
    table, slopes, noise = summary(runs, steps)
    content = {"how": "; ".join(commands), **setting, "slopes": slopes, "noise": noise, "rows": table, "runs": runs}
    write_result(options.output, content)
    forms = {"loss": "{:.4f}", "per_token": "{:+.4f}", "worse": "{:+.4f}", "step": "{:.3f}"}
    rows = [
        (row["name"], *("-" if row[key] is None else form.format(row[key]) for key, form in forms.items()))
        for row in table
    ]
    Console().table("", ["row", "loss", "per token", "worse", "step"], rows)
    for recipe, deviation in noise.items():
        if deviation is not None:
            print(f"noise of one difference from {recipe}: {deviation:.4f}")


def relative_step_times(place: Path, seed: int, rows: dict[str, list[str]], device: Device) -> dict[str, float | None]:
    """The time of each row's step relative to the recipe's; None for a row that did not run."""
    times: dict[str, float | None] = {}
    for row in rows:
        recipe = row.split(" ")[0]
        if row == recipe:
            continue
        try:
            own = finished_run(place, run_folder_name(f"{recipe} 0", seed))
            changed = finished_run(place, run_folder_name(row, seed))
        except ValueError:
            times[row] = None
            continue
        steps = partial(step_like_run, changed, device), partial(step_like_run, own, device)
        times[row] = relative_token_time(*steps, ROUNDS)
    return times


if __name__ == "__main__":
    main()
