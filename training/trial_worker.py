"""Trials of shapes in a worker process: `python -m training.trial_worker DEVICE`.

It reads requests from standard input, one JSON object per line, and writes an answer to each. A trial runs real
training steps on random tokens. Its memory is freed with the process, and a crash does not touch the run. The process
ends when its standard input closes, so that it never outlives the run.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import statistics
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from budget.planner.trial_search import MIN_REPEATS
from common.monotonic import now
from data.loader import Loader
from data.shards import made_up_split
from device.device import Device, find_device, set_up
from device.memory import out_of_memory
from model.compile import cache_state, compile_for_training
from model.config import PRESETS, Shape
from model.gpt import GPT
from model.optim.build import configure_optimizers
from model.optim.settings import OptimSettings
from training.objectives import next_token
from training.step import TrainingStep


def new_training_step(device: Device, shape: Shape, optimizer: OptimSettings, compiled: str) -> TrainingStep:
    """A training step of a new model."""
    with torch.device(device.torch_device):
        model = GPT(shape)
    loss_of = compile_for_training(next_token, model, compiled)
    optim = configure_optimizers(model, 1e-4, 0.1, (0.9, 0.95), device.torch_device.type, optimizer)
    return TrainingStep(loss_of, optim, device.scaler(), device.autocast, grad_clip=1.0)


def measure(
    device: Device,
    shape: Shape,
    optimizer: OptimSettings,
    sequences: int,
    micro_batch: int,
    seconds: float,
    compiled: str = "off",
) -> dict[str, Any]:
    """Measure an optimizer step on `sequences` sequences in micro-batches of `micro_batch`, for about `seconds`.

    Gathering a batch, forward and backward take token_s per token; clipping and the optimizer take update_s per step.
    They are timed apart, so that a large batch is measured without running all of it. Both are medians; the first step,
    which also allocates memory and compiles, is left out.

    Returns token_s, update_s, start_s and compile_s in seconds, compile_cache, peak_memory in bytes (all as in
    `budget.planner.trial_search.Trial`), and available_memory, the bytes that were free before the trial.
    """
    available = device.reset_peak_memory() + device.free_memory()
    micro, began = min(micro_batch, sequences), now()
    step = new_training_step(device, shape, optimizer, compiled)
    loader = Loader(made_up_split(shape.vocab_size, shape.block_size), shape.block_size, micro, 0)
    batches = (device.batch(loader.batch(number), shape) for number in itertools.count())
    batch = next(batches)
    device.synchronize()
    build_s = now() - began

    def timed(work: Callable[[], object]) -> float:
        began = now()
        work()
        device.synchronize()
        return now() - began

    def forward_backward() -> None:
        nonlocal batch
        step.forward_backward([batch], micro)
        batch = next(batches)  # a GPU still computes meanwhile, as in the training loop

    def update() -> None:
        step.clip()
        step.update()

    first_s = timed(forward_backward)
    if micro < sequences:
        timed(forward_backward)  # peak memory includes the gradient of the first micro-batch
    first_update_s = timed(update)
    micro_s: list[float] = []
    update_s: list[float] = []
    began = now()
    while now() - began < seconds or len(micro_s) < MIN_REPEATS:
        micro_s.append(timed(forward_backward))
        update_s.append(timed(update))
    typical_s, typical_update_s = statistics.median(micro_s), statistics.median(update_s)
    return {
        "token_s": typical_s / (micro * shape.block_size),
        "update_s": typical_update_s,
        "start_s": build_s + max(0.0, first_s - typical_s) + max(0.0, first_update_s - typical_update_s),
        "compile_s": max(0.0, first_s - typical_s) if compiled != "off" else 0.0,
        "compile_cache": cache_state() if compiled != "off" else None,
        "peak_memory": device.peak_memory(),
        "available_memory": available,
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run the trial of a request. Returns its figures, {"too_large": True} if memory ran out, or {"error": message}."""
    device = Device(**{**request["device"], "torch_device": torch.device(request["device"]["torch_device"])})
    set_up(device.torch_device, device.threads)
    try:
        return measure(device, Shape(**request["shape"]), OptimSettings(**request["optimizer"]), **request["trial"])
    except Exception as error:  # the run decides what to do about it
        if out_of_memory(error):
            return {"too_large": True}
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    finally:
        device.release_memory()


def warm_up(name: str) -> None:
    """Run a trial of a tiny shape, so that one-time costs of the process are not charged to the first shape."""
    torch_device = find_device(name)
    device = Device(torch_device, "", "float32", torch.get_num_threads(), 1.0, "")
    set_up(torch_device, device.threads)
    tiny = Shape(1, 1, 64, 16, 64, **PRESETS["modern"])
    measure(device, tiny, OptimSettings(), 1, 1, 0.0)


def _read_requests(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    # The run has ended, perhaps in the middle of a trial: kill this process and all that it started.
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def main() -> None:
    """Answer requests until standard input closes."""
    # Only answers go through the pipe; what libraries print goes to standard error.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read_requests, args=(lines,), daemon=True).start()
        warm_up(sys.argv[1])
        reply: dict[str, Any] = {"ready": True}
        while True:
            answers.write(json.dumps(reply) + "\n")
            answers.flush()
            reply = answer(json.loads(lines.get()))


if __name__ == "__main__":
    main()
