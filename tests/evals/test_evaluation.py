"""The stages of an evaluation with a tiny model, and evaluate.py as a user runs it: interrupted, killed, repeated, compared."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import evals.evaluation as stages
from common.errors import UserError
from common.json_io import write_json
from evals.evaluation import Folder, Models, file_name, load_tasks, route_tasks, select
from evals.pace import Pacer
from evals.run_task import OneProcess
from evals.scoring import Request
from evals.tasks.minimal_pairs import MinimalPairs
from evals.tasks.task import Item, Task, TaskOptions
from model.config import PRESETS, Shape
from model.gpt import GPT
from run.checkpoint import save_weights
from tests.conftest import ROOT
from tests.copies import copied
from tests.evals.test_scoring import bytes_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "its", "red", "hat"]


def save(folder: Path, seed: int = 0) -> Path:
    """The files of a finished run of a tiny model."""
    folder.mkdir(parents=True)
    tokenizer = bytes_tokenizer()
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": tokenizer.n_vocab}
    shape = Shape(**sizes, **PRESETS["llama"])
    tokenizer.save(folder / "tokenizer.json")
    digest = save_weights(folder / "model.safetensors", GPT(shape))
    content = {"format": 1, "shape": shape.to_dict(), "sha256": digest, "tokenizer_fingerprint": tokenizer.fingerprint}
    write_json(folder / "model.json", content, checksummed=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("runs") / "one")


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * step + number // 7) % len(WORDS)] for step in (1, 2, 3, 5, 7)[: 2 + number % 4])


def pairs(name: str = "pairs", count: int = 40, prefix: str = "empty", changed: int = 0) -> Task:
    """Pairs in four groups; the text of the first `changed` is another."""
    items = [
        Item(
            f"{name}:{i}",
            (Request("", f"{sentence(i)} {i}{'!' * (i < changed)}"), Request("", f"{sentence(i + 1)} {i}")),
            group=str(i % 4),
            content={"paradigm": str(i % 4), "phenomenon": "p", "field": "f"},
        )
        for i in range(count)
    ]
    return MinimalPairs(name, TaskOptions("minimal_pairs", prefix=prefix), items, "paradigm")


def models(precision: str = "float32") -> Models:
    return Models(torch.device("cpu"), contextlib.nullcontext, precision, micro_batch=1)


def evaluated(
    task: Task, run: Path, folder: Path, stop: Any = lambda: None, precision: str = "float32"
) -> stages.Answered:
    with Folder.opened(folder, True) as files:
        answered, _ = stages.answer_tasks(
            {str(run): [task]}, models(precision), files, lambda pace: None, stop, OneProcess()
        )
    return answered[task.name]


class StopAfter:
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __call__(self) -> None:
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt


def test_an_interrupted_evaluation_goes_on_to_the_same_file(run: Path, tmp_path: Path) -> None:
    whole = evaluated(pairs(count=60), run, tmp_path / "whole")
    assert whole.figures["computed"] == 60
    for batches in (0, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            evaluated(pairs(count=60), run, tmp_path / "stopped", StopAfter(batches))
    again = evaluated(pairs(count=60), run, tmp_path / "stopped")
    assert again.predictions == whole.predictions
    assert 0 < again.figures["computed"] < 60
    name = "pairs.answers.jsonl"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_only_what_changed_is_computed(run: Path, tmp_path: Path) -> None:
    def computed(task: Task, model: Path = run, precision: str = "float32") -> int:
        count: int = evaluated(task, model, tmp_path / "e", precision=precision).figures["computed"]
        return count

    assert computed(pairs()) == 40
    assert computed(pairs()) == 0
    assert computed(pairs(changed=3)) == 3
    assert computed(pairs(prefix="always")) == 40
    assert computed(pairs(count=50)) == 10
    assert computed(pairs(), save(tmp_path / "other", seed=1)) == 40
    assert computed(pairs(), precision="bfloat16") == 40
    assert computed(pairs()) == 0


def test_a_share_of_the_items_is_the_same_each_time_and_has_every_group() -> None:
    ids = [item.id for item in select(pairs(count=400), None, 0.1).items]
    assert len(ids) == 40
    assert {int(each.partition(":")[2]) % 4 for each in ids} == {0, 1, 2, 3}
    assert [item.id for item in select(pairs(count=400), None, 0.1).items] == ids
    limited = select(pairs(count=400), 7, 0.1)
    for group in "0123":
        in_group = [each for each in ids if int(each.partition(":")[2]) % 4 == int(group)]
        assert [item.id for item in limited.items if item.group == group] == in_group[:7]
    assert len(select(pairs(count=3), None, 0.01).items) == 1


def test_names_of_tasks_become_different_names_of_files() -> None:
    names = ["blimp", "lm_eval:x/y", "lm_eval:x_y", "../up", "a b", ".hidden", "日本", "日本語", "x" * 300]
    files = [file_name(name) for name in names]
    assert files[0] == "blimp"
    assert len(set(files)) == len(files)
    assert all(each.isascii() and "/" not in each and not each.startswith(".") and len(each) < 200 for each in files)


def test_a_model_above_the_reference_is_warned_about() -> None:
    tasks: dict[str, dict[str, Any]] = {
        "quiz": {"score": 0.5, "checkpoint": "a"},
        "given": {"score": 0.5, "checkpoint": None},
    }
    (line,) = stages.adjust_for_size(tasks, {"a": {"parameters": 200}}, 100.0)
    assert "a has 200 parameters, more than reference_parameters=100" in line
    assert tasks["quiz"]["size_adjusted"] == 0
    assert "size_adjusted" not in tasks["given"]


def test_each_checkpoint_is_loaded_once_for_all_its_tasks(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save(tmp_path / "other", seed=1)
    loaded: list[str] = []
    load = stages.load_model
    monkeypatch.setattr(stages, "load_model", lambda name, device: loaded.append(name) or load(name, device))
    tasks = [pairs("a"), pairs("b"), pairs("c"), pairs("d")]
    routed = route_tasks(tasks, {"b": str(other), "d": str(other)}, str(run))
    with Folder.opened(None, True) as folder:
        answered, about = stages.answer_tasks(routed, models(), folder, lambda pace: None, lambda: None, OneProcess())
    assert loaded == [str(run), str(other)]
    assert [answered[name].figures["checkpoint"] for name in "abcd"] == [str(run), str(other), str(run), str(other)]
    assert about[str(run)]["sha256"] != about[str(other)]["sha256"]
    assert answered["a"].marks[0]["logprobs"] != answered["b"].marks[0]["logprobs"]


def test_the_problems_of_all_tasks_are_found_before_one_is_answered(run: Path, tmp_path: Path) -> None:
    long = Item("long", (Request("", "word " * 300), Request("", "a")), content={})
    tasks = [pairs("fine"), *(replace(pairs(name), items=[long]) for name in ("one", "two"))]
    with Folder.opened(tmp_path / "e", True) as folder, pytest.raises(UserError) as caught:
        stages.answer_tasks({str(run): tasks}, models(), folder, lambda pace: None, lambda: None, OneProcess())
    assert [line.split(",")[0] for line in caught.value.messages] == [
        f"{name}: 1 of 1 items are too long" for name in ("one", "two")
    ]
    assert not (tmp_path / "e" / "fine.answers.jsonl").exists()


def test_unknown_names_are_refused_with_the_closest(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="route: 'pears' is not a task; allowed: pairs; did you mean pairs") as caught:
        route_tasks([pairs()], {"pears": str(run)}, str(run))
    assert len(caught.value.messages) == 1
    with pytest.raises(UserError, match=r"route\.pairs=.*no such folder"):
        route_tasks([pairs()], {"pairs": str(tmp_path / "none")}, str(run))
    entries = {"quiz": {"kind": "minimal_pairs", "path": str(write_pairs(tmp_path / "p"))}}
    with pytest.raises(UserError, match="skip: 'quizz' is not a task; allowed: quiz; did you mean quiz"):
        load_tasks(entries, ["quizz"])
    with pytest.raises(UserError, match="leaves no task"):
        load_tasks(entries, ["quiz"])


def test_a_folder_has_one_evaluation_at_a_time(tmp_path: Path) -> None:
    with (
        Folder.opened(tmp_path / "e", True),
        pytest.raises(UserError, match=f"is being written by another evaluation .*{os.getpid()}.*folder="),
        Folder.opened(tmp_path / "e", True),
    ):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*folder="), Folder.opened(tmp_path / "file" / "e", True):
        pass


def test_the_time_left_follows_from_the_characters_of_the_items() -> None:
    """Two seconds per character: the longest item first, then the short ones, then another task."""
    time = 0.0
    long, short = Item("1", prompt="x" * 80), [Item(str(i), prompt="x" * 10) for i in range(2, 4)]
    first = MinimalPairs("first", TaskOptions("minimal_pairs"), [*short, long], "paradigm")
    second = MinimalPairs("second", TaskOptions("minimal_pairs"), [Item("1", prompt="x" * 50)], "paradigm")
    pacer = Pacer([first, second], clock=lambda: time)
    pacer.begin("first")
    assert pacer.update(0).eta_s is None
    time = 160.0
    pace = pacer.update(1)
    assert pace.eta_s == pytest.approx(2 * (20 + 50))
    assert (pace.items, pace.all_items, pace.per_second) == (1, 4, 1 / 160)
    time = 200.0
    pacer.update(3)
    pacer.begin("second")
    assert pacer.update(0).eta_s == pytest.approx(100)
    assert (pacer.computed("first"), pacer.seconds("first")) == (3, 200.0)


def test_items_that_were_known_do_not_count_as_speed() -> None:
    time = 0.0
    items = [Item(str(i), prompt="x" * 10) for i in range(10)]
    task = MinimalPairs("t", TaskOptions("minimal_pairs"), items, "paradigm")
    pacer = Pacer([task], clock=lambda: time)
    pacer.begin("t")
    pacer.update(8)
    time = 5.0
    pace = pacer.update(9)
    assert pace.eta_s == pytest.approx(5)
    assert pace.per_second == pytest.approx(0.2)
    assert pacer.computed("t") == 1


def write_pairs(folder: Path, count: int = 60) -> Path:
    folder.mkdir(parents=True)
    rows = (
        {"sentence_good": f"{sentence(i)} {i}", "sentence_bad": f"{sentence(i + 1)} {i}", "UID": "p", "pairID": str(i),
         "linguistics_term": "binding", "field": "syntax"}
        for i in range(count)
    )  # fmt: skip
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(run: Path, data: Path, folder: Path, *more: str) -> list[str]:
    words = [f"checkpoint={run}", f"tasks=[blimp:{data}]", f"folder={folder}", "device.name=cpu", "device.threads=1"]
    return [str(ROOT / "evaluate.py"), *words, *more]


def test_evaluate_prints_json_and_keeps_files_and_a_baseline(run: Path, tmp_path: Path) -> None:
    data, folder, baseline = write_pairs(tmp_path / "data"), tmp_path / "e", tmp_path / "b.json"
    more = ("fraction=0.5", "limit=20", f"baseline={baseline}", "reference_parameters=1")
    first = copied(command(run, data, folder, *more), tmp_path, 120)
    assert first.returncode == 0, first.stderr
    assert f"kept as the baseline: {baseline}" in first.stdout
    assert "20 of 60" in first.stdout
    assert "more than reference_parameters=1" in first.stdout
    second = copied(command(run, data, folder, *more, "output=json"), tmp_path, 120)
    figures = json.loads(second.stdout)
    assert figures["comparison"]["total"] == 1
    assert figures["tasks"]["blimp"]["computed"] == 0
    assert figures["tasks"]["blimp"]["options"]["prefix"] == "empty"
    assert figures["models"][str(run)]["prefix_token"] == 256
    predictions = [json.loads(line) for line in (folder / "blimp.predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 20
    assert predictions[0]["requests"][0]["continuation"].startswith(sentence(1)[:3])
    assert (
        json.loads((folder / "evaluation.json").read_text())["tasks"]["blimp"]["score"]
        == figures["tasks"]["blimp"]["score"]
    )
    assert "<html" in (folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_change_no_byte(run: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 5000)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def words(folder: Path) -> list[str]:
        return [sys.executable, *command(run, data, folder, "micro_batch=1")]

    subprocess.run(words(whole), check=True, capture_output=True)
    answers, predictions = "blimp.answers.jsonl", "blimp.predictions.jsonl"
    lines = lines_of(whole / answers)
    for number in range(10):
        process = subprocess.Popen(words(killed), stdout=subprocess.DEVNULL)
        while process.poll() is None and lines_of(killed / answers) < lines * (number + 1) // 12:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.wait()
    assert lines_of(killed / answers) < lines
    subprocess.run(words(killed), check=True, capture_output=True)
    for name in (answers, predictions):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
