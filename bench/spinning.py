"""How long OpenMP's threads should spin while they wait for each other: a training step by GOMP_SPINCOUNT.

    python -m bench.spinning      # three minutes on idle cores; writes bench/results/spinning.json

On a machine with nothing else to do, and beside one process that keeps a core busy. Each is a process of its own, as the
variable is read when torch is loaded; all in turn, so that a machine that wanders treats all alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

from bench.own import ROOT
from budget.clock import now
from command_line import BEFORE_TORCH

RESULT = ROOT / "bench" / "results" / "spinning.json"
VARIABLE = "GOMP_SPINCOUNT"
OURS = BEFORE_TORCH[VARIABLE]
COUNTS: dict[str, str | None] = {OURS: OURS, "0": "0", "unset": None}
ROUNDS, SECONDS, WARM = 5, 4.0, 3  # of each process, of its steps, steps that do not count
SIZES, SEQUENCES = (2, 2, 128, 64, 4096), 32  # layers, heads, width, block size, vocabulary


def seconds_of_a_step() -> float:
    """The median in this process."""
    from bench.engine import Step
    from model.recipe import OptimSettings
    from model.shape import PRESETS, Shape
    from run.machine import find_machine

    machine = find_machine("cpu", None, "float32", 1.0)
    step = Step(Shape(*SIZES, **PRESETS["modern"]), SEQUENCES, OptimSettings("muon"), machine)
    until = now() + SECONDS
    times: list[float] = []
    while now() < until or len(times) <= WARM:
        times.append(step.run()["all"])
    return statistics.median(times[WARM:])


def elsewhere(count: str | None) -> float:
    """The median in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environment |= {} if count is None else {VARIABLE: count}
    done = subprocess.run(
        [sys.executable, "-m", "bench.spinning", "step"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


def beside_a_busy_core(count: str | None) -> float:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return elsewhere(count)
    finally:
        busy.kill()
        busy.wait()


def row(name: str, idle: list[float], busy: list[float], ours: tuple[list[float], list[float]]) -> dict[str, Any]:
    """Medians; relative to ours those of pairs in the same round."""
    return {
        "spin_count": name,
        "idle_milliseconds": 1000 * statistics.median(idle),
        "busy_milliseconds": 1000 * statistics.median(busy),
        "idle_over_ours": statistics.median(one / other for one, other in zip(idle, ours[0], strict=True)),
        "busy_over_ours": statistics.median(one / other for one, other in zip(busy, ours[1], strict=True)),
    }


def main() -> None:
    if sys.argv[1:] == ["step"]:
        print(seconds_of_a_step())
        return
    idle: dict[str, list[float]] = {name: [] for name in COUNTS}
    busy: dict[str, list[float]] = {name: [] for name in COUNTS}
    for _ in range(ROUNDS):
        for name, count in COUNTS.items():
            idle[name].append(elsewhere(count))
            busy[name].append(beside_a_busy_core(count))
    rows = [row(name, idle[name], busy[name], (idle[OURS], busy[OURS])) for name in COUNTS]
    for each in rows:
        print(
            f"{VARIABLE} {each['spin_count']:<8} {each['idle_milliseconds']:.1f} ms, beside a busy process"
            f" {each['busy_milliseconds']:.1f} ms"
        )
    head = {"how": "python -m bench.spinning", "rounds": ROUNDS, "ours": OURS}
    RESULT.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
