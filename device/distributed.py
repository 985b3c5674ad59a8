"""The processes of one run: which of them this one is, and how they come to the same decision."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """`size` processes, each with a `rank` from 0 to size - 1. With one process, every method is the identity.

    What the processes have to agree on (how many steps are left, whether to stop, a smaller micro-batch) goes through
    `broadcast` or `first`. Values travel as JSON, because torch's own object collectives unpickle.
    """

    rank: int = 0
    size: int = 1

    def broadcast(self, value: Value) -> Value:
        """The value that rank 0 has, on every process."""
        return value if self.size == 1 else self._gather(value)[0]

    def first(self, value: Value) -> Value:
        """The value of the lowest rank that has one other than None, on every process."""
        if self.size == 1:
            return value
        values = self._gather(value)
        return next((each for each in values if each is not None), values[0])

    def share(self, count: int) -> slice:
        """The contiguous part of `count` items that this process works on; the parts differ by one item at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def _gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank."""
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
    """The processes that torchrun started together with this one, joined over NCCL on GPUs and Gloo on CPUs; a world of
    one where there are no others."""
    if int(os.environ.get("WORLD_SIZE") or "1") <= 1:
        return World()
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def leave_world(world: World) -> None:
    """End the connections to the other processes."""
    if world.size > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def local_device(name: str) -> str:
    """Under torchrun, this process's own GPU; `name` itself elsewhere."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and name in ("auto", "cuda") and torch.cuda.is_available() else name
