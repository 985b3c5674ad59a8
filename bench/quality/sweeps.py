"""Run all sweeps in sweeps/ on a small budget and collect their verdicts: python -m bench.quality.sweeps FOLDER

FOLDER: a corpus in SlimPajama's layout. About 40 jobs of half a minute run on two cores; the same command continues after an
interruption. The reports are outputs/cpu/sweeps/NAME/report.html; bench/results/sweeps.json has the tables and verdicts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT, argument_parser, corpus_options, run_script, write_result
from sweeps.engine.report import write
from sweeps.engine.table import read_sweep, verdict

RESULT, PLACE = RESULTS / "sweeps.json", Path("outputs/cpu")
# The sweep of seeds is first, because the others take their noise from it.
NAMES = ("seeds", "size", "width_depth", "batch", "dropout", "learning_rate", "schedule", "isoflop", "baselines")
FIGURES = {
    "loss": ("eval", "loss"),
    "tokens": ("spent", "tokens"),
    "tokens_per_second": ("throughput", "tokens_per_second"),
}


def swept(name: str, corpus: str, hours: float) -> dict[str, Any]:
    """Run a sweep, or continue it, and return its table and verdict."""
    options = ["-cd", "sweeps", "-cn", name, f"budget.hours={hours}", *corpus_options(corpus), f"output_dir={PLACE}"]
    status = run_script("train.py", options, capture=False).returncode
    folder = ROOT / PLACE / "sweeps" / name
    sweep = read_sweep(folder)
    write(sweep)
    rows = [
        {**row.settings, "status": row.status, **{figure: row.of(*place) for figure, place in FIGURES.items()}}
        for row in sweep.rows
    ]
    return {"exit_status": status, "noise": sweep.noise, "verdict": verdict(sweep), "jobs": rows}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("corpus", help="absolute path, or relative to the checkout")
    parser.add_argument("--hours", type=float, default=0.008, help="budget of a job")
    options = parser.parse_args()
    found = {name: swept(name, options.corpus, options.hours) for name in NAMES}
    about = {"how": f"python -m bench.quality.sweeps FOLDER --hours {options.hours}", "hours": options.hours}
    write_result(RESULT, about | {"sweeps": found})


if __name__ == "__main__":
    main()
