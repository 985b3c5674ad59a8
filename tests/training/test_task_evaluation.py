"""Tasks during a run: the curve, the final figures, what fits into the budget, and what happens after a stop."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import evals.run_task
from budget.clock import BudgetClock
from common.errors import MachineError, UserError
from data.eval_windows import EvalRange
from data.shards import Split
from evals.bookkeeping.answers import AnswerFile
from evals.run_task import fingerprint_of, key_of
from evals.scoring import NotFinite
from evals.tasks.minimal_pairs import MinimalPairs
from evals.tasks.registry import open_tasks
from evals.tasks.task import Item, TaskOptions
from run.history import evaluations, read_metrics, read_run
from run.load_model import load_model
from run.report.run_report import render
from tests.conftest import run_here
from training.finalize import shrunk
from training.task_evaluation import FINAL, INTERIM, RunTask

BASE = ("budget.steps=8", "eval.every=0.25", "checkpoint.every_s=3600", "eval.interim_items=10", "optim.micro_batch=4")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no report: plots take most of such a short run."""
    monkeypatch.setattr("run.report.run_report.write_report", lambda folder: None)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two paradigms of 30 pairs: `def` is spelled right or wrong."""
    folder = tmp_path_factory.mktemp("pairs")
    for paradigm, wrong in (("swapped", "edf"), ("doubled", "deff")):
        rows = [
            {"sentence_good": f"def n{i * i}(self):", "sentence_bad": f"{wrong} n{i * 7}(self):"} for i in range(30)
        ]
        (folder / f"{paradigm}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tasks(folder: Path) -> str:
    return f"eval.tasks={{spelling: {{kind: minimal_pairs, path: {folder}}}}}"


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def scored(place: Path, pairs: Path) -> Path:
    """A run of eight steps that was not disturbed."""
    patch = pytest.MonkeyPatch()
    patch.setattr("run.report.run_report.write_report", lambda folder: None)
    folder = run_here(place, *BASE, tasks(pairs), name="scored")
    patch.undo()
    return folder


def test_the_curve_and_the_result_have_the_scores(scored: Path) -> None:
    points, figures = evaluations(read_metrics(scored)), read(scored, "result.json")["tasks"]["spelling"]
    assert len(points) == 3
    assert all(0 <= point["task_spelling"] <= 1 and point["task_spelling_se"] >= 0 for point in points)
    assert (figures["items"], figures["available"], figures["chance"]) == (60, 60, 0.5)
    log = (scored / "log.txt").read_text()
    assert "spelling: 60 items" not in log and "60 of 60 items at the end, 10 at interim evaluations" in log
    assert f"{figures['score']:.2%}" in log


def test_training_is_the_same_with_tasks(place: Path, scored: Path) -> None:
    without = run_here(place, *BASE, name="without")
    assert sha256(without / "model.safetensors") == sha256(scored / "model.safetensors")
    assert read(without, "result.json")["tasks"] == {}
    assert not (without / "tasks.json").exists()


def test_a_run_that_is_stopped_in_the_final_evaluation_ends_with_the_same_result(
    place: Path, pairs: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_batch = evals.run_task.answer_batch

    def stop_after_training(*arguments: Any) -> Any:
        if list(tmp_path.glob("scored-*/model.json")):
            os.kill(os.getpid(), signal.SIGTERM)
        return answer_batch(*arguments)

    arguments = (*BASE, tasks(pairs), f"output_dir={tmp_path}")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("evals.run_task.answer_batch", stop_after_training)
        run_here(place, *arguments, name="scored")
    answers = tmp_path / scored.name / "evaluations" / "spelling.answers.jsonl"
    first = answers.read_bytes()
    assert stop.value.code == 128 + signal.SIGTERM
    assert read(tmp_path / scored.name, "status.json")["status"] == "stopped"
    assert 0 < len(first.splitlines()) < 60
    resumed = run_here(place, *arguments, name="scored")
    assert read(resumed, "result.json")["tasks"] == read(scored, "result.json")["tasks"]
    assert answers.read_bytes().startswith(first), "what was answered is not computed again"
    assert answers.read_bytes() == (scored / "evaluations" / "spelling.answers.jsonl").read_bytes()


def test_tasks_are_cut_at_the_deadline_to_evenly_spaced_items(
    place: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches, seconds_left = [], BudgetClock.seconds_left

    def count(*arguments: Any) -> Any:
        batches.append(len(arguments[0]))
        return answer_batch(*arguments)

    answer_batch = evals.run_task.answer_batch
    monkeypatch.setattr(evals.run_task, "answer_batch", count)

    def late(clock: BudgetClock) -> float | None:
        """The deadline passes after 20 items of the final evaluation."""
        if not list(tmp_path.glob("late-*/model.json")):
            batches.clear()
            return seconds_left(clock)
        return 3600.0 if sum(batches) < 20 else 0.0

    monkeypatch.setattr(BudgetClock, "seconds_left", late)
    folder = run_here(place, *BASE, "budget.hours=1", tasks(pairs), f"output_dir={tmp_path}", name="late")
    figures, result = read(folder, "result.json")["tasks"]["spelling"], read(folder, "result.json")
    assert result["status"] == "finished" and result["eval"]["loss"] > 0 and len(result["samples"]) == 3
    assert 20 <= figures["items"] < 60 == figures["available"]
    counts = [paradigm["items"] for paradigm in figures["by_paradigm"].values()]
    assert max(counts) - min(counts) <= 1, "as many items of each paradigm"
    assert f"time was left for {figures['items']} of 60 items" in capsys.readouterr().out


def test_a_task_with_log_probabilities_that_are_not_finite_is_a_divergence(
    place: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_batch, batches = evals.run_task.answer_batch, []

    def fail(*arguments: Any) -> Any:
        if list(tmp_path.glob("bad-*/metrics.jsonl")) and "tokens_per_second" in (
            next(tmp_path.glob("bad-*/metrics.jsonl")).read_text()
        ):
            batches.append(True)
            raise NotFinite("not finite")
        return answer_batch(*arguments)

    monkeypatch.setattr(evals.run_task, "answer_batch", fail)
    with pytest.raises(MachineError, match=r"diverged: a log-probability of spelling after step \d is not finite"):
        run_here(place, *BASE, tasks(pairs), f"output_dir={tmp_path}", name="bad")
    (folder,) = tmp_path.glob("bad-*")
    assert read(folder, "status.json")["status"] == "diverged"
    assert len(batches) == 2, "training went back to a checkpoint once"


def test_evaluate_finds_the_answers_of_the_run(scored: Path, pairs: Path) -> None:
    model = load_model(str(scored), torch.device("cpu"))
    known = AnswerFile(scored / "evaluations" / "spelling.answers.jsonl").known
    (task,) = open_tasks("spelling", TaskOptions("minimal_pairs", path=str(pairs)))
    fingerprint = fingerprint_of(model.about["sha256"], model.tokenizer, "float32")
    keys = [key_of(item, task.options, fingerprint) for item in task.items]
    assert sorted(keys) == sorted(known)


def test_a_lack_of_memory_halves_the_batches(
    place: Path, pairs: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_batch, failures = evals.run_task.answer_batch, []

    def fail_once(*arguments: Any) -> Any:
        if list(tmp_path.glob("scored-*/model.json")) and not failures:
            failures.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_batch(*arguments)

    monkeypatch.setattr("evals.run_task.answer_batch", fail_once)
    folder = run_here(place, *BASE, tasks(pairs), f"output_dir={tmp_path}", name="scored")
    assert "2 sequences at a time from here on instead of 4" in (folder / "metrics.jsonl").read_text()
    scores = [read(each, "result.json")["tasks"]["spelling"]["score"] for each in (folder, scored)]
    assert scores[0] == scores[1]


def test_changed_items_are_noted_when_a_run_is_resumed(
    place: Path, scored: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(scored, tmp_path / "outputs" / scored.name))
    before = (pairs / "doubled.jsonl").read_text()
    try:
        (pairs / "doubled.jsonl").write_text("".join(before.splitlines(keepends=True)[:10]))
        run_here(place, *BASE, tasks(pairs), "budget.extend=2", f"output_dir={copy.parent}", name="scored")
    finally:
        (pairs / "doubled.jsonl").write_text(before)
    assert "the items of spelling were changed since the run began" in capsys.readouterr().out
    figures = [read(folder, "result.json")["tasks"]["spelling"] for folder in (scored, copy)]
    assert [each["items"] for each in figures] == [60, 40]
    assert figures[0]["fingerprint"] != figures[1]["fingerprint"]


def test_items_that_do_not_fit_are_refused_before_training(place: Path, tmp_path: Path) -> None:
    rows = [{"sentence_good": word * 3, "sentence_bad": word * 20} for word in ("ab", "cd")]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = r"^spelling: 2 of 2 items are too long, e\.g\. item long:0: a continuation of 40 tokens .* window of 32"
    with pytest.raises(UserError, match=refused):
        run_here(place, *BASE, tasks(tmp_path), f"output_dir={tmp_path / 'outputs'}")
    assert not list((tmp_path / "outputs").glob("t-*")), "nothing is kept of a run that cannot begin"


def test_tasks_are_opened_before_anything_is_prepared(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs task\.path"):
        run_here(
            place, *BASE, "eval.tasks={spelling: {kind: minimal_pairs}}", "data.path=missing", f"output_dir={tmp_path}"
        )


def task_of(items: int, item_s: float, kept: frozenset[str] = frozenset()) -> RunTask:
    pairs = MinimalPairs("pairs", TaskOptions("minimal_pairs"), [Item(str(i)) for i in range(items)], "paradigm")
    return RunTask(pairs, "", {INTERIM: 200, FINAL: items}, kept, item_s)


@pytest.mark.parametrize(
    ("allowed_s", "tokens", "items"),
    [
        (1000.0, 2048, [64, 1024]),
        (30.0, 1024, [64, 128]),  # of 16 s, 6.4 s and 102.4 s, 8 s, 6.4 s and 12.8 s are left
        (6.0, 256, [16, 16]),
        (0.0, 32, [1, 1]),  # at least one window, and one item of each
    ],
)
def test_the_most_expensive_part_is_halved_until_all_fit(allowed_s: float, tokens: int, items: list[int]) -> None:
    split = Split("val", [np.ones(2048, np.uint16)], [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], ["text"])
    tasks = [task_of(64, 0.1), task_of(1024, 0.1)]
    trainer: Any = SimpleNamespace(
        tasks=tasks,
        window_s=0.25,
        shape=SimpleNamespace(block_size=32),
        corpus=SimpleNamespace(val=split, tokenizer=SimpleNamespace(eot=1)),
    )
    windows = shrunk(trainer, EvalRange(split, 32, 2048, 1), FINAL, allowed_s)
    assert (windows.n_tokens, [task.counts[FINAL] for task in tasks]) == (tokens, items)


def test_the_items_of_a_resumed_run_are_not_cut_again() -> None:
    split = Split("val", [np.ones(64, np.uint16)], [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], ["text"])
    trainer: Any = SimpleNamespace(tasks=[task_of(64, 0.1, frozenset({FINAL}))], window_s=0.25)
    trainer.shape, trainer.corpus = (
        SimpleNamespace(block_size=32),
        SimpleNamespace(val=split, tokenizer=SimpleNamespace(eot=1)),
    )
    shrunk(trainer, EvalRange(split, 32, 64, 1), FINAL, 1.0)
    assert trainer.tasks[0].counts[FINAL] == 64


def test_interim_items_are_some_of_the_final_ones_and_of_every_group() -> None:
    items = [Item(f"{group}{i}", group=group) for group in "abc" for i in range(100)]
    task = RunTask(
        MinimalPairs("pairs", TaskOptions("minimal_pairs"), items, "paradigm"), "", {INTERIM: 12, FINAL: 150}
    )
    final, interim = (task.chosen(kind) for kind in (FINAL, INTERIM))
    assert {item.id for item in interim} < {item.id for item in final}
    assert [sum(item.group == group for item in interim) for group in "abc"] == [4, 4, 4]


def test_the_page_shows_the_curve_and_the_final_table(scored: Path) -> None:
    page = render(read_run(scored, read_metrics(scored)))
    assert "<h2>Tasks</h2>" in page and "Score of spelling" in page
    assert ">chance<" in page and "final evaluation, 95 % interval" in page


def test_names_and_values_of_a_hostile_curve_do_no_harm(scored: Path) -> None:
    hostile = [{"step": 1, "progress": 0.5, "val_loss": 1.0, "task_<b>$x": 0.4, "task_<b>$x_se": -1e9, "task_y": [{}]}]
    assert "<b>$x" not in render(read_run(scored, hostile)).replace("<b>{{", "")
