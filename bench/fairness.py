"""Does the place of a job in a sweep matter? The same job six times in one sweep; the first against the last.

    python -m bench.fairness      # four minutes on an idle machine; writes bench/results/fairness.json

The jobs differ in the length of the samples that they write when everything is over, so that they are not one run. What differs
besides (tokens in the same seconds, and so the loss) is noise, or the sweep is not fair: warm caches would favour later jobs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "fairness.json"
JOBS, HOURS = 6, 0.01
# What each job's own measurements would choose a little differently.
SAME = (
    *("model.n_layer=1", "model.n_embd=64", "optim.batch_tokens=1024", "optim.name=muon", "optim.learning_rate=0.01"),
    "eval.tokens=16384",
)
STUDENT = 3.18  # standard errors that hold 95 % where the noise is known from four jobs


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Of one finished run."""
    return {
        "loss": result["eval"]["loss"],
        "tokens": result["spent"]["tokens"],
        "tokens_per_second": result["throughput"]["tokens_per_second"],
        "setup_s": result["ledger_s"]["setup"],
    }


def verdict(jobs: list[dict[str, float]]) -> dict[str, Any]:
    """For each figure, how far the last job is from the first, and how far two of those between them are typically apart."""
    found: dict[str, Any] = {}
    for name in jobs[0]:
        first, *between, last = (job[name] for job in jobs)
        typical = statistics.stdev(between) * 2**0.5
        found[name] = {
            "last_minus_first": last - first,
            "typical_difference": typical,
            "fair": abs(last - first) <= STUDENT * typical,
        }
    return found


def main() -> None:
    keys = ",".join(f"text_{i}" for i in range(JOBS))
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "train.py", "-m", f"data.text_key={keys}", f"budget.hours={HOURS}"]
        subprocess.run([*command, *SAME, f"output_dir={place}", "name=fairness"], cwd=ROOT, check=True)
        results = sorted(Path(place).glob("fairness-*/result.json"), key=lambda path: path.stat().st_mtime)
        jobs = [figures(json.loads(path.read_text())) for path in results]
        environment = json.loads(results[0].read_text())["environment"]
    content = {
        "how": "python -m bench.fairness",
        "environment": environment,
        "hours": HOURS,
        "jobs": jobs,
        "verdict": verdict(jobs),
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    for name, found in content["verdict"].items():
        print(
            f"{name:<18} last - first {found['last_minus_first']:+.4g}, typically {found['typical_difference']:.4g} apart"
        )


if __name__ == "__main__":
    main()
