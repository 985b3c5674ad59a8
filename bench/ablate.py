"""What each part of a recipe buys at equal wall clock: leave one out of `modern`, and add one to `classic`.

    python -m bench.ablate ../shared/corpus/slimpajama --at-once      # three quarters of an hour on two idle cores

Every run has the same seconds, all included, and the same validation tokens. A shared machine wanders by more than most parts
buy, and the same for all seeds: so the recipe itself is run again after every third row, whose order is another with each
seed, and a row is held against the two runs of its recipe before and after it. `noise` is the standard deviation of such a
difference, from the rows that have several seeds. A run that is finished is not run again. `--at-once`: all seeds at the same
time, the cores shared out among them. Writes bench/results/ablate.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.own import run_for
from run.surroundings import usable_cores

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "ablate.json"
BETWEEN = 3  # rows from one run of the recipe to the next
MODERN = ("model=modern", "optim=muon", "schedule=linear", "model.block_size=64")
CLASSIC = ("model=classic", "optim=adamw", "schedule=cosine", "model.block_size=64")

# What is changed, by the command line's own names.
WITHOUT: dict[str, tuple[str, ...]] = {
    "Muon": ("optim=adamw",),
    "bigram table": ("model.bigram_rows=0",),
    "head of its own": ("model.tie=true",),
    "embedding norm": ("model.embed_norm=false",),
    "x0 shortcut": ("model.x0_shortcut=false",),
    "query and key norm": ("model.qk_norm=false",),
    "zero initialisation": ("model.initialisation=gpt2",),
    "squared ReLU": ("model.activation=gelu",),
    "RMS norm": ("model.norm=layernorm",),
    "rotary positions": ("model.position=learned",),
    "linear to zero": ("schedule=cosine",),
    "short context, scored in its own": ("model.block_size=256",),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "value residual": ("model.value_residual=true",),
    "value embeddings": ("model.value_embeddings=true",),
    "NorMuon": ("optim.normuon=true",),
    "cautious decay": ("optim.cautious=true",),
    "softcap 15": ("model.softcap=15",),
    "documents kept apart": ("model.document_mask=true",),
    "a quarter of the bigram table": ("model.bigram_rows=65536",),
    "four times the bigram table": ("model.bigram_rows=1048576",),
}
WITH: dict[str, tuple[str, ...]] = {
    "Muon": ("optim=muon",),
    "bigram table": ("model.bigram_rows=262144",),
    "head of its own, embedding norm": ("model.tie=false", "model.embed_norm=true"),
    "value residual": ("model.value_residual=true",),
    "value embeddings": ("model.value_embeddings=true",),
    "x0 shortcut": ("model.x0_shortcut=true",),
    "query and key norm": ("model.qk_norm=true",),
    "zero initialisation": ("model.initialisation=zero",),
    "squared ReLU": ("model.activation=relu2",),
    "RMS norm": ("model.norm=rmsnorm",),
    "rotary positions": ("model.position=rotary",),
    "linear to zero": ("schedule=linear",),
}


def rows_of(sizes: list[str]) -> dict[str, list[str]]:
    """Arguments of every row, by its name."""
    rows = {"modern": [*MODERN, *sizes], "classic": [*CLASSIC, *sizes]}
    rows |= {f"modern without {name}": [*MODERN, *sizes, *change] for name, change in WITHOUT.items()}
    rows |= {f"modern with {name}": [*MODERN, *sizes, *change] for name, change in OPTIONS.items()}
    rows |= {f"classic with {name}": [*CLASSIC, *sizes, *change] for name, change in WITH.items()}
    return rows


def order_of(rows: dict[str, list[str]], seed: int) -> Iterator[tuple[str, str]]:
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


def differences(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """By row: the loss of each of its runs less that of its recipe, the mean of the runs before and after it."""
    found: dict[str, list[float]] = {}
    for recipe in ("modern", "classic"):
        for seed in sorted({each["seed"] for each in runs}):
            line = [each for each in runs if each["seed"] == seed and each["row"].split(" ")[0] == recipe]
            places = [at for at, each in enumerate(line) if each["row"] == recipe and "loss" in each]
            for at, each in enumerate(line):
                around = [
                    max((p for p in places if p < at), default=None),
                    min((p for p in places if p > at), default=None),
                ]
                if each["row"] != recipe and "loss" in each and None not in around:
                    base = statistics.mean(line[p]["loss"] for p in around if p is not None)
                    found.setdefault(each["row"], []).append(each["loss"] - base)
    return found


def summary(runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float | None]:
    """Mean loss of each row and its difference from the recipe that it changes; and the noise of one such difference."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for each in runs:
        if "loss" in each:
            by_row.setdefault(each["row"], []).append(each)
    worse = differences(runs)
    squares = [(value - statistics.mean(values)) ** 2 for values in worse.values() for value in values]
    freedom = len(squares) - len(worse)
    noise = math.sqrt(sum(squares) / freedom) if freedom else None
    found = [
        {
            "name": row,
            "loss": statistics.mean(each["loss"] for each in some),
            "worse": statistics.mean(worse[row]) if row in worse else None,
            "tokens": round(statistics.mean(each["tokens"] for each in some)),
            "runs": len(some),
        }
        for row, some in by_row.items()
    ]
    return found, noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder in SlimPajama's layout")
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
    threads = [f"device.threads={max(1, usable_cores() // len(options.seeds))}"] if options.at_once else []

    def runs_of(seed: int) -> list[dict[str, Any]]:
        return [
            run_for(options.minutes, options.place, corpus, name, seed, rows[row] + threads) | {"row": row}
            for name, row in order_of(rows, seed)
        ]

    with ThreadPoolExecutor(len(options.seeds) if options.at_once else 1) as pool:
        runs = [each for found in pool.map(runs_of, options.seeds) for each in found]
    table, noise = summary(runs)
    how = f"python -m bench.ablate CORPUS --minutes {options.minutes:g} --seeds {' '.join(map(str, options.seeds))}"
    how += (
        " --at-once" * options.at_once
        + f" --sizes {' '.join(options.sizes)}"
        + (f" --only {' '.join(map(repr, options.only))}" if options.only else "")
    )
    content = {"how": how, "sizes": options.sizes, "noise": noise, "rows": table, "runs": runs}
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    for row in table:
        worse = "" if row["worse"] is None else f"{row['worse']:+.4f}"
        print(f"{row['name']:<48}{row['loss']:.4f}  {worse:>7}  {row['tokens']:>12,} tokens")
    if noise is not None:
        print(f"noise of one difference: {noise:.4f}")


if __name__ == "__main__":
    main()
