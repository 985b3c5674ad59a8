"""The speed of a training step relative to the hardware's limit, and the time of each of its parts.

    python -m bench.speed.train_step      # several minutes on two idle cores; writes bench/results/engine.json

Variants of a step run in turn, so that changes of the machine's speed affect all alike. The figures are medians. The limit is
the speed of a bare matrix product in the same process. `plain_loss` is the same step with torch's own cross-entropy (see
model/loss.py), `adamw` the same step with AdamW for the matrices.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from bench.common import RESULTS, median_ratio, medians, write_result
from bench.peers.stint_run import restart_with_train_environment
from budget.flops import flops_per_token
from common.monotonic import now
from data.batch import Batch
from data.loader import Loader
from data.shards import made_up_split
from device.device import Device, open_device
from device.peak_flops import measure_peak
from model import loss
from model.compile import compile_for_training
from model.config import PRESETS, Shape
from model.gpt import GPT
from model.optim.build import configure_optimizers, set_schedule
from model.optim.settings import OptimSettings
from training.objectives import next_token
from training.step import TrainingStep

RESULT = RESULTS / "engine.json"
# layers, width, block size, sequences per step, vocabulary
SHAPES = (
    (1, 64, 64, 16, 4096), (2, 128, 64, 32, 4096), (4, 256, 256, 8, 4096), (8, 512, 256, 8, 4096), (2, 128, 64, 32, 50304),
)  # fmt: skip
ROWS = 1 << 18
WARM, FEWEST, SECONDS = 2, 5, 40.0  # warm-up rounds, fewest timed rounds, and the time for further rounds
MODELS = 4  # pairs of new models when two kinds of steps are compared
PARTS = ("loader", "forward", "backward", "clip", "optimizer")


class Step:
    """A training step of a model whose parts are timed.

    `sequences`: batch size. `compiled`: a value of device.compile. `at_once`: sequences per micro-batch (None: all)."""

    def __init__(
        self,
        shape: Shape,
        sequences: int,
        optimizer: OptimSettings,
        device: Device,
        compiled: str = "off",
        at_once: int | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.sequences, self.shape = device, sequences, shape
        self.at_once = at_once or sequences
        with device.torch_device:
            self.model = GPT(shape)
        betas, kind = (0.9, 0.99), device.torch_device.type
        self.optimizer = configure_optimizers(self.model, 1e-3, 0.1, betas, kind, optimizer)
        self.loss_of = compile_for_training(next_token, self.model, compiled)
        self.step = TrainingStep(self._timed_loss, self.optimizer, device.scaler(), device.autocast, grad_clip=1.0)
        self.loader = Loader(made_up_split(shape.vocab_size, shape.block_size), shape.block_size, sequences, 0)
        self.steps, self.loss = 0, torch.zeros(())

    def run(self, apart: bool = True) -> dict[str, float]:
        """Run one step. Returns the seconds of each part and of all.

        `apart`: wait for the device after each part, so that the seconds are those of the parts. Otherwise the device is not
        waited for, and they are the seconds to launch the parts."""
        self._parts, self._apart = dict.fromkeys(PARTS, 0.0), apart
        began = self._last = now()
        batch = self.loader.batch(self.steps)
        parts = [self.device.batch(part, self.shape) for part in batch.parts(self.at_once)]
        self._mark("loader")
        self.loss = self.step.forward_backward(parts, self.sequences)
        self._mark("backward")
        self.step.clip()
        self._mark("clip")
        set_schedule(self.optimizer, 1e-3, 0.5)
        self.step.update()
        self._mark("optimizer")
        self.steps += 1
        return self._parts | {"all": self._last - began}

    def _timed_loss(self, batch: Batch[torch.Tensor]) -> torch.Tensor:
        """The loss of a micro-batch. The time since the last mark was the backward pass of the micro-batch before."""
        self._mark("backward")
        loss = self.loss_of(batch)
        self._mark("forward")
        return loss

    def _mark(self, part: str) -> None:
        if self._apart:
            self.device.synchronize()
        before, self._last = self._last, now()
        self._parts[part] += self._last - before


def relative_token_time(changed: Callable[[], Step], other: Callable[[], Step], rounds: int) -> float:
    """The time per token in steps of `changed` relative to `other`, timed in turn.

    The models are built several times, because the location of a model in memory changes its speed by a few percent."""
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
    """Use torch's cross-entropy of all logits at once while the block runs."""
    whole = dict(loss.WHOLE_BYTES)
    loss.WHOLE_BYTES.update(cpu=1 << 60, cuda=1 << 60)
    try:
        yield
    finally:
        loss.WHOLE_BYTES.update(whole)


VARIANTS = {"stint": nullcontext, "plain_loss": plain_loss, "adamw": nullcontext}


def over_stint(times: dict[str, list[dict[str, float]]], name: str) -> float:
    """The time of a variant's step relative to stint's in the same round."""
    return median_ratio(*([step["all"] for step in times[variant]] for variant in (name, "stint")))


def step_peak_memory(shape: Shape, sequences: int, device: Device) -> int:
    """The peak memory in bytes of a model, its optimizer state and two training steps."""
    gc.collect()
    device.release_memory()
    before = device.reset_peak_memory()
    step = Step(shape, sequences, OptimSettings("muon"), device)
    step.run()
    step.run()
    return device.peak_memory() - before


def rows_for(layers: int, width: int, block: int, sequences: int, vocabulary: int, device: Device) -> dict[str, Any]:
    """Measure one shape. Returns its row of the table."""
    shape = Shape(layers, width // 64, width, block, vocabulary, **PRESETS["modern"], bigram_rows=ROWS)
    memory = step_peak_memory(shape, sequences, device)
    # Variants that differ only in code share a model, because its location in memory changes the speed by a few percent.
    muon, adamw = (Step(shape, sequences, OptimSettings(name), device) for name in ("muon", "adamw"))
    times: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    order = random.Random(0)
    peaks = []
    began = now()
    for turn in itertools.count():
        if turn >= WARM + FEWEST and now() - began > SECONDS:
            break
        peaks.append(measure_peak(device.torch_device, getattr(torch, device.precision), device.synchronize))
        # In random order, because each step depends on the caches that the one before leaves.
        for name in order.sample([*VARIANTS], len(VARIANTS)):
            with VARIANTS[name]():
                found = (adamw if name == "adamw" else muon).run()
            if turn >= WARM:
                times[name].append(found)
    tokens = block * sequences
    typical = medians(times["stint"])
    whole = typical["all"]
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
        "milliseconds": {part: 1000 * value for part, value in typical.items()},
        **{f"{name}_over_stint": over_stint(times, name) for name in VARIANTS if name != "stint"},
        "peak_memory": memory,
    }


def main() -> None:
    restart_with_train_environment()
    device = open_device("auto", None, "auto", 1.0)
    rows = []
    for each in SHAPES:
        rows.append(rows_for(*each, device))
        row = rows[-1]
        speed = f"{row['tokens_per_second']:>9,.0f} tokens/s  {row['share_of_matmul']:.0%} of a bare matmul"
        others = (f"{name} {row[name + '_over_stint']:.2f}" for name in VARIANTS if name != "stint")
        print(f"{row['shape']:>8}  {speed}  {'  '.join(others)}", flush=True)
    content = {
        "how": "python -m bench.speed.train_step",
        "device": device.name,
        "threads": device.threads,
        "torch": device.torch_version,
        "precision": device.precision,
        "rows": rows,
    }
    write_result(RESULT, content)


if __name__ == "__main__":
    main()
