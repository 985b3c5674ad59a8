"""Test whether the plan chooses well: at each budget, compare it with neighbours in size, batch and learning rate.

    python -m bench.quality.plan_neighbours CORPUS --minutes 1 3 --at-once      # half an hour on two idle cores

The planned run is compared with runs in which one choice is changed, on the same validation tokens. The speed of a shared
machine varies by more than most choices matter, so a run is not stopped by the clock. It trains on the number of tokens that
it would reach in the planned run's time at constant speed, which is found by timing its steps and the planned run's in turn.
Some rows change defaults that made almost no difference one by one in bench/results/ablate.json: the schedule's shape, the
x0 shortcut, and all parts of the block together ("plain block", or "modern block" if the plan has the plain one).

Finished runs are not run again. The plan is kept until the folder of the runs is removed, and budgets that are not requested
stay in the result. `--at-once` starts as many runs at the same time as there are cores, each on one core, and plans for one
core. `regret` is the loss of the planned run minus the best loss, in nats. With one seed per row, the best of ten is expected
to be lower by about 1.5 times the noise of a run by chance alone. Writes bench/results/tune.json.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import (
    RESULTS,
    ROOT,
    TOKENIZER,
    argument_parser,
    corpus_options,
    read_result,
    run_script,
    write_result,
)
from bench.peers.stint_run import SCORED, hours_option, restart_with_train_environment, run_folder_name, run_with_budget
from bench.speed.train_step import Step, relative_token_time
from budget.laws.published import LAWS
from budget.planner.candidates import heads_for
from budget.planner.hyperparameters import bigram_rows_for
from common.cpu import usable_cores
from common.json_io import write_json
from device.device import Device, open_device
from model.config import PLAIN, PRESETS, Shape
from model.optim.settings import OptimSettings
from run.report.console import Console

RESULT = RESULTS / "tune.json"
STEP, SMALL_STEPS = 64, (-32, -16, 32)  # changes of the width; the small ones keep the depth
BPE_VOCABULARY = int(TOKENIZER.removeprefix("bpe-"))
ROUNDS = 6  # timed steps per model
BLOCK_ROWS = ("plain block", "modern block", "no x0 shortcut")  # of these, a plan has those that its own block allows


@dataclass(frozen=True)
class Row:
    """The choices of a run. `optimizer` and `schedule` are names of groups, the rest is as in Plan."""

    shape: Shape
    batch_tokens: int
    learning_rate: float
    optimizer: str
    schedule: str = "linear"

    def arguments(self) -> list[str]:
        """The options of train.py."""
        return [
            *("model=modern", f"model.n_layer={self.shape.n_layer}", f"model.n_embd={self.shape.n_embd}"),
            *(f"model.{name}={getattr(self.shape, name)}" for name in ("block_size", "bigram_rows", *PLAIN)),
            *(f"optim={self.optimizer}", f"schedule={self.schedule}"),
            *(f"optim.batch_tokens={self.batch_tokens}", f"optim.learning_rate={self.learning_rate:.4g}"),
        ]


def plan_for(minutes: float, corpus: str, arguments: list[str]) -> dict[str, Any]:
    """The plan of plan.py, with speeds measured now."""
    options = [*corpus_options(corpus), *SCORED, hours_option(minutes), "probe=true", *arguments, "output=json"]
    print("$ plan.py", *options, flush=True)
    done = run_script("plan.py", options)
    if done.returncode:
        sys.exit(done.stderr)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def rows_of(plan: dict[str, Any]) -> dict[str, Row]:
    """The runs by name: the planned one and its neighbours. `plan`: the content of a plan.json."""
    layers, width, batch, rate = plan["n_layer"], plan["n_embd"], plan["batch_tokens"], plan["learning_rate"]
    sizes = (layers, plan["n_head"], width, plan["block_size"], plan["vocab_size"])
    block = plan.get("block", {})
    shape = Shape(*sizes, **(PRESETS["modern"] | block), bigram_rows=plan["bigram_rows"])
    planned = Row(shape, batch, rate, plan["optimizer"])

    def sized(n_layer: int, n_embd: int) -> Row:
        rows = bigram_rows_for(plan["flops"], shape.vocab_size, n_embd)
        other = replace(shape, n_layer=n_layer, n_head=heads_for(n_embd), n_embd=n_embd, bigram_rows=rows)
        return replace(planned, shape=other)

    sizes_beside = [
        (n, w) for w in (width - STEP, width, width + STEP) for n in (layers // 4, layers // 2, layers, 2 * layers)
    ]
    sizes_beside.append((4 * layers, width - STEP))
    sizes_beside += [(layers, width + step) for step in SMALL_STEPS]
    rows = {"as planned": planned}
    rows |= {f"{n} x {w}": sized(n, w) for n, w in sizes_beside if n > 0 and w > 0 and (n, w) != (layers, width)}
    rows |= {f"batch x {f:g}": replace(planned, batch_tokens=round(f * batch)) for f in (0.5, 2.0)}
    rows |= {f"learning rate x {f:g}": replace(planned, learning_rate=f * rate) for f in (0.5, 2.0)}
    rows["cosine"] = replace(planned, schedule="cosine")
    if shape.x0_shortcut:
        rows["no x0 shortcut"] = replace(planned, shape=replace(shape, x0_shortcut=False))
    if block == PLAIN:
        modern = {name: PRESETS["modern"][name] for name in PLAIN}
        rows["modern block"] = replace(planned, shape=replace(shape, **modern))
    else:
        rows["plain block"] = replace(planned, shape=replace(shape, **PLAIN))
    return rows


def speed_of(row: Row, planned: Row, device: Device) -> float:
    """Tokens per second relative to the planned run."""

    def step(row: Row) -> Step:
        sequences = row.batch_tokens // row.shape.block_size
        at_once = device.micro_batch(row.shape, sequences)
        return Step(row.shape, sequences, OptimSettings(row.optimizer), device, at_once=at_once)

    if (row.shape, row.batch_tokens) == (planned.shape, planned.batch_tokens):
        return 1.0
    return 1 / relative_token_time(lambda: step(row), lambda: step(planned), ROUNDS)


def measured(
    place: Path, minutes: float, corpus: str, threads: int, seeds: list[int], only: list[str]
) -> tuple[dict[str, Any], dict[str, Row], dict[str, float]]:
    """The plan, its rows and their speeds.

    What an earlier call measured is used again, because its runs would otherwise be compared with another plan. `only`: the
    rows to run; rows with finished runs are added."""
    path = place / "measured.json"
    before = {"threads": threads} | read_result(path)
    if (others := before.get("threads")) != threads:
        sys.exit(f"{place} has runs with device.threads={others}, not {threads}; remove it to start again")
    plan = before.get("plan") or plan_for(minutes, corpus, [f"device.threads={threads}"])
    rows, speeds = rows_of(plan), dict(before.get("speeds", {}))
    if unknown := set(only) - set(rows) - set(BLOCK_ROWS):
        sys.exit(f"--only {', '.join(sorted(unknown))}: the rows are {', '.join(rows)}")
    finished = {
        name for name in rows for seed in seeds if list((place / run_folder_name(name, seed)).glob("*/result.json"))
    }
    rows = {name: row for name, row in rows.items() if not only or name in {"as planned", *only, *finished}}
    device = open_device("cpu", threads, "float32", 1.0)
    place.mkdir(parents=True, exist_ok=True)
    for name, row in rows.items():
        if name not in speeds:
            speeds[name] = speed_of(row, rows["as planned"], device)
            write_json(path, {"threads": threads, "plan": plan, "speeds": speeds})
    return plan, rows, {name: speeds[name] for name in rows}


def budget(place: Path, corpus: str, minutes: float, seeds: list[int], only: list[str], at_once: int) -> dict[str, Any]:
    """Run all rows of one budget, seed by seed, `at_once` at the same time. Returns the budget's section of the result."""
    place, threads = place / f"{minutes:g}min", 1 if at_once > 1 else usable_cores()
    plan, rows, speeds = measured(place, minutes, corpus, threads, seeds, only)
    with ThreadPoolExecutor(at_once) as pool:
        futures = [
            pool.submit(
                *(run_with_budget, f"budget.tokens={round(plan['tokens'] * speeds[name])}", place),
                *(corpus, name, seed, [*row.arguments(), f"device.threads={threads}"]),
            )
            for seed in seeds
            for name, row in rows.items()
        ]
        runs = [future.result() for future in futures]
    losses: dict[str, list[float]] = {}
    for run in runs:
        if "loss" in run:
            losses.setdefault(run["name"], []).append(run["loss"])
    if "as planned" not in losses:
        sys.exit(f"the planned run of {minutes:g} minutes failed; its log is below {place}")
    means = {name: statistics.mean(values) for name, values in losses.items()}
    best = min(means, key=means.__getitem__)
    Console().table(
        f"{minutes:g} minutes: planned {plan['n_layer']} x {plan['n_embd']}, batch {plan['batch_tokens']:,}, "
        f"rate {plan['learning_rate']}, {plan['tokens']:,} tokens",
        ["settings", "loss", "relative to plan", "speed"],
        [
            (name, f"{loss:.4f}", f"{loss - means['as planned']:+.4f}", f"{speeds[name]:.2f}")
            for name, loss in sorted(means.items(), key=lambda item: item[1])
        ],
    )
    return {
        "minutes": minutes,
        "threads": threads,
        "planned": {
            key: plan[key] for key in ("n_layer", "n_embd", "batch_tokens", "learning_rate", "optimizer", "tokens")
        }
        | {"block": plan.get("block", {})},
        "best": best,
        "regret": means["as planned"] - means[best],
        "losses": means,
        "speeds": speeds,
        "runs": runs,
    }


def curve(budgets: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit ln L = level - slope ln C + curvature (ln N / (centre N*))^2 to the sizes of all budgets, as in budget.laws.loss_curve.

    N* is Chinchilla's optimal size for C. Each kind of block has its own level. `rms` is the error of the fit in ln L."""
    law, points, plain = LAWS["chinchilla-table3"], [], []
    for planned, run in ((entry["planned"], run) for entry in budgets for run in entry["runs"]):
        if "loss" in run and run["name"] in ("as planned", run["size"]):
            layers, width = (int(part) for part in run["size"].split(" x "))
            shape = Shape(layers, heads_for(width), width, 64, BPE_VOCABULARY, **PRESETS["modern"])
            size = shape.matmul_parameters()
            points.append((6.0 * size * run["tokens"], size, math.log(run["loss"])))
            plain.append(float(planned.get("block") == PLAIN))
    flops, sizes, losses = (np.array(column) for column in zip(*points, strict=True))
    distance = np.log(sizes / [law.parameters(compute) for compute in flops])  # ln N / N*
    levels = [np.ones_like(distance)] if len(set(plain)) == 1 else [np.array(plain), 1 - np.array(plain)]
    terms = np.stack([-np.log(flops), distance**2, distance, *levels], axis=1)
    coefficients = np.linalg.lstsq(terms, losses, rcond=None)[0]
    slope, curvature, tilt = (float(value) for value in coefficients[:3])
    rms = float(np.sqrt(np.mean((losses - terms @ coefficients) ** 2)))
    span = [float(flops.min()), float(flops.max())]
    centre = math.exp(-tilt / (2 * curvature))
    return {"slope": slope, "curvature": curvature, "centre": centre, "rms": rms, "flops": span, "runs": len(points)}


def main() -> None:
    restart_with_train_environment()
    parser = argument_parser(__doc__, corpus=True)
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[1.0, 3.0, 5.0, 10.0], help="approximate time of each run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[], help="rows to run besides the planned one (default: all)")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "tune", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--at-once", action="store_true", help="a run on each core at the same time")
    options = parser.parse_args()
    corpus = str(Path(options.corpus).resolve())
    at_once = usable_cores() if options.at_once else 1
    for minutes in options.minutes:
        found = budget(options.place, corpus, minutes, options.seeds, options.only, at_once)
        how = [
            f"python -m bench.quality.plan_neighbours CORPUS --minutes {minutes:g} --seeds",
            *map(str, options.seeds),
        ]
        how += ["--only", *map(shlex.quote, options.only)] if options.only else []
        found["how"] = " ".join([*how, *["--at-once"] * options.at_once])
        others = read_result(options.output).get("budgets", [])
        budgets = [other for other in others if other["minutes"] != minutes] + [found]
        budgets.sort(key=lambda entry: float(entry["minutes"]))
        content = {"how": "; ".join(entry["how"] for entry in budgets), "curve": curve(budgets), "budgets": budgets}
        write_result(options.output, content)


if __name__ == "__main__":
    main()
