"""Trials of shapes in a process of their own: `python -m training.trial_worker DEVICE` reads requests, a JSON object a line, and answers.

Real training steps on random tokens. What a trial takes of memory, and a crash of it, end with its process; the run that
asked is not touched. It ends by itself when its standard input does, so that it never outlives the run.
"""

from __future__ import annotations

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
from data.batch import Batch
from device.device import Device, find_device, set_up
from device.memory import out_of_memory
from model.compile import cache_state, compile_for_training
from model.config import PRESETS, Shape
from model.gpt import GPT
from model.optim.build import configure_optimizers
from model.optim.settings import OptimSettings
from training.objectives import next_token
from training.step import TrainingStep

# What the training loop does besides, seconds a step: batches, 0.3 ms, and the clock, the metrics and the bar, 0.8 to 1.4 ms, on
# two CPU cores (docs/performance.md). A GPU works on meanwhile.
BOOKKEEPING_S = {"cpu": 0.0012}


def step_on_random_tokens(
    device: Device, shape: Shape, optimizer: OptimSettings, micro_batch: int, compiled: str
) -> tuple[TrainingStep, Batch[torch.Tensor]]:
    """A training step of a new model, and a micro-batch of random tokens to train it on."""
    with torch.device(device.torch_device):
        model = GPT(shape)
    loss_of = compile_for_training(next_token, model, compiled)
    optim = configure_optimizers(model, 1e-4, 0.1, (0.9, 0.95), device.torch_device.type, optimizer)
    inputs, targets = (torch.randint(shape.vocab_size, (micro_batch, shape.block_size)).numpy() for _ in range(2))
    batch = device.batch(Batch(inputs, targets), shape)
    return TrainingStep(loss_of, optim, device.scaler(), device.autocast, grad_clip=1.0), batch


def measure(
    device: Device,
    shape: Shape,
    optimizer: OptimSettings,
    sequences: int,
    micro_batch: int,
    seconds: float,
    compiled: str = "off",
) -> dict[str, Any]:
    """What an optimizer step of `sequences`, `micro_batch` at once, costs: token_s, update_s, start_s, compile_s with
    compile_cache, as in Trial, and bytes of peak_memory, and of available_memory, which the process had or could have had before.

    The step is the training loop's own work: forward and backward, which take token_s per token; clipping, optimizer,
    and a constant for the rest, which take update_s. They are timed apart, so that a large batch is measured without
    running all of it. Medians; the first step, which also allocates memory and compiles, is left out.
    """
    available = device.restart_peak_memory() + device.free_memory()
    micro, began = min(micro_batch, sequences), now()
    step, batch = step_on_random_tokens(device, shape, optimizer, micro, compiled)
    device.synchronize()
    build_s = now() - began

    def timed(work: Callable[[], object]) -> float:
        began = now()
        work()
        device.synchronize()
        return now() - began

    def forward_backward() -> None:
        step.forward_backward([batch], micro)

    def update() -> None:
        step.clip()
        step.update()

    first_s = timed(forward_backward)
    if micro < sequences:
        timed(forward_backward)  # for the memory: the gradient of the first is held meanwhile
    first_update_s = timed(update)
    micro_s: list[float] = []
    update_s: list[float] = []
    began = now()
    while now() - began < seconds or len(micro_s) < MIN_REPEATS:
        micro_s.append(timed(forward_backward))
        update_s.append(timed(update))
    one, one_update = statistics.median(micro_s), statistics.median(update_s)
    return {
        "token_s": one / (micro * shape.block_size),
        "update_s": one_update + BOOKKEEPING_S.get(device.torch_device.type, 0.0),
        "start_s": build_s + max(0.0, first_s - one) + max(0.0, first_update_s - one_update),
        "compile_s": max(0.0, first_s - one) if compiled != "off" else 0.0,
        "compile_cache": cache_state() if compiled != "off" else None,
        "peak_memory": device.peak_memory(),
        "available_memory": available,
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request; too large is an answer, every other failure is named."""
    device = Device(**{**request["device"], "torch_device": torch.device(request["device"]["torch_device"])})
    set_up(device.torch_device, device.threads)
    try:
        return measure(device, Shape(**request["shape"]), OptimSettings(**request["optimizer"]), **request["trial"])
    except Exception as error:  # the run that asked decides what a failure is worth
        if out_of_memory(error):
            return {"too_large": True}
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    finally:
        device.release_memory()


def warm_up(name: str) -> None:
    """What a process pays for once, in its first step, is not any shape's doing."""
    found = find_device(name)
    device = Device(found, "", "float32", torch.get_num_threads(), 1.0, "")
    set_up(found, device.threads)
    tiny = Shape(1, 1, 64, 16, 64, **PRESETS["modern"])
    measure(device, tiny, OptimSettings(), 1, 1, 0.0)


def _read_requests(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    # Whoever asked is gone, perhaps in the middle of a trial: end this process and all that it started.
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def main() -> None:
    # Answers alone go through the pipe; what a library prints goes where errors go.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read_requests, args=(lines,), daemon=True).start()
        warm_up(sys.argv[1])
        found: dict[str, Any] = {"ready": True}
        while True:
            answers.write(json.dumps(found) + "\n")
            answers.flush()
            found = answer(json.loads(lines.get()))


if __name__ == "__main__":
    main()
