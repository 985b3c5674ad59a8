"""Trials of a shape on this machine: a real training step on random tokens, to measure what it costs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from budget.probe import measure_speed
from model.gpt import GPT
from model.optim import configure_optimizers
from model.shape import Shape
from run.machine import Machine


def halving_out_of_memory(attempt: Callable[[int], float], micro_batch: int) -> tuple[float, int]:
    """`attempt(micro_batch)`, with half the micro-batch as often as the device runs out of memory; the micro-batch
    that worked comes back too. A single sequence that does not fit raises torch.OutOfMemoryError."""
    while True:
        try:
            return attempt(micro_batch), micro_batch
        except torch.OutOfMemoryError:
            if micro_batch == 1:
                raise
        # Outside the except block: its traceback would keep the tensors of the failed attempt alive.
        torch.cuda.empty_cache()
        micro_batch //= 2


def measure_shape(
    machine: Machine, shape: Shape, optimizer: str, batch_tokens: int, micro_batch: int | None, seconds: float
) -> tuple[float, int]:
    """Tokens per second of training `shape` with `batch_tokens` a step, and the micro-batch that fitted.

    The step is the training loop's own work without its bookkeeping: forward, backward, clipping, optimizer. The model
    is thrown away. What is measured is not compiled.
    """
    sequences = max(1, batch_tokens // shape.block_size)
    with torch.random.fork_rng(), torch.device(machine.device):
        model = GPT(shape)
    optim = configure_optimizers(model, 1e-4, 0.1, (0.9, 0.95), machine.device.type, optimizer)
    size = (sequences, shape.block_size)
    x, y = (torch.randint(shape.vocab_size, size, device=machine.device) for _ in range(2))

    def attempt(micro: int) -> float:
        def step() -> None:
            for xs, ys in zip(x.split(micro), y.split(micro), strict=True):
                with machine.autocast():
                    loss = model(xs, ys) * (len(xs) / len(x))
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optim.step()
            optim.zero_grad(set_to_none=True)

        return measure_speed(step, x.numel(), machine.synchronize, seconds)

    return halving_out_of_memory(attempt, micro_batch or machine.micro_batch(shape, sequences))
