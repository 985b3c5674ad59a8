"""What each part of a recipe buys at equal wall clock: leave one out of `modern`, and add one to `classic`.

    python -m bench.quality.ablation ../shared/corpus/slimpajama --at-once      # three quarters of an hour on two idle cores

Every run has the same seconds, all included, and the same validation tokens. A shared machine wanders by more than most parts
buy, and what wanders is how many tokens a run gets to see. So the recipe itself is run again after every third row, whose
order is another with each seed; its runs say what more tokens are worth, and a row is held against them at its own number of
tokens: `per_token`. What a part costs in time is measured apart, steps with it and without it in turn: `step`. The two make
`worse`, nats at equal wall clock. `noise` is the standard deviation of a difference, from the rows that have several seeds.

A run that is finished is not run again, and those that the file holds already stay in it, so that more seeds of some rows
(--seeds 2 3 --only ROW ...) sharpen it. `--at-once`: all seeds at the same time, the cores shared out among them. Writes
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
NORMAL = 1.4826  # standard deviations in a median deviation of normal noise
BETWEEN = 3  # rows from one run of the recipe to the next
ROUNDS = 12  # steps timed of each model
MODERN = ("model=modern", "optim=muon", "schedule=linear", "model.block_size=64")
CLASSIC = ("model=classic", "optim=adamw", "schedule=cosine", "model.block_size=64")

# What is changed, by the command line's own names.
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
    """Arguments of every row, by its name."""
    rows = {"modern": [*MODERN, *sizes], "classic": [*CLASSIC, *sizes]}
    rows |= {f"modern without {name}": [*MODERN, *sizes, *change] for name, change in WITHOUT.items()}
    rows |= {f"modern with {name}": [*MODERN, *sizes, *change] for name, change in OPTIONS.items()}
    rows |= {f"classic with {name}": [*CLASSIC, *sizes, *change] for name, change in WITH.items()}
    return rows


def run_order(rows: dict[str, list[str]], seed: int) -> Iterator[tuple[str, str]]:
    """Names of the runs of a seed, and of the row that each is one of: the recipe, three rows, the recipe, ..., the recipe."""
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
    """What a recipe's loss changes by for e times the tokens, and by row: the loss of each of its runs over what the recipe
    itself would have reached with as many tokens and the same seed, by a line through its own runs."""
    some = [each for each in runs if each["row"].split(" ")[0] == recipe and "loss" in each]
    own = [each for each in some if each["row"] == recipe]
    seeds = sorted({each["seed"] for each in own})

    def features(each: dict[str, Any]) -> list[float]:
        return [math.log(each["tokens"]), *(float(each["seed"] == seed) for seed in seeds)]

    if len(own) <= len(seeds):
        return 0.0, {}
    losses = np.array([each["loss"] for each in own])
    line, *_ = np.linalg.lstsq(np.array([features(each) for each in own]), losses, rcond=None)
    found: dict[str, list[float]] = {}
    for each in some:
        if each["row"] != recipe and each["seed"] in seeds:
            found.setdefault(each["row"], []).append(each["loss"] - float(line @ features(each)))
    return float(line[0]), found


def estimate_noise(differences: dict[str, list[float]]) -> float | None:
    """The standard deviation of one difference, from the rows that have several: by the median, which one run that went
    astray does not move."""
    away = [
        abs(value - statistics.mean(values)) * math.sqrt(len(values) / (len(values) - 1))
        for values in differences.values()
        if len(values) > 1
        for value in values
    ]
    return NORMAL * statistics.median(away) if away else None


def summary(
    runs: list[dict[str, Any]], steps: dict[str, float | None]
) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, float | None]]:
    """Each row's mean loss and how much worse it is than the recipe that it changes; what more tokens are worth to each
    recipe; and the noise of one difference from it. `steps`: by row, how long its step takes, relative to the recipe's."""
    slopes, worse, noise = {}, {}, {}
    for recipe in ("modern", "classic"):
        slopes[recipe], found = differences(runs, recipe)
        noise[recipe] = estimate_noise(found)
        worse |= found
    rows = []
    for row in dict.fromkeys(each["row"] for each in runs):
        own = [each for each in runs if each["row"] == row and "loss" in each]
        if not own:
            continue
        per_token = statistics.mean(worse[row]) if row in worse else None
        step = steps.get(row)
        lost = -slopes[row.split(" ")[0]] * math.log(step) if step else None
        rows.append(
            {
                "name": row,
                "loss": statistics.mean(each["loss"] for each in own),
                "tokens": round(statistics.mean(each["tokens"] for each in own)),
                "runs": len(own),
                "per_token": per_token,
                "step": step,
                "worse": None if per_token is None or lost is None else per_token + lost,
            }
        )
    return rows, slopes, noise


def step_like_run(folder: Path, device: Device) -> Step:
    """A training step as a finished run had it."""
    plan = json.loads((folder / "plan.json").read_text())
    shape = Shape.from_dict(json.loads((folder / "model.json").read_text())["shape"])
    optim = OmegaConf.load(folder / "config.yaml").optim
    settings = OptimSettings(**{each.name: optim[each.name] for each in fields(OptimSettings)})
    settings = replace(settings, name=plan["optimizer"])
    sequences = plan["batch_tokens"] // shape.block_size
    return Step(shape, sequences, settings, device, at_once=device.micro_batch(shape, sequences))


def main() -> None:
    restart_with_train_environment()
    parser = argument_parser(__doc__, corpus=True)
    parser.add_argument("--minutes", type=float, default=1.0, help="of each run, all included")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sizes", nargs="+", default=["model.n_layer=2", "model.n_embd=64"])
    parser.add_argument("--at-once", action="store_true", help="all seeds at the same time")
    parser.add_argument("--only", nargs="+", help="rows to run; default: all")
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
        runs = [each for found in pool.map(runs_of, options.seeds) for each in found]
    steps = relative_step_times(options.place, options.seeds[0], rows, open_device("cpu", threads, "float32", 1.0))
    setting = {"minutes": options.minutes, "sizes": options.sizes, "threads": threads}
    commands = [" ".join(["python -m bench.quality.ablation CORPUS", *map(shlex.quote, sys.argv[2:])])]
    before = read_result(options.output)
    if {key: before.get(key) for key in setting} == setting:
        fresh = {(each["name"], each["seed"]) for each in runs}
        runs = [each for each in before["runs"] if (each["name"], each["seed"]) not in fresh] + runs
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
    """By row: how long its step takes, relative to the recipe's; None for a row that did not run."""
    found: dict[str, float | None] = {}
    for row in rows:
        recipe = row.split(" ")[0]
        if row == recipe:
            continue
        try:
            own = finished_run(place, run_folder_name(f"{recipe} 0", seed))
            changed = finished_run(place, run_folder_name(row, seed))
        except ValueError:
            found[row] = None
            continue
        found[row] = relative_token_time(
            lambda: step_like_run(changed, device), lambda: step_like_run(own, device), ROUNDS
        )  # noqa: B023
    return found


if __name__ == "__main__":
    main()
