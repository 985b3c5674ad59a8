"""stint's own runs, as a comparison starts them: train.py in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line import BEFORE_TORCH
from data.loader import EvalRange
from data.prepare import prepare
from data.shards import Corpus, open_corpus
from data.sources import DataSpec
from evals.language_model import evaluate
from run.finished import load_finished
from run.machine import Machine

ROOT = Path(__file__).parents[1]
TOKENIZER = "bpe-4096"
# Always as many, however slow the machine or the model is: of fewer, the tokens would be others.
SCORED = ("eval.every=0", "eval.tokens=65536", "eval.max_fraction=1")


def corpus_in(folder: str) -> Corpus:
    """A folder in SlimPajama's layout as the runs of `run_stint` find it, prepared if it is not."""
    return open_corpus(prepare(DataSpec(source="slimpajama", path=folder, tokenizer=TOKENIZER), log=print).folder)


def run_stint(place: Path, corpus: str, name: str, seed: int, arguments: list[str]) -> Path:
    """Folder of a finished run. `corpus`: a folder in SlimPajama's layout. An earlier run of this name is removed: its
    seconds were others, so it cannot stand for this one."""
    shutil.rmtree(place / name, ignore_errors=True)
    command = [
        *(sys.executable, "train.py", "data=slimpajama", f"data.path={corpus}", f"data.tokenizer={TOKENIZER}"),
        "data.max_bytes=null",  # as the comparison prepared it for the peer, so that no run has to prepare it anew
        *("eval.every=0", "eval.tokens=16384"),
        *(f"seed={seed}", f"output_dir={place / name}", *arguments),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return finished(place, name)


def finished(place: Path, name: str) -> Path:
    """Folder of the newest finished run of that name. Raises ValueError where there is none."""
    return max((place / name).glob("*/result.json"), key=lambda path: path.stat().st_mtime).parent


def scored(folder: Path, corpus: Corpus, tokens: int, block: int | None, machine: Machine) -> dict[str, Any]:
    """A finished model on validation tokens of its corpus, in windows of `block` tokens; None: of its own length. Ends the
    program where the model is of another corpus: ids would mean other text, and what is held out here it may have seen."""
    found, val = load_finished(str(folder), machine.device), corpus.val
    if found.about["data_fingerprint"] != corpus.fingerprint:
        sys.exit(f"{folder} was not trained on {corpus.folder}, so it cannot be scored on that")
    windows = EvalRange(val, block or found.model.shape.block_size, tokens)
    token_bytes = corpus.tokenizer.token_bytes
    return evaluate(found.model, windows, token_bytes, val.sources, 64, machine.device, machine.autocast)


def begin_as_train_does(module: str) -> None:
    """Start this process again, as `python -m module`, with what train.py tells torch's libraries before it loads them."""
    if not BEFORE_TORCH.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **BEFORE_TORCH})


def folder_of(name: str, seed: int) -> str:
    """Of a run's name, below the place of all runs."""
    return f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def hours_of(minutes: float) -> str:
    """The budget of a run of so many minutes, all included."""
    return f"budget.hours={minutes / 60:.6g}"


def run_within(budget: str, place: Path, corpus: str, name: str, seed: int, arguments: list[str]) -> dict[str, Any]:
    """What came out of a run within `budget`, as train.py reads it; it is started unless it is finished. One that failed
    has `failed` for its figures."""
    place = place / folder_of(name, seed)
    command = [
        *(sys.executable, "train.py", "data=slimpajama", f"data.path={corpus}", f"data.tokenizer={TOKENIZER}"),
        *(
            *SCORED,
            budget,
            f"output_dir={place}",
            f"seed={seed}",
            *arguments,
            "output=json",
        ),
    ]
    print("$", *command[1:], flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:])
        return {"name": name, "seed": seed, "failed": done.stderr.strip().splitlines()[-1:]}
    result = json.loads(done.stdout)
    row = {
        "name": name,
        "seed": seed,
        "loss": result["eval"]["loss"],
        "bits_per_byte": result["eval"]["bits_per_byte"],
        "scored_on": result["eval"]["fingerprint"],
        "tokens": result["spent"]["tokens"],
        "steps": result["spent"]["steps"],
        "size": f"{result['model']['n_layer']} x {result['model']['n_embd']}",
        "parameters": result["model"]["parameters"],
        "tokens_per_second": result["throughput"]["tokens_per_second"],
    }
    print(f"  {row['loss']:.4f}  {row['size']}  {row['tokens']:,} tokens  {row['steps']:,} steps", flush=True)
    return row
