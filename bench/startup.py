"""From the start of the process to the first step, and from there to steady speed.

    python -m bench.startup      # five minutes; writes bench/results/startup.json

Runs of train.py on the embedded corpus, prepared beforehand, with the plan's trials and without; medians of several.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "startup.json"
REPEATS = 5
HOURS = 0.008
FIXED = ("probe=false", "mfu=0.3", "model.n_layer=1", "model.n_embd=64", "optim.batch_tokens=1024")
VARIANTS = {"measured plan": (), "sizes given, no trials": FIXED}
STEADY = 0.1  # of the typical step's length above it


def start_of(place: Path, name: str, arguments: tuple[str, ...]) -> dict[str, float]:
    """Seconds from the process' start to the end of its first step, and steps until they are as short as most are."""
    common = ("eval.every=0", "eval.tokens=4096", f"budget.hours={HOURS}", f"output_dir={place}")
    command = [sys.executable, "train.py", *common, f"name={name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    folder = next(place.glob(f"{name}-*"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [3600 * line["hours"] for line in lines if "loss" in line]
    steps = [after - before for before, after in itertools.pairwise(times)]
    typical = statistics.median(steps)
    steady = next(i for i, seconds in enumerate(steps) if seconds <= (1 + STEADY) * typical)
    result = json.loads((folder / "result.json").read_text())
    ledger = result["ledger_s"]
    times = [each + result["prepare_s"] for each in times]  # finding the prepared corpus, which is not on the budget
    return {"first_step_s": times[0], "typical_step_s": typical, "steps_to_steady": steady, "setup_s": ledger["setup"]}


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(REPEATS):
            for name, arguments in VARIANTS.items():
                found[name].append(
                    start_of(Path(folder), f"{'-'.join(name.split()[:2])}-{turn}".replace(",", ""), arguments)
                )
    rows: list[dict[str, Any]] = []
    for name, runs in found.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append({"name": name, **medians})
        print(
            f"{name:<24} first step after {medians['first_step_s']:.2f} s, steady after {medians['steps_to_steady']} more"
        )
    RESULT.write_text(
        json.dumps({"how": "python -m bench.startup", "hours": HOURS, "runs_each": REPEATS, "rows": rows}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
