"""Find which benchmarks tell a trained model from an untrained one, at which budget.

    python -m bench.quality.benchmarks CORPUS --tasks FOLDER --minutes 1 10 60      # an hour and a half on two cores

For each budget a model is trained. Its untrained twin has the same shape and random weights. Both answer the same items, and the
difference of their scores has a paired bootstrap interval: a benchmark carries signal at a budget if the interval is above 0.
FOLDER holds a folder for each task, as task.path does.

Finished runs and stored answers are used again. Writes bench/results/benchmarks.json, from which docs/benchmarks.md takes its
table.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from bench.common import (
    RESULTS,
    ROOT,
    argument_parser,
    corpus_options,
    read_result,
    result_of,
    run_script,
    train,
    write_result,
)
from common.json_io import read_json, write_json
from model.gpt import GPT
from run.checkpoint import save_weights
from run.saved_model import shape_of

RESULT = RESULTS / "benchmarks.json"
TOKENIZER = "bpe-8192"
TASKS = (
    "blimp", "blimp_supplement", "hellaswag", "piqa", "arc_easy", "arc_challenge", "sciq", "csqa", "openbookqa", "boolq",
    "winogrande",
)  # fmt: skip
SEED = 1337
KEPT = ("items", "score", "interval", "chance", "scored_by", "bits_per_byte", "margin", "items_cut")


def trained(place: Path, corpus: str, minutes: float) -> Path:
    """Train for `minutes`, or find the run. Returns its folder."""
    name = f"m{minutes:g}"
    if not list(place.glob(f"{name}-*/result.json")):
        train([*corpus_options(corpus, TOKENIZER), f"budget.hours={minutes:g}m", f"name={name}", f"output_dir={place}"])
    return next(place.glob(f"{name}-*/result.json")).parent


def untrained_twin(run: Path) -> Path:
    """Write a model with the shape and tokenizer of `run` and random weights. Returns its folder."""
    twin = run.with_name(f"untrained-{run.name}")
    twin.mkdir(exist_ok=True)
    shutil.copy(run / "tokenizer.json", twin)
    about = {key: value for key, value in read_json(run / "model.json").items() if key != "checksum"}
    torch.manual_seed(SEED)
    about["sha256"] = save_weights(twin / "model.safetensors", GPT(shape_of(about)))
    write_json(twin / "model.json", about, checksummed=True)
    return twin


def evaluated(model: Path, folder: Path, items: int, baseline: Path) -> dict[str, Any]:
    """Run evaluate.py on all tasks, against `baseline`, which the first evaluation becomes. Returns its JSON."""
    options = [
        *(f"checkpoint={model}", f"tasks=[{','.join(TASKS)}]", f"task.path={folder}", "task.too_long=roll"),
        *(f"limit={items}", f"baseline={baseline}", "output=json"),
    ]
    done = run_script("evaluate.py", options)
    if done.returncode:
        sys.exit(f"evaluate.py {' '.join(options)}: {done.stderr[-2000:]}")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def main() -> None:
    parser = argument_parser(__doc__, corpus=True)
    parser.add_argument("--tasks", type=Path, required=True, help="folder with a folder of items for each task")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 10.0, 60.0], help="budget of each model")
    parser.add_argument("--items", type=int, default=1000, help="items of each task, and of each paradigm")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "benchmarks", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    budgets = {entry["minutes"]: entry for entry in read_result(options.output).get("budgets", [])}
    for minutes in options.minutes:
        run = trained(options.place, str(Path(options.corpus).resolve()), minutes)
        baseline = run / "untrained.json"
        baseline.unlink(missing_ok=True)
        twin = evaluated(untrained_twin(run), options.tasks, options.items, baseline)
        own = evaluated(run, options.tasks, options.items, baseline)
        result = result_of(run)
        budgets[minutes] = {
            "minutes": minutes,
            "flops": result["spent"]["flops"],
            "tokens": result["spent"]["tokens"],
            "model": {
                key: result["model"][key] for key in ("n_layer", "n_embd", "block_size", "parameters", "parameters_law")
            },
            "bits_per_byte": result["eval"]["bits_per_byte"],
            "tasks": {
                name: {
                    **{key: figures[key] for key in KEPT if key in figures},
                    "untrained": {key: twin["tasks"][name][key] for key in KEPT if key in twin["tasks"][name]},
                    "delta": own["comparison"]["tasks"][name]["delta"],
                    "delta_interval": own["comparison"]["tasks"][name]["interval"],
                }
                for name, figures in own["tasks"].items()
            },
        }
        how = "python -m bench.quality.benchmarks CORPUS --tasks FOLDER"
        write_result(
            options.output, {"how": how, "items": options.items, "budgets": [budgets[key] for key in sorted(budgets)]}
        )


if __name__ == "__main__":
    main()
