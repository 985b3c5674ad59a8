"""All sweeps of sweeps/ on a small budget, and what each of them says: python -m bench.sweeps FOLDER

FOLDER: a corpus in SlimPajama's layout. Some 40 jobs of half a minute on two cores; typed again, it goes on. The pages are
in outputs/cpu/sweeps/NAME/report.html; bench/results/sweeps.json has their tables and verdicts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sweeps.report import write
from sweeps.table import read_sweep, verdict

ROOT = Path(__file__).parents[1]
RESULT, PLACE = ROOT / "bench" / "results" / "sweeps.json", Path("outputs/cpu")
# That of the seeds first: the others take their noise from it.
NAMES = ("seeds", "size", "width_depth", "batch", "dropout", "learning_rate", "schedule", "isoflop", "baselines")
FIGURES = {
    "loss": ("eval", "loss"),
    "tokens": ("spent", "tokens"),
    "tokens_per_second": ("throughput", "tokens_per_second"),
}


def swept(name: str, corpus: str, hours: float) -> dict[str, Any]:
    """Run it, or what is left of it, and read its table."""
    knobs = [
        f"budget.hours={hours}",
        "data=slimpajama",
        f"data.path={corpus}",
        "data.tokenizer=bpe-4096",
        f"output_dir={PLACE}",
    ]
    command = [sys.executable, "train.py", "-cd", "sweeps", "-cn", name, *knobs]
    status = subprocess.run(command, cwd=ROOT).returncode
    folder = ROOT / PLACE / "sweeps" / name
    sweep = read_sweep(folder)
    write(sweep)
    rows = [
        {**row.settings, "status": row.status, **{figure: row.of(*place) for figure, place in FIGURES.items()}}
        for row in sweep.rows
    ]
    return {"exit_status": status, "noise": sweep.noise, "verdict": verdict(sweep), "jobs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="relative to the checkout, or whole")
    parser.add_argument("--hours", type=float, default=0.008, help="budget of a job")
    options = parser.parse_args()
    found = {name: swept(name, options.corpus, options.hours) for name in NAMES}
    about = {"how": f"python -m bench.sweeps FOLDER --hours {options.hours}", "hours": options.hours}
    RESULT.write_text(json.dumps(about | {"sweeps": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
