"""How near the hardware's limit a training step is, and what each part of it takes.

    python -m bench.engine      # some minutes on two idle cores; writes bench/results/engine.json

Five shapes, a step each in turn, so that a machine that wanders treats all alike; medians. The limit is what a bare matrix
product reaches on the same machine in the same run. `plain_loss` is the same step with torch's own cross-entropy
(model/loss.py), `adamw` with AdamW for the matrices as well. What train.py's loop does beside a step's parts, `other`, is of
short runs of train.py itself on the embedded corpus (bench/loop.py): on a CPU, and where its vocabulary is the shape's.
"""

from __future__ import annotations

import gc
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.own import ROOT, begin_as_train_does
from budget.clock import now
from budget.flops import flops_per_token
from budget.probe import measure_peak
from data.loader import Loader
from data.shards import Split
from model import loss
from model.compiled import for_training
from model.gpt import GPT
from model.optim import clipped_parameters, configure_optimizers, set_schedule
from model.recipe import OptimSettings
from model.shape import PRESETS, Shape
from run.machine import Machine, find_machine

RESULT = ROOT / "bench" / "results" / "engine.json"
# layers, width, block size, sequences a step, vocabulary
SHAPES = (
    (1, 64, 64, 16, 4096), (2, 128, 64, 32, 4096), (4, 256, 256, 8, 4096), (8, 512, 256, 8, 4096), (2, 128, 64, 32, 50304),
)  # fmt: skip
ROWS = 1 << 18
WARM, FEWEST, SECONDS = 2, 5, 40.0  # rounds that do not count, rounds that do, and for how long there are more of them
EMBEDDED_VOCABULARY, LOOP_STEPS = 4096, 20
MODELS = 4  # made anew where two kinds of steps are compared
PARTS = ("loader", "forward", "backward", "clip", "optimizer")


class Step:
    """One training step of a shape, its parts timed; `compiled` as in device.compile, `at_once` sequences (None: all)."""

    def __init__(
        self,
        shape: Shape,
        sequences: int,
        optimizer: OptimSettings,
        machine: Machine,
        compiled: str = "off",
        at_once: int | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.machine, self.sequences, self.shape = machine, sequences, shape
        self.at_once = at_once or sequences
        with machine.device:
            self.model = GPT(shape)
        self.forward = for_training(self.model, compiled)
        kind = machine.device.type
        self.optimizer = configure_optimizers(self.model, 1e-3, 0.1, (0.9, 0.99), kind, optimizer)
        self.clipped = clipped_parameters(self.optimizer)
        tokens = np.random.default_rng(0).integers(shape.vocab_size, size=1 << 20, dtype=np.uint16)
        split = Split("train", [tokens], [np.zeros(1, dtype=np.int64)], [np.zeros(1, dtype=np.int64)], ["made up"])
        self.loader = Loader(split, shape.block_size, sequences, 0)
        self.step, self.loss = 0, torch.zeros(())

    def run(self, apart: bool = True) -> dict[str, float]:
        """Seconds by part, and in all. `apart`: wait for the device after each, so that they are those of the parts; else
        it is not waited for at all, and they are those of launching them."""
        parts = dict.fromkeys(PARTS, 0.0)
        last = began = now()

        def mark(name: str) -> None:
            nonlocal last
            if apart:
                self.machine.synchronize()
            before, last = last, now()
            parts[name] += last - before

        x, y = (self.machine.to_device(part) for part in self.loader.batch(self.step))
        mark("loader")
        for some_x, some_y in zip(x.split(self.at_once), y.split(self.at_once), strict=True):
            with self.machine.autocast():
                found = self.forward(some_x, some_y)
            mark("forward")
            (found * len(some_x) / self.sequences).backward()
            self.loss = found.detach()
            mark("backward")
        torch.nn.utils.clip_grad_norm_(self.clipped, 1.0)
        mark("clip")
        set_schedule(self.optimizer, 1e-3, 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mark("optimizer")
        self.step += 1
        return parts | {"all": last - began}


def token_relative(changed: Callable[[], Step], other: Callable[[], Step], rounds: int) -> float:
    """How long a token takes in steps of `changed`, relative to those of `other`: so many steps of both in turn, of models made
    anew several times, as where one's memory happens to lie makes a few percent."""
    ratios = []
    for _ in range(MODELS):
        both = (changed(), other())
        for turn in range(WARM + rounds):
            one, another = (step.run()["all"] / (step.sequences * step.shape.block_size) for step in both)
            if turn >= WARM:
                ratios.append(one / another)
    return statistics.median(ratios)


@contextmanager
def plain_loss() -> Iterator[None]:
    """torch's own cross-entropy, of all logits at once."""
    whole = dict(loss.WHOLE_BYTES)
    loss.WHOLE_BYTES.update(cpu=1 << 60, cuda=1 << 60)
    try:
        yield
    finally:
        loss.WHOLE_BYTES.update(whole)


VARIANTS = {"stint": nullcontext, "plain_loss": plain_loss, "adamw": nullcontext}


def over_stint(times: dict[str, list[dict[str, float]]], name: str) -> float:
    """How long a variant's step takes relative to stint's of the same round, as the machine wanders from round to round."""
    pairs = zip(times[name], times["stint"], strict=True)
    return statistics.median(variant["all"] / stint["all"] for variant, stint in pairs)


def memory_of_a_step(shape: Shape, sequences: int, machine: Machine) -> int:
    """Bytes that a model, its optimizer's state and two training steps take at most."""
    gc.collect()
    machine.release_memory()
    before = machine.restart_peak_memory()
    step = Step(shape, sequences, OptimSettings("muon"), machine)
    step.run()
    step.run()
    return machine.peak_memory() - before


def other_in_the_loop(shape: Shape, sequences: int) -> float | None:
    """Seconds a step of train.py's loop beside the parts; None where that is not measured."""
    if shape.vocab_size != EMBEDDED_VOCABULARY:
        return None
    sizes = {key: getattr(shape, key) for key in ("n_layer", "n_embd", "block_size", "bigram_rows")}
    with tempfile.TemporaryDirectory() as place:
        command = [
            *(sys.executable, "-m", "bench.loop", f"{place}/loop.json", f"budget.steps={LOOP_STEPS}", "probe=false"),
            *("mfu=0.3", "model=modern", "optim=muon", f"optim.batch_tokens={sequences * shape.block_size}"),
            *(f"model.{key}={value}" for key, value in sizes.items()),
            *("eval.every=0", "eval.tokens=4096", f"output_dir={place}"),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return float(json.loads(Path(place, "loop.json").read_text())["other"])


def rows_for(layers: int, width: int, block: int, sequences: int, vocabulary: int, machine: Machine) -> dict[str, Any]:
    """One line of the table."""
    shape = Shape(layers, width // 64, width, block, vocabulary, **PRESETS["modern"], bigram_rows=ROWS)
    memory = memory_of_a_step(shape, sequences, machine)
    # One model for all that differ in code alone: where its memory happens to lie makes a few percent.
    muon, adamw = (Step(shape, sequences, OptimSettings(name), machine) for name in ("muon", "adamw"))
    times: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    order = random.Random(0)
    peaks = []
    began = now()
    for turn in itertools.count():
        if turn >= WARM + FEWEST and now() - began > SECONDS:
            break
        peaks.append(measure_peak(machine.device, getattr(torch, machine.precision), machine.synchronize))
        for name in order.sample([*VARIANTS], len(VARIANTS)):  # what ran before leaves the caches as it likes
            with VARIANTS[name]():
                found = (adamw if name == "adamw" else muon).run()
            if turn >= WARM:
                times[name].append(found)
    medians = {
        name: {part: statistics.median(row[part] for row in rows) for part in rows[0]} for name, rows in times.items()
    }
    other = other_in_the_loop(shape, sequences) if machine.device.type == "cpu" else None
    tokens = block * sequences
    whole = medians["stint"]["all"]
    peak = statistics.median(peaks)
    return {
        "shape": f"{layers} x {width}",
        "block_size": block,
        "vocabulary": vocabulary,
        "tokens_a_step": tokens,
        "parameters_law": shape.matmul_parameters(),
        "tokens_per_second": tokens / whole,
        "flops_per_second": tokens * flops_per_token(shape) / whole,
        "matmul_flops_per_second": peak,
        "share_of_matmul": tokens * flops_per_token(shape) / whole / peak,
        "milliseconds": {part: 1000 * value for part, value in medians["stint"].items()},
        "other_milliseconds": None if other is None else 1000 * other,
        **{f"{name}_over_stint": over_stint(times, name) for name in VARIANTS if name != "stint"},
        "peak_memory": memory,
    }


def main() -> None:
    begin_as_train_does("bench.engine")
    machine = find_machine("auto", None, "auto", 1.0)
    rows = []
    for each in SHAPES:
        rows.append(rows_for(*each, machine))
        row = rows[-1]
        speed = f"{row['tokens_per_second']:>9,.0f} tokens/s  {row['share_of_matmul']:.0%} of a bare matmul"
        others = (f"{name} {row[name + '_over_stint']:.2f}" for name in VARIANTS if name != "stint")
        print(f"{row['shape']:>8}  {speed}  {'  '.join(others)}", flush=True)
    content = {
        "how": "python -m bench.engine",
        "device": machine.name,
        "threads": machine.threads,
        "torch": machine.torch_version,
        "precision": machine.precision,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
