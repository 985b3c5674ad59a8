"""The processes of a distributed run: rank, size, and how they agree on a decision."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """`size` processes, each with a `rank` from 0 to size - 1. With one process, every method returns its input.

    Decisions that the processes must share (how many steps are left, whether to stop, a smaller micro-batch) go through
    `broadcast`, `first` or `gather`. Values are sent as JSON, because torch's object collectives use pickle.
    """

    rank: int = 0
    size: int = 1

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's value on every process."""
        return self.gather(value)[0]

    def first(self, value: Value) -> Value:
        """Return, on every process, the value of the lowest rank that has one other than None."""
        values = self.gather(value)
        return next((each for each in values if each is not None), values[0])

    def share(self, count: int) -> slice:
        """Return the contiguous part of `count` items for this process; the parts differ by at most one item."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes by rank."""
        if self.size == 1:
            return [value]
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        mine = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)], device=device))
        longest = int(max(lengths))
        texts = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(self.size)]
        dist.all_gather(texts, torch.nn.functional.pad(mine, (0, longest - len(mine))))
        return [json.loads(bytes(text[: int(n)].tolist())) for text, n in zip(texts, lengths, strict=True)]


def join_world(device: str) -> World:
    """Join the processes that torchrun started, over NCCL on GPUs and Gloo on CPUs; without torchrun, a world of one."""
    if int(os.environ.get("WORLD_SIZE") or "1") <= 1:
        return World()
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def leave_world(world: World) -> None:
    """Close the connections to the other processes."""
    if world.size > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def local_device(name: str) -> str:
    """Return this process's own GPU under torchrun, otherwise `name`."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and name in ("auto", "cuda") and torch.cuda.is_available() else name
