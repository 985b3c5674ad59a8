"""What each part of a recipe buys at equal wall clock: leave one out of `modern`, and add one to `classic`.

    python -m bench.ablate ../shared/corpus/slimpajama --minutes 2      # two hours on two idle cores

Every run has the same seconds, all included, and the same validation tokens; seeds take turns, so that a machine that
wanders treats all alike. `noise` is the standard deviation over seeds, pooled over the rows. A run that is finished is not
run again. Writes bench/results/ablate.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from bench.own import run_for

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "ablate.json"
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
    "value embeddings": ("model.value_embeddings=true",),
    "NorMuon": ("optim.normuon=true",),
    "cautious decay": ("optim.cautious=true",),
    "softcap 15": ("model.softcap=15",),
    "documents kept apart": ("model.document_mask=true",),
}
WITH: dict[str, tuple[str, ...]] = {
    "Muon": ("optim=muon",),
    "bigram table": ("model.bigram_rows=65536",),
    "head of its own, embedding norm": ("model.tie=false", "model.embed_norm=true"),
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


def summary(runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float | None]:
    """Mean loss of each row and its difference from the recipe that it changes; and the noise of one run."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for each in runs:
        if "loss" in each:
            by_name.setdefault(each["name"], []).append(each)
    means = {name: statistics.mean(row["loss"] for row in rows) for name, rows in by_name.items()}
    squares = [(row["loss"] - means[name]) ** 2 for name, rows in by_name.items() for row in rows]
    freedom = len(squares) - len(by_name)
    noise = math.sqrt(sum(squares) / freedom) if freedom else None
    found = [
        {
            "name": name,
            "loss": means[name],
            "worse": means[name] - means[base] if (base := name.split(" ")[0]) in means else None,
            "tokens": round(statistics.mean(row["tokens"] for row in rows)),
            "runs": len(rows),
        }
        for name, rows in by_name.items()
    ]
    return found, noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder in SlimPajama's layout")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each run, all included")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sizes", nargs="+", default=["model.n_layer=2", "model.n_embd=128"])
    parser.add_argument("--only", nargs="+", help="rows to run; default: all")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "ablate", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    corpus = str(Path(options.corpus).resolve())
    rows = {name: row for name, row in rows_of(options.sizes).items() if not options.only or name in options.only}
    runs = [
        run_for(options.minutes, options.place, corpus, name, seed, row)
        for seed in options.seeds
        for name, row in rows.items()
    ]
    table, noise = summary(runs)
    how = f"python -m bench.ablate CORPUS --minutes {options.minutes:g} --seeds {' '.join(map(str, options.seeds))}"
    how += f" --sizes {' '.join(options.sizes)}" + (
        f" --only {' '.join(map(repr, options.only))}" if options.only else ""
    )
    content = {"how": how, "sizes": options.sizes, "noise": noise, "rows": table, "runs": runs}
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    for row in table:
        worse = "" if row["worse"] is None else f"{row['worse']:+.4f}"
        print(f"{row['name']:<48}{row['loss']:.4f}  {worse:>7}  {row['tokens']:>12,} tokens")
    if noise is not None:
        print(f"noise of one run: {noise:.4f}")


if __name__ == "__main__":
    main()
