"""Tests of how the items of a task are answered: in batches, by several processes, and in full or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from common.errors import MachineError, UserError
from device.distributed import World
from evals.bookkeeping.answers import AnswerFile
from evals.run_task import Respondent, answer_items, figures_of, marks_of
from evals.scoring import Request
from evals.tasks.minimal_pairs import MinimalPairs
from evals.tasks.task import Item, Task, TaskOptions
from tests.evals.small import build, scorer


def pairs(count: int = 90, **changed: Any) -> Task:
    """Pairs of sentences of different lengths."""
    items = []
    for i in range(count):
        good, bad = (Request("", f"{word * (1 + i % 7)} {i}") for word in ("cat ", "tac "))
        items.append(Item(f"p:{i}", (good, bad), group="p", content={"paradigm": "p", "phenomenon": "q", "field": "r"}))
    return MinimalPairs("pairs", TaskOptions("minimal_pairs", **changed), items, "paradigm")


def respondent() -> Respondent:
    return Respondent(scorer(build(), micro_batch=1), "model")


def evaluated(
    path: Path | None, world: World, task: Task | None = None, stop: Any = lambda: None
) -> list[dict[str, Any]]:
    task, answers = task or pairs(), AnswerFile(path)
    answer_items(task, respondent(), answers, stop=stop, processes=world)
    return marks_of(task, answers, "model")


def logprobs(marks: list[dict[str, Any]]) -> list[float]:
    return [each for mark in marks for each in mark["logprobs"]]


@dataclass
class StopsAt:
    """Raises at its n-th call."""

    n: int

    def __call__(self) -> None:
        self.n -= 1
        if self.n == 0:
            raise TimeoutError("time is up")


def one_of_two_processes(rank: int, folder: str) -> None:
    """Evaluate with another process: whole, then stopped at the third batch of rank 1 alone, then to its end."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world, path = World(rank, 2), Path(folder)
    marks = evaluated(path / "together.jsonl", world)
    try:
        evaluated(path / "stopped.jsonl", world, stop=StopsAt(3) if rank == 1 else lambda: None)
        stopped = ""
    except (TimeoutError, MachineError) as error:
        stopped = f"{type(error).__name__}: {error}"
    evaluated(path / "stopped.jsonl", world)
    dist.destroy_process_group()
    (path / f"{rank}.json").write_text(json.dumps([marks, stopped]))


def test_the_number_of_processes_changes_neither_answers_nor_their_file(tmp_path: Path) -> None:
    mp.spawn(one_of_two_processes, (str(tmp_path),), nprocs=2)
    alone = evaluated(tmp_path / "alone.jsonl", World())
    text = (tmp_path / "alone.jsonl").read_text()
    for rank, expected in enumerate(
        ["MachineError: process 1 of the evaluation failed: TimeoutError: time is up", "TimeoutError"]
    ):
        marks, stopped = json.loads((tmp_path / f"{rank}.json").read_text())
        assert logprobs(marks) == pytest.approx(logprobs(alone), abs=1e-5)
        assert stopped.startswith(expected)
    assert len(text.splitlines()) == 90
    assert sum(json.loads(line).get("end", False) for line in text.splitlines()) > 6
    for name in ("together", "stopped"):
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        expected_lines = [json.loads(line) for line in text.splitlines()]
        assert [(line["id"], line.get("end")) for line in lines] == [
            (line["id"], line.get("end")) for line in expected_lines
        ]


def test_problems_are_refused_with_the_item_before_anything_is_computed(tmp_path: Path) -> None:
    task = pairs(14)
    long = [Item(f"long:{i}", (Request("a" * (200 + i), "b"), Request("a" * 99, "c"))) for i in range(6)]
    empty = [Item(f"empty:{i}", (Request("a" * (i + 1), ""),)) for i in range(11)]
    task = replace(task, items=[*task.items, *long, *empty])  # type: ignore[type-var]
    with pytest.raises(UserError) as caught:
        evaluated(tmp_path / "answers.jsonl", World(), task)
    messages = caught.value.messages
    assert messages[0].startswith(
        "pairs: 6 of 31 items are too long, e.g. item long:0: 200 tokens are more than the model's"
    )
    assert messages[1].startswith("pairs, item empty:0: the continuation '' has no token of its own")
    assert messages[10:] == ("... and 2 more in pairs",)
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    expected = evaluated(tmp_path / "whole.jsonl", World())
    for n in (1, 4, 2):
        with pytest.raises(TimeoutError):
            evaluated(tmp_path / "stopped.jsonl", World(), stop=StopsAt(n))
    done: list[int] = []
    task, answers = pairs(), AnswerFile(tmp_path / "stopped.jsonl")
    answer_items(task, respondent(), answers, progress=done.append)
    assert 0 < done[0] < done[-1] == 90
    assert marks_of(task, answers, "model") == expected
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert figures_of(task, expected)["items"] == 90
