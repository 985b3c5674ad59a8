"""A run that is killed with -9 at random moments and typed again: is the budget kept, and is there a finished model?

    python -m bench.killed ../shared/corpus/slimpajama

All of it takes the budget (5 minutes) and the preparing of the corpus. What a killed process spent after its last
heartbeat is seen by nobody but the clock of this script, which is why it counts the seconds of all processes itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "killed.json"
HOURS = 0.0833
NAME = "killed"


def attempt(command: list[str], seconds: float | None) -> float:
    """Run `command`, for `seconds` at most, then kill it with all its children; the seconds it lived."""
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lived = time.monotonic() - start
    if seconds is None and process.returncode:
        sys.exit(f"the last attempt failed with status {process.returncode}")
    return lived


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="folder in SlimPajama's layout")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    corpus = ["data=slimpajama", f"data.path={options.path}", "data.tokenizer=bpe-4096"]
    # Preparing is not part of the budget: a run of one small step does it beforehand.
    one_step = ["budget.hours=null", "budget.steps=1", "model.n_layer=1", "model.n_embd=64", f"name=prepare-{NAME}"]
    attempt([sys.executable, "train.py", *corpus, *one_step], None)
    command = [sys.executable, "train.py", *corpus, f"budget.hours={HOURS}", f"name={NAME}"]
    draw = random.Random(options.seed)
    budget = 3600 * HOURS
    moments = [draw.uniform(0.05, 0.95) * budget / (options.kills + 1) for _ in range(options.kills)]
    lived = [attempt(command, seconds) for seconds in [*moments, None]]
    folder = next((ROOT / "outputs").glob(f"{NAME}-[0-9a-f]*"))
    result = json.loads((folder / "result.json").read_text())
    content = {
        "how": f"python -m bench.killed {options.path} --kills {options.kills} --seed {options.seed}",
        "budget_s": budget,
        "killed_after_s": [round(seconds, 2) for seconds in lived[:-1]],
        "all_processes_s": round(sum(lived), 2),
        "all_processes_to_budget": round(sum(lived) / budget, 4),
        "recorded_to_budget": round(sum(result["ledger_s"].values()) / budget, 4),
        "result": result,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({name: value for name, value in content.items() if name != "result"}, indent=1))


if __name__ == "__main__":
    main()
