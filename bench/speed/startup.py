"""Benchmark the start-up: the time from the start of the process to the first step, and the steps until steady speed.

    python -m bench.speed.startup      # five minutes; writes bench/results/startup.json

train.py runs on the prepared corpus of Python's standard library, with the plan's trials and without. The figures are medians
of several runs.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.common import RESULTS, TRAIN_ONLY, medians, metrics_of, result_of, train, write_result

RESULT = RESULTS / "startup.json"
REPEATS = 5
HOURS = 0.008
FIXED = ("probe=false", "mfu=0.3", "model.n_layer=1", "model.n_embd=64", "optim.batch_tokens=1024")
VARIANTS = {"measured plan": (), "sizes given, no trials": FIXED}
STEADY = 0.1  # a step is steady if it is at most 10 % longer than the typical one


def measure_start(place: Path, name: str, arguments: tuple[str, ...]) -> dict[str, float]:
    """Run train.py and measure the seconds to the end of the first step and the steps until steady speed."""
    common = (*TRAIN_ONLY, "eval.tokens=4096", f"budget.hours={HOURS}", f"output_dir={place}", f"name={name}")
    train([*common, *arguments])
    folder = next(place.glob(f"{name}-*"))
    times = [3600 * line["hours"] for line in metrics_of(folder) if "loss" in line]
    steps = [after - before for before, after in itertools.pairwise(times)]
    typical = statistics.median(steps)
    steady = next(i for i, seconds in enumerate(steps) if seconds <= (1 + STEADY) * typical)
    result = result_of(folder)
    ledger = result["ledger_s"]
    times = [seconds + result["prepare_s"] for seconds in times]  # finding the prepared corpus is not on the budget
    return {"first_step_s": times[0], "typical_step_s": typical, "steps_to_steady": steady, "setup_s": ledger["setup"]}


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(REPEATS):
            for name, arguments in VARIANTS.items():
                found[name].append(
                    measure_start(Path(folder), f"{'-'.join(name.split()[:2])}-{turn}".replace(",", ""), arguments)
                )
    rows: list[dict[str, Any]] = []
    for name, runs in found.items():
        typical = medians(runs)
        rows.append({"name": name, **typical})
        print(
            f"{name:<24} first step after {typical['first_step_s']:.2f} s, steady after {typical['steps_to_steady']} more"
        )
    write_result(RESULT, {"how": "python -m bench.speed.startup", "hours": HOURS, "runs_each": REPEATS, "rows": rows})


if __name__ == "__main__":
    main()
