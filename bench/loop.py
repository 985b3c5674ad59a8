"""train.py, with the seconds of each part of its loop: python -m bench.loop FILE KNOBS

The same run as train.py's; FILE gets what a step took, by part, in medians over its steps. `other` is all that the loop does
beside the parts: the clock, the metrics, the bar. On a GPU the parts would be those of launching them, so only a CPU's count.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import train
from budget.clock import now
from model.gpt import GPT
from model.muon import Mixed

# What between two steps is no part of a step.
APART = ((train, "save"), (train, "rehearse_report"), (train, "interim_evaluation"))
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "loader": ((train, "micro_batches"),),
    "forward": ((GPT, "forward"),),
    "backward": ((torch.Tensor, "backward"),),
    "clip": ((train, "clip"),),
    "optimizer": ((Mixed, "step"), (Mixed, "zero_grad")),
}


class Steps:
    """Seconds by part of the step that goes on, and of those before it."""

    def __init__(self) -> None:
        self.done: list[dict[str, float]] = []
        self._began, self._parts = now(), dict.fromkeys((*PARTS, "apart"), 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = now()
            try:
                return function(*arguments, **keywords)
            finally:
                self._parts[part] += now() - began

        return call

    def ended(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, after which a step is over."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            found = function(*arguments, **keywords)
            whole, self._began = now() - self._began, now()
            parts, self._parts = self._parts, dict.fromkeys(self._parts, 0.0)
            self.done.append({**parts, "other": whole - sum(parts.values())})
            return found

        return call


def main() -> None:
    path, steps = Path(sys.argv.pop(1)), Steps()
    for part, places in {**PARTS, "apart": APART}.items():
        for owner, name in places:
            setattr(owner, name, steps.timed(part, getattr(owner, name)))
    train.show_progress = steps.ended(train.show_progress)
    fit = train.fit

    def fitted(*arguments: Any) -> str:
        stopped_by = fit(*arguments)
        medians = {part: statistics.median(each[part] for each in steps.done) for part in (*PARTS, "other")}
        path.write_text(json.dumps(medians))
        return stopped_by

    train.fit = fitted
    train.command()


if __name__ == "__main__":
    main()
