"""Runs of stint for comparisons: each is train.py in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.common import TOKENIZER, TRAIN_ONLY, corpus_options, run_script, train
from cli.launch import BEFORE_TORCH
from data.eval_windows import EvalRange
from data.prepare import prepare
from data.shards import Corpus, open_corpus
from data.sources.base import DataSpec
from device.device import Device
from evals.language_model import evaluate
from run.load_model import load_model

# The evaluation is never shortened, so that all runs are scored on the same tokens.
SCORED = (*TRAIN_ONLY, "eval.tokens=65536", "eval.max_fraction=1")


def prepared_corpus(folder: str) -> Corpus:
    """The corpus of a folder in SlimPajama's layout as `run_stint` uses it; prepares it if necessary."""
    return open_corpus(prepare(DataSpec(source="slimpajama", path=folder, tokenizer=TOKENIZER), log=print).folder)


def run_stint(place: Path, corpus: str, name: str, seed: int, arguments: list[str]) -> Path:
    """Run stint and return the run's folder. `corpus`: a folder in SlimPajama's layout.

    An earlier run with this name is removed, because it was timed at another moment."""
    shutil.rmtree(place / name, ignore_errors=True)
    train(
        [
            *corpus_options(corpus),
            "data.max_bytes=null",  # as it was prepared for the peer, so that no run has to prepare it again
            *(*TRAIN_ONLY, "eval.tokens=16384", f"seed={seed}", f"output_dir={place / name}", *arguments),
        ]
    )
    return finished_run(place, name)


def finished_run(place: Path, name: str) -> Path:
    """The folder of the newest finished run with that name. Raises ValueError without one."""
    return max((place / name).glob("*/result.json"), key=lambda path: path.stat().st_mtime).parent


def score_run(folder: Path, corpus: Corpus, tokens: int, block: int | None, device: Device) -> dict[str, Any]:
    """Score a finished model on validation tokens of its corpus, in windows of `block` tokens (None: its own block size).

    Exits if the model was trained on another corpus: token ids would differ, and it might have seen the validation text."""
    found, val = load_model(str(folder), device.torch_device), corpus.val
    if found.about["data_fingerprint"] != corpus.fingerprint:
        sys.exit(f"{folder} was not trained on {corpus.folder}, so it cannot be scored there")
    windows = EvalRange(val, block or found.model.shape.block_size, tokens)
    token_bytes = corpus.tokenizer.token_bytes
    return evaluate(found.model, windows, token_bytes, val.sources, 64, device.torch_device, device.autocast)


def restart_with_train_environment() -> None:
    """Restart this `python -m` process with the environment variables that train.py sets before it imports torch."""
    module = sys.modules["__main__"].__spec__
    if module is not None and not BEFORE_TORCH.keys() <= os.environ.keys():
        command = [sys.executable, "-m", module.name, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **BEFORE_TORCH})


def run_folder_name(name: str, seed: int) -> str:
    """The name of a run's folder."""
    return f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def hours_option(minutes: float) -> str:
    """The budget option for a run of `minutes`, start-up included."""
    return f"budget.hours={minutes / 60:.6g}"


def run_with_budget(
    budget: str, place: Path, corpus: str, name: str, seed: int, arguments: list[str]
) -> dict[str, Any]:
    """Run train.py with the option `budget`, unless that run is finished, and return its figures.

    A failed run has the key `failed` instead of figures."""
    place = place / run_folder_name(name, seed)
    options = [*corpus_options(corpus), *SCORED, budget, f"seed={seed}", *arguments]
    options += [f"output_dir={place}", "output=json"]
    print("$ train.py", *options, flush=True)
    done = run_script("train.py", options)
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
