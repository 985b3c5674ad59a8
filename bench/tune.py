"""Does the plan choose well? At each budget, what it chose against neighbours in size, batch and learning rate.

    python -m bench.tune ../shared/corpus/slimpajama --minutes 1 3 --at-once      # half an hour on two idle cores

A run as `plan.py` has it, and runs with one of its choices changed, all for the same seconds and scored on the same
validation tokens. A run that is finished is not run again; budgets that are not asked for stay in the file. `--at-once`: as
many runs at the same time as there are cores, each on one, which the plan is then for. `regret` is the
loss of the planned run over that of the best one, in nats: with one seed a row, about 1.5 times the noise of a run is to be
expected of the best of nine by luck alone. Writes bench/results/tune.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.own import ROOT, SCORED, TOKENIZER, run_for
from run.surroundings import usable_cores

RESULT = ROOT / "bench" / "results" / "tune.json"
STEP = 64  # of a width


def plan_for(minutes: float, corpus: str, arguments: list[str]) -> dict[str, Any]:
    """What plan.py says, by speeds measured here and now."""
    command = [
        *(sys.executable, "plan.py", "data=slimpajama", f"data.path={corpus}", f"data.tokenizer={TOKENIZER}"),
        *(*SCORED, f"budget.hours={minutes / 60:.6g}", "probe=true", *arguments, "output=json"),
    ]
    print("$", *command[1:], flush=True)
    plan: dict[str, Any] = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    return plan


def neighbours(plan: dict[str, Any]) -> dict[str, list[str]]:
    """Arguments of each row, by its name; `plan` is a plan.json."""
    layers, width, batch, rate = plan["n_layer"], plan["n_embd"], plan["batch_tokens"], plan["learning_rate"]
    given = {
        "model.size": f"{layers}x{width}",
        "optim.batch_tokens": batch,
        "optim.learning_rate": rate,
        "optim.name": plan["optimizer"],
        "model.block_size": plan["block_size"],
    }
    shapes = [(layers // 2, width), (2 * layers, width), (layers, width - STEP), (layers, width + STEP)]
    shapes.append((2 * layers, width + STEP))
    changes: dict[str, dict[str, Any]] = {"as planned": {}}
    changes |= {f"{n} x {w}": {"model.size": f"{n}x{w}"} for n, w in shapes if n >= 1 and w >= STEP}
    changes |= {f"batch x {f:g}": {"optim.batch_tokens": round(f * batch)} for f in (0.5, 2.0)}
    changes |= {f"learning rate x {f:g}": {"optim.learning_rate": f"{f * rate:.4g}"} for f in (0.5, 2.0)}
    return {name: [f"{key}={value}" for key, value in {**given, **change}.items()] for name, change in changes.items()}


def budget(place: Path, corpus: str, minutes: float, seeds: list[int], at_once: int) -> dict[str, Any]:
    """All rows of one budget, in turns of seeds, so many at the same time."""
    place = place / f"{minutes:g}min"
    threads = ["device.threads=1"] if at_once > 1 else []
    plan = plan_for(minutes, corpus, threads)
    rows = neighbours(plan)
    with ThreadPoolExecutor(at_once) as pool:
        asked = [
            pool.submit(run_for, minutes, place, corpus, name, seed, row + threads)
            for seed in seeds
            for name, row in rows.items()
        ]
        runs = [each.result() for each in asked]
    losses: dict[str, list[float]] = {}
    for each in runs:
        if "loss" in each:
            losses.setdefault(each["name"], []).append(each["loss"])
    means = {name: statistics.mean(values) for name, values in losses.items()}
    best = min(means, key=means.__getitem__)
    print(
        f"{minutes:g} minutes: planned {plan['n_layer']} x {plan['n_embd']}, batch {plan['batch_tokens']:,}, "
        f"rate {plan['learning_rate']}"
    )
    for name, loss in sorted(means.items(), key=lambda item: item[1]):
        print(f"  {name:<24}{loss:.4f}  {loss - means['as planned']:+.4f}")
    return {
        "minutes": minutes,
        "planned": {key: plan[key] for key in ("n_layer", "n_embd", "batch_tokens", "learning_rate", "optimizer")},
        "best": best,
        "regret": means["as planned"] - means[best],
        "losses": means,
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder in SlimPajama's layout")
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[1.0, 3.0, 5.0, 10.0], help="of each run, all included"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "tune", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--at-once", action="store_true", help="a run on each core at the same time")
    options = parser.parse_args()
    corpus = str(Path(options.corpus).resolve())
    at_once = usable_cores() if options.at_once else 1
    budgets = [budget(options.place, corpus, minutes, options.seeds, at_once) for minutes in options.minutes]
    how = f"python -m bench.tune CORPUS --minutes {' '.join(f'{m:g}' for m in options.minutes)}"
    how += f" --seeds {' '.join(map(str, options.seeds))}" + " --at-once" * options.at_once
    if options.output.exists():
        asked = {each["minutes"] for each in budgets}
        budgets += [each for each in json.loads(options.output.read_text())["budgets"] if each["minutes"] not in asked]
    budgets.sort(key=lambda each: float(each["minutes"]))
    options.output.write_text(json.dumps({"how": how, "budgets": budgets}, indent=1) + "\n")


if __name__ == "__main__":
    main()
