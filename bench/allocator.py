"""What it brings that freed memory stays with the process (run/machine.py: keep_freed_memory), on the CPU.

    python -m bench.allocator      # three minutes; writes bench/results/allocator.json

Training steps of three shapes, with and without, in turns and in processes of their own; ratios of medians.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from budget.clock import now

RESULT = Path(__file__).parents[1] / "bench" / "results" / "allocator.json"
SHAPES = ((1, 64, 120), (2, 128, 60), (4, 256, 25))  # layers, width, steps
SEQUENCES, BLOCK, VOCAB = 4, 256, 4096
ROUNDS = 5


def measure(keep: bool) -> list[dict[str, float]]:
    """Milliseconds, page faults and system time of a step, by shape, in this process."""
    import torch

    from model.gpt import GPT
    from model.optim import configure_optimizers
    from model.shape import PRESETS, Shape
    from run.machine import keep_freed_memory

    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    x, y = (torch.randint(VOCAB, (SEQUENCES, BLOCK)) for _ in range(2))
    found = []
    for layers, width, steps in SHAPES:
        model = GPT(Shape(layers, width // 64, width, BLOCK, VOCAB, **PRESETS["modern"]))
        optimizer = configure_optimizers(model, 1e-4, 0.1, (0.9, 0.99), "cpu")
        times, before = [], resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(steps):
            began = now()
            model(x, y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(now() - began)
        after = resource.getrusage(resource.RUSAGE_SELF)
        found.append(
            {
                "ms": 1000 * statistics.median(times),
                "faults": (after.ru_minflt - before.ru_minflt) / steps,
                "system_ms": 1000 * (after.ru_stime - before.ru_stime) / steps,
            }
        )
    return found


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1] == "keep")))
        return
    runs: dict[str, list[list[dict[str, float]]]] = {"give": [], "keep": []}
    for _ in range(ROUNDS):
        for how, found in runs.items():
            answer = subprocess.run(
                [sys.executable, "-m", "bench.allocator", how], capture_output=True, text=True, check=True
            )
            found.append(json.loads(answer.stdout))
    rows = []
    for i, (layers, width, _) in enumerate(SHAPES):
        row: dict[str, object] = {"n_layer": layers, "n_embd": width}
        for how, found in runs.items():
            row |= {f"{name}_{how}": statistics.median(each[i][name] for each in found) for name in found[0][i]}
        pairs = zip(runs["give"], runs["keep"], strict=True)
        row["speedup"] = statistics.median(give[i]["ms"] / keep[i]["ms"] for give, keep in pairs)
        rows.append(row)
        print(row)
    RESULT.write_text(
        json.dumps({"how": "python -m bench.allocator", "rounds": ROUNDS, "shapes": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
