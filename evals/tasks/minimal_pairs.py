"""Minimal pairs: does the model find the acceptable sentence more likely? BLiMP (Warstadt et al. 2020, arXiv:1912.00582)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from evals.scoring import Request
from evals.tasks.task import MEAN, Answer, Generated, Item, TaskOptions


@dataclass(frozen=True)
class MinimalPairs:
    """See `Task`."""

    name: str
    options: TaskOptions
    items: Sequence[Item]
    kind: str = "minimal_pairs"
    statistic: str = MEAN
    chance: float = 0.5

    def mark(self, item: Item, answer: Answer) -> dict[str, Any]:
        """The sums of both sentences; a tie counts one half, or as right with task.ties=good."""
        assert not isinstance(answer, Generated)
        good, bad = (score.logprob for score in answer)
        tie = {"half": 0.5, "good": 1.0}[self.options.ties]
        return {
            "id": item.id,
            "group": item.content["paradigm"],
            "score": tie if good == bad else float(good > bad),
            "gold": "good",
            "answer": "tie" if good == bad else "good" if good > bad else "bad",
            "logprobs": [good, bad],
        }

    def figures(self, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The number of ties."""
        return {"ties": sum(mark["answer"] == "tie" for mark in marks)}


def load_minimal_pairs(name: str, options: TaskOptions) -> list[Any]:
    """Load a folder of .jsonl files with `sentence_good` and `sentence_bad`; each file is a paradigm."""
    if options.path is None:
        raise UserError(f"tasks={name} needs task.path=FOLDER")
    items = []
    for file in sorted(Path(options.path).glob("*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines()):
            row = json.loads(line)
            pair = (Request("", row["sentence_good"]), Request("", row["sentence_bad"]))
            items.append(Item(f"{file.stem}:{number}", pair, group=file.stem, content={"paradigm": file.stem}))
    return [MinimalPairs(name, options, items)]
