"""stint against nanoGPT: the same seconds on the same machine, the same training tokens, the same validation tokens.

    python -m bench.against ../shared/corpus/slimpajama --peer ../nanoGPT --minutes 5      # two hours on two idle cores

The peer's own train.py runs from the user's checkout, on data files that are written from stint's prepared corpus, in
three forms: as its README runs it on a CPU; with its schedule's horizon matched to the seconds; and with its batch and
learning rate tuned as well, which is the headline. How many iterations fit is measured first. stint then runs for the
seconds that the peer really took, and again for a third, a quarter, ... of them, until it no longer reaches the peer's loss:
the time-to-loss ratio. All seconds count, of both, from process start to exit, evaluations along the way left out.
Both are judged on the same tokens of the validation part in windows of the peer's length, and stint's at its own length
as well. Whatever comes out is written to bench/results/against_nanogpt.json.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.loader import EvalRange
from data.prepare import prepare
from data.shards import Corpus, Split, open_corpus
from data.sources import DataSpec
from evals.language_model import evaluate
from run.finished import load_finished
from run.machine import find_machine

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
RESULT = ROOT / "bench" / "results" / "against_nanogpt.json"
TOKENIZER = "bpe-4096"
CALIBRATION = 200  # iterations
ITERATION = re.compile(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms")
# What nanoGPT's README gives for a CPU; the horizon of 2000 iterations is its own.
SHIPPED = {
    "device": "cpu",
    "compile": False,
    "eval_iters": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "dropout": 0.0,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "beta2": 0.99,
    "warmup_iters": 100,
    "gradient_accumulation_steps": 1,
    "lr_decay_iters": 2000,
}
TUNED = {"batch_size": 24, "learning_rate": 4e-3, "min_lr": 4e-4}  # the best of six settings on two cores
FORMS = ("shipped", "matched", "tuned")
SHARES = (1.0, 1 / 3, 1 / 4, 1 / 6, 1 / 8, 1 / 12)  # of the peer's seconds


def write_peer_data(corpus: Corpus, folder: Path) -> None:
    """train.bin, val.bin and meta.pkl as nanoGPT reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in (corpus.train, corpus.val):
        path = folder / f"{split.name}.bin"
        if not path.exists():
            np.concatenate([np.asarray(shard, dtype=np.uint16) for shard in split.shards]).tofile(path)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": corpus.tokenizer.n_vocab}))


def peer_settings(form: str, iterations: int) -> dict[str, Any]:
    settings = SHIPPED | (TUNED if form == "tuned" else {})
    horizon = {} if form == "shipped" else {"lr_decay_iters": iterations}
    return settings | horizon | {"max_iters": iterations, "eval_interval": iterations, "dataset": "stint"}


def run_peer(checkout: Path, place: Path, seed: int, settings: dict[str, Any]) -> tuple[float, list[float]]:
    """Seconds of the whole process, and of each iteration."""
    command = [sys.executable, str(PEERS / "nanogpt_train.py"), str(checkout), str(seed)]
    command += [f"--{key}={value}" for key, value in settings.items()]
    began = time.monotonic()
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        sys.exit(f"the peer failed: {done.stderr[-2000:]}")
    return seconds, [float(found[2]) / 1000 for found in ITERATION.finditer(done.stdout)]


def iterations_within(checkout: Path, place: Path, form: str, seconds: float) -> int:
    """Iterations of the peer that its process has time for, start and all."""
    total, each = run_peer(checkout, place, 0, peer_settings(form, CALIBRATION) | {"out_dir": "calibration"})
    start = total - sum(each)
    return int((seconds - start) / statistics.median(each))


def peer_loss(checkout: Path, checkpoint: Path, windows: Path) -> float:
    """Nats per token."""
    command = [sys.executable, str(PEERS / "nanogpt_loss.py"), str(checkout), str(checkpoint), str(windows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return float(found["nats"] / found["tokens"])


def run_stint(place: Path, corpus: str, seconds: float, name: str, seed: int, arguments: list[str]) -> Path:
    """Folder of a finished run."""
    command = [
        *(sys.executable, "train.py", "data=slimpajama", f"data.path={corpus}", f"data.tokenizer={TOKENIZER}"),
        *("samples.prompts=[]", "eval.every=0", "eval.tokens=16384", f"budget.hours={seconds / 3600:.8g}"),
        *(f"seed={seed}", f"output_dir={place}", f"name={name}", *arguments),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    found = list(place.glob(f"{name}-*"))
    if len(found) != 1:
        sys.exit(f"{place} holds {len(found)} runs named {name}: of other settings? Empty it or give another --place")
    return found[0]


def stint_loss(folder: Path, val: Split, token_bytes: Any, tokens: int, block: int | None) -> float:
    """Nats per token in windows of `block` tokens; None: of the model's own length."""
    machine = find_machine("cpu", None, "float32", 1.0)
    model = load_finished(str(folder), machine.device).model
    windows = EvalRange(val, block or model.shape.block_size, tokens)
    return float(evaluate(model, windows, token_bytes, val.sources, 64, machine.device, machine.autocast)["loss"])


def rounds(
    options: argparse.Namespace, corpus: Corpus, place: Path, found: list[dict[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """The measurements, one more each time: every form of the peer with every seed that is not there yet, and stint beside
    it."""
    windows = EvalRange(corpus.val, SHIPPED["block_size"], options.tokens)
    x, y, _ = windows.windows(0, windows.n_windows)
    np.savez(place / "windows.npz", x=x, y=y)
    fits = {form: iterations_within(options.peer, place, form, 60 * options.minutes) for form in options.forms}
    for seed in range(options.seeds):
        for form in options.forms:
            if any((row["form"], row["seed"]) == (form, seed) for row in found):
                continue
            out = f"out-{form}-{seed}"
            seconds, each = run_peer(options.peer, place, seed, peer_settings(form, fits[form]) | {"out_dir": out})
            row: dict[str, Any] = {
                "form": form,
                "seed": seed,
                "iterations": fits[form],
                "seconds": seconds,
                "peer_loss": peer_loss(options.peer, place / out / "ckpt.pt", place / "windows.npz"),
                "peer_tokens": len(each) * SHIPPED["block_size"] * peer_settings(form, 1)["batch_size"],
                "stint": [],
            }
            shares = SHARES if form == options.forms[-1] else SHARES[:1]
            for share in shares:
                folder = run_stint(
                    place, options.corpus, share * seconds, f"{form}-{seed}-{share:.3f}", seed, options.arguments
                )
                result = json.loads((folder / "result.json").read_text())
                token_bytes = corpus.tokenizer.token_bytes
                own = stint_loss(folder, corpus.val, token_bytes, options.tokens, None)
                point = {
                    "share": share,
                    "seconds": result["spent"]["hours"] * 3600 + result["prepare_s"],
                    "tokens": result["spent"]["tokens"],
                    "loss": stint_loss(folder, corpus.val, token_bytes, options.tokens, SHIPPED["block_size"]),
                    "loss_own_window": own,
                    "model": result["model"],
                }
                row["stint"].append(point)
                print(f"{form} seed {seed}: nanoGPT {row['peer_loss']:.4f} in {seconds:.0f} s, stint {point['loss']:.4f}"
                      f" ({own:.4f} in its own windows) in {point['seconds']:.0f} s", flush=True)  # fmt: skip
                if point["loss"] > row["peer_loss"]:
                    break
            row["time_to_loss"] = time_to_loss(row["peer_loss"], row["seconds"], row["stint"])
            found.append(row)
            yield found


def time_to_loss(goal: float, seconds: float, points: list[dict[str, Any]]) -> float | None:
    """How many times faster stint had the peer's loss: on the line through the two budgets around it, loss against the
    logarithm of seconds; the shortest budget's ratio, a lower bound, where all were better."""
    better = [point for point in points if point["loss"] <= goal]
    worse = [point for point in points if point["loss"] > goal]
    if not better:
        return None
    least = min(better, key=lambda point: point["seconds"])
    if not worse:
        return float(seconds / least["seconds"])
    most = max(worse, key=lambda point: point["seconds"])
    share = (goal - least["loss"]) / (most["loss"] - least["loss"])
    needed = math.log(least["seconds"]) + share * (math.log(most["seconds"]) - math.log(least["seconds"]))
    return float(seconds / math.exp(needed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder in SlimPajama's layout")
    parser.add_argument("--peer", type=Path, required=True, help="checkout of nanoGPT")
    parser.add_argument("--minutes", type=float, default=5.0, help="the peer's, start and all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=524288, help="of the validation part")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "against", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("arguments", nargs="*", help="for stint's train.py")
    options = parser.parse_args()
    options.peer, options.corpus = options.peer.resolve(), str(Path(options.corpus).resolve())
    if not (options.peer / "train.py").exists():
        sys.exit(f"{options.peer} is no checkout of nanoGPT; skipped")
    options.place.mkdir(parents=True, exist_ok=True)
    spec = DataSpec(source="slimpajama", path=options.corpus, tokenizer=TOKENIZER)
    corpus = open_corpus(prepare(spec, log=print).folder)
    write_peer_data(corpus, options.place / "data" / "stint")
    how = f"python -m bench.against CORPUS --peer CHECKOUT --minutes {options.minutes:g} --seeds {options.seeds}"
    how += f" --tokens {options.tokens} --forms {' '.join(options.forms)}"
    content: dict[str, Any] = {
        "how": " ".join([how, *options.arguments]),
        "torch": torch.__version__,
        "validation_tokens": options.tokens,
        "window": SHIPPED["block_size"],
        "settings": {form: peer_settings(form, 0) for form in FORMS},
        "rounds": [],
    }
    if options.output.exists():  # go on with what an earlier start measured
        earlier = json.loads(options.output.read_text())
        content["rounds"] = earlier["rounds"] if earlier["how"] == content["how"] else []
    for found in rounds(options, corpus, options.place, content["rounds"]):
        options.output.write_text(json.dumps(content | {"rounds": found}, indent=1) + "\n")
    found = content["rounds"]
    for form in options.forms:
        rows = [row for row in found if row["form"] == form]
        if not rows:
            continue
        gains = [row["peer_loss"] - row["stint"][0]["loss"] for row in rows]
        print(f"{form}: {statistics.mean(gains):.3f} nats better in the same seconds")
    ratios = [row["time_to_loss"] for row in found if row["form"] == options.forms[-1]]
    print(
        f"time to {options.forms[-1]} nanoGPT's loss: {', '.join(f'{r:.2f}' if r else '-' for r in ratios)} times faster"
    )


if __name__ == "__main__":
    main()
