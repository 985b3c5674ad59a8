"""Whole runs, started like a user's: they stop in time, resume exactly, handle signals, and leave true records."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from budget.laws.published import LAWS, save_law
from run.tracking.logger import segments
from tests.conftest import command, folder_of, run_here, runs_named, train
from tests.run.tracking.wandb_file import history, read_back
from training.context import expected_s


def result_of(place: Path, name: str) -> dict[str, Any]:
    return json.loads((folder_of(place, name) / "result.json").read_text())


def points(folder: Path) -> list[dict[str, Any]]:
    from run.history import read_metrics

    return [point for point in read_metrics(folder) if "loss" in point]


@pytest.fixture(scope="module")
def shown(place: Path) -> str:
    """The output of an uninterrupted run of 100 steps, without a terminal."""
    return train(place, "budget.steps=100", "model.dropout=0.1", name="whole").stdout


@pytest.fixture(scope="module")
def finished(place: Path, shown: str) -> Path:
    """The folder of that run."""
    return folder_of(place, "whole")


def test_a_run_prints_one_screen_and_logs_the_rest(shown: str, finished: Path) -> None:
    lines = shown.splitlines()
    assert len(lines) <= 40, shown
    assert sum(line.startswith("train ") for line in lines) <= 11
    assert "  training " in shown
    assert any("validation" in line for line in lines if line.startswith("train "))
    result = json.loads((finished / "result.json").read_text())
    assert f"validation loss  {result['eval']['loss']:.4f}" in shown
    assert f"outputs/{finished.name}/report.html" in shown
    log = (finished / "log.txt").read_text()
    assert set(lines) - {""} <= set(log.splitlines())
    for detail in (
        "warm-up",
        "beta2",
        "on 500 tokens",
        "ending",
        *(repr(s["prompt"])[1:-1] for s in result["samples"]),
    ):
        assert detail in log, "the log has all details"


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    promised = {
        "config.yaml", "plan.json", "metrics.jsonl", "ledger.json", "checkpoint", "model.safetensors", "model.json",
        "tokenizer.json", "result.json", "report.html", "status.json", "log.txt",
    }  # fmt: skip
    assert promised <= names
    result = json.loads((finished / "result.json").read_text())
    assert (result["schema"], result["status"], result["stopped_by"]) == (1, "finished", "steps")
    assert result["spent"]["steps"] == 100
    assert result["spent"]["tokens"] == 25_600
    assert result["eval"]["tokens"] == 2000
    assert result["eval"]["loss"] < 5.0  # ln 257 is 5.55: it learned something
    assert sum(result["ledger_s"].values()) == pytest.approx(result["spent"]["hours"] * 3600, rel=0.01)
    assert json.loads((finished / "status.json").read_text())["status"] == "finished"
    assert result["learning_rate_last"] == 0.0  # linear to zero
    assert result["progress"] == 1.0
    assert len(result["samples"]) == 3
    assert result["environment"]["compile_cache"] is None  # nothing was compiled


def test_a_run_says_what_was_read_and_what_was_not(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = place / "own-split"
    for split, sources in (("train", range(20)), ("validation", range(20, 30)), ("test", range(30, 33))):
        (corpus / split).mkdir(parents=True)
        for number in sources:
            (corpus / split / f"{number}.txt").write_text(f"text {number} " * 200)
    (corpus / "train" / "again.txt").write_text("text 25 " * 200)  # it repeats a validation text
    (corpus / "picture.png").write_bytes(b"")
    run_here(place, f"data.path={corpus}", "budget.steps=3", name="own-split")
    counts = {name: sum(len(f"text {n} ") * 200 for n in numbers) for name, numbers in
              (("train", range(20)), ("val", range(20, 30)))}  # fmt: skip
    data = result_of(place, "own-split")["data"]
    assert data["splits"] == {
        "train": {"documents": 20, "tokens": counts["train"] + 20, "bytes": counts["train"]},
        "val": {"documents": 10, "tokens": counts["val"] + 10, "bytes": counts["val"]},
    }
    assert (data["validation_from"], data["files"]) == ("validation/", 31)
    assert (data["not_read"], data["files_not_read"]) == (["picture.png", "test/ (3 files)"], 4)
    assert data["left_out"] == {"duplicate": 1}
    shown = capsys.readouterr().out.splitlines()
    for line in ("validation split: validation/", "not read: 4 files (picture.png, test/ (3 files))"):
        assert f"data    {line}" in shown
    assert "picture.png, test/ (3 files)" in (folder_of(place, "own-split") / "report.html").read_text()


def test_the_learning_rate_follows_the_schedule(finished: Path) -> None:
    rates = [point["learning_rate"] for point in points(finished)]
    assert len(rates) == 100
    assert max(rates) == pytest.approx(3e-3)
    assert rates.index(max(rates)) == 4  # warm-up over 5 % of 100 steps
    assert rates[-1] == 0.0
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(place: Path, finished: Path) -> None:
    """Stopped by SIGTERM and resumed twice: weights, losses and evaluation are the same."""
    arguments = ("budget.steps=100", "model.dropout=0.1", "checkpoint.every_s=0.05", "checkpoint.max_fraction=1.0")
    for wanted in (37, 70):
        interrupt(place, wanted, *arguments, "wandb.mode=offline", name="pieces")
    train(place, *arguments, "wandb.mode=offline", name="pieces")
    pieces = folder_of(place, "pieces")
    shown = [p for path in sorted(pieces.glob("wandb/offline-run-*/*.wandb")) for p in history(read_back(path))]
    assert [point["step"] for point in shown if "loss" in point] == list(range(1, 101))
    assert len(set(segments(pieces))) == 1, "one run on wandb"
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (pieces, finished))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert [p["loss"] for p in points(pieces)] == [p["loss"] for p in points(finished)]
    results = [json.loads((folder / "result.json").read_text()) for folder in (pieces, finished)]
    assert results[0]["eval"] == results[1]["eval"]


def test_muon_and_its_options_resume_bit_for_bit(place: Path) -> None:
    arguments = ("budget.steps=40", "optim=muon", "optim.normuon=true", "optim.cautious=true", "model.tie=false")
    train(place, *arguments, name="muon-whole")
    hurried = (*arguments, "checkpoint.every_s=0.05", "checkpoint.max_fraction=1.0")
    interrupt(place, 15, *hurried, name="muon-broken")
    train(place, *hurried, name="muon-broken")
    assert "resuming at step" in (folder_of(place, "muon-broken") / "log.txt").read_text()
    whole, broken = (load_file(folder_of(place, name) / "model.safetensors") for name in ("muon-whole", "muon-broken"))
    assert all(np.array_equal(whole[name], broken[name]) for name in whole)
    result = json.loads((folder_of(place, "muon-whole") / "result.json").read_text())
    assert result["plan"]["optimizer"] == "muon"


def interrupt(place: Path, step: int, *arguments: str, name: str, number: int = signal.SIGTERM) -> None:
    """Start a run, send it a signal after `step`, and check how it ends."""
    process = subprocess.Popen(
        command(place, *arguments, name=name), cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = [path for run in runs_named(place / "outputs", name) for path in run.glob("metrics.jsonl")]
        lines = found[0].read_text().splitlines() if found else []
        if any(json.loads(line).get("step", 0) >= step for line in lines if '"loss"' in line and line.endswith("}")):
            break
        time.sleep(0.005)
    began = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 5, "saves and exits within five seconds"
    assert process.returncode == 128 + number, output
    status = json.loads((folder_of(place, name) / "status.json").read_text())
    assert status == {"status": "stopped", "reason": signal.Signals(number).name}


def test_micro_batches_change_nothing(place: Path, finished: Path) -> None:
    train(place, "budget.steps=100", "optim.micro_batch=3", name="micro")
    train(place, "budget.steps=100", name="batch")
    pairs = zip(points(folder_of(place, "micro")), points(folder_of(place, "batch")), strict=True)
    assert all(ours["loss"] == pytest.approx(theirs["loss"], abs=2e-4) for ours, theirs in pairs)
    ours, theirs = result_of(place, "micro")["eval"], result_of(place, "batch")["eval"]
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def test_float16_scales_the_loss_and_learns(place: Path, finished: Path) -> None:
    train(place, "budget.steps=40", "device.precision=float16", name="half")
    folder = folder_of(place, "half")
    assert points(folder)[-1]["loss"] < 0.9 * points(folder)[0]["loss"]
    state = json.loads(next(folder.glob("checkpoint/step-*40/state.json")).read_text())["state"]
    assert state["loss_scale"] >= 1024
    whole = json.loads(next(finished.glob("checkpoint/step-*100/state.json")).read_text())["state"]
    assert whole["loss_scale"] is None


def test_the_finished_model_keeps_documents_apart(place: Path) -> None:
    from run.load_model import load_model

    train(place, "budget.steps=20", "model.document_mask=true", name="apart")
    folder = folder_of(place, "apart")
    assert result_of(place, "apart")["model"]["eot"] == 256
    model = load_model(str(folder), torch.device("cpu")).model
    tokens = torch.tensor([[1, 2, 3, 256, 4, 5], [7, 8, 9, 256, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(*model(tokens)[:, 3:].unbind(0))


@pytest.mark.slow
def test_regional_compilation_learns_the_same_and_reports_the_cache(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    train(place, "budget.steps=20", name="eager")
    for state in ("cold", "warm"):
        train(place, "budget.steps=20", "device.compile=regional", name=state)
        result = result_of(place, state)
        assert result["environment"]["compile_cache"] == state
        assert f"the compiler's cache was {state}" in (folder_of(place, state) / "log.txt").read_text()
        assert result["ledger_s"]["compile"] > 0.5
        assert result["eval"]["loss"] == pytest.approx(result_of(place, "eager")["eval"]["loss"], abs=1e-3)


def test_starting_a_finished_run_again_changes_nothing(place: Path, finished: Path) -> None:
    before = (finished / "result.json").read_bytes()
    answer = train(place, "budget.steps=100", "model.dropout=0.1", name="whole")
    assert "finished already" in answer.stdout
    assert (finished / "result.json").read_bytes() == before


def test_a_run_limited_by_hours_finishes_in_time(place: Path) -> None:
    began = time.monotonic()
    hours = 0.006
    train(place, f"budget.hours={hours}", "probe=null", name="hours")
    elapsed = time.monotonic() - began
    result = result_of(place, "hours")
    plan = json.loads((folder_of(place, "hours") / "plan.json").read_text())
    assert plan["source"]["tokens_per_second"] == "measured"
    assert result["stopped_by"] == "hours"
    # Below 1 if a step near the end was slow: another one might then have passed the deadline.
    assert result["progress"] >= 0.97
    assert result["learning_rate_last"] <= 0.03 * plan["learning_rate"]
    assert sum(result["ledger_s"].values()) == pytest.approx(result["spent"]["hours"] * 3600, rel=0.01)
    # Starting the interpreter is charged to the budget, preparing the corpus is not.
    assert elapsed - result["prepare_s"] < hours * 3600 + 0.5
    assert result["spent"]["overshoot_s"] <= 0
    assert result["spent"]["overshoot_s"] > -5


def test_a_killed_run_resumes_with_the_budget_that_is_left(place: Path) -> None:
    """Killed three times at random moments, the same command finishes the run within the budget."""
    rng, hours = random.Random(7), 0.006
    for _ in range(3):
        process = subprocess.Popen(
            command(place, f"budget.hours={hours}", name="killed"), cwd=place, stdout=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(2.0, 5.0))
        process.kill()
        process.wait()
    train(place, f"budget.hours={hours}", name="killed")
    result = result_of(place, "killed")
    assert result["status"] == "finished"
    assert result["spent"]["hours"] < hours * 1.05
    ledger = json.loads((folder_of(place, "killed") / "ledger.json").read_text())
    assert sum(ledger["ledger_s"].values()) == pytest.approx(result["spent"]["hours"] * 3600, abs=1.0)


def test_extended_hours_continue_a_finished_run(place: Path) -> None:
    train(place, "budget.hours=0.003", name="more")
    first = result_of(place, "more")
    train(place, "budget.hours=0.003", "budget.extend_hours=0.003", name="more")
    second = result_of(place, "more")
    assert second["spent"]["steps"] > first["spent"]["steps"]
    assert second["spent"]["hours"] > first["spent"]["hours"]
    assert second["extended_hours"] == 0.003
    assert second["progress"] > 0.99  # a slow machine may leave no time for the last step


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)),
    ],
)
def test_every_stopping_signal_saves(place: Path, number: int) -> None:
    name = signal.Signals(number).name
    interrupt(place, 20, "budget.steps=100000", name=name, number=number)
    folder = folder_of(place, name)
    assert list(folder.glob("checkpoint/step-*"))
    assert json.loads((folder / "ledger.json").read_text())["clean"]
    shutil.rmtree(folder)


def test_fresh_starts_again_and_keeps_the_old_run(place: Path) -> None:
    train(place, "budget.steps=20", name="again")
    train(place, "budget.steps=20", "fresh=true", name="again")
    assert len(list((place / "outputs").glob("again-*.old-1"))) == 1
    assert result_of(place, "again")["spent"]["steps"] == 20


def test_divergence_is_an_error_and_recorded(place: Path) -> None:
    answer = train(place, "budget.steps=400", "optim.learning_rate=99", "optim.grad_clip=0", "model.qk_norm=false",
                   "model.activation=relu2", "schedule.warmup=0", name="wild", status=1)  # fmt: skip
    assert answer.stderr.count("\n") == 1
    assert "diverged" in answer.stderr
    assert result_of(place, "wild")["status"] == "diverged"


def test_output_json_prints_only_the_result(place: Path) -> None:
    answer = train(place, "budget.steps=20", "output=json", name="json")
    assert json.loads(answer.stdout)["spent"]["steps"] == 20
    assert "bits per byte" in answer.stderr


def test_a_budget_too_small_for_one_step_is_an_error_and_leaves_no_run(place: Path) -> None:
    answer = train(place, "budget.hours=1.1s", name="short", status=2)
    assert "is too small for one step" in answer.stderr
    assert "budget.hours=" in answer.stderr.split("give it at least")[1]
    assert not list((place / "outputs").glob("short-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data.path=nowhere.txt",), "nowhere.txt"),
        (("model.block_size=8000000", "optim.batch_tokens=8000000"), "block"),
        (("data.tokenizer=gpt5",), "gpt5"),
        (("optim.batch_tokens=100",), "multiple"),
        (("model.vocab_size=100",), "model.vocab_size=100"),
        (("device.name=h100",), "not on this machine"),
    ],
)
def test_bad_input_is_an_error_of_one_line_and_leaves_no_run(
    place: Path, arguments: tuple[str, ...], message: str
) -> None:
    answer = train(place, "budget.steps=10", *arguments, name="refused", status=2)
    lines = answer.stderr.splitlines()
    assert len(lines) == 1, answer.stderr
    assert message in lines[0]
    assert not list((place / "outputs").glob("refused-*"))


def test_several_processes_are_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one device" in train(place, "budget.steps=10", name="two", status=2).stderr


def test_a_law_of_another_corpus_is_noted(place: Path) -> None:
    law = replace(LAWS["epoch"], name="local")
    save_law(law, {"metric": "loss", "tokenizer": "bytes", "corpora": ["c" * 64]}, place / "law.json")
    answer = train(place, "budget.steps=5", "law=local", "plan.law_file=law.json", name="other-law")
    assert "law=local was fitted on another corpus" in answer.stdout
    plan = json.loads((folder_of(place, "other-law") / "plan.json").read_text())
    assert any("another corpus" in note for note in plan["notes"])
    (place / "law.json").unlink()  # a run that has a plan does not read the law again
    again = train(place, "budget.steps=5", "law=local", "plan.law_file=law.json", name="other-law")
    assert "is finished already" in again.stdout


def test_the_expected_time_rises_at_once_and_falls_by_halves() -> None:
    expected = 1.0
    for seconds, wanted in ((1.5, 1.5), (0.5, 1.0), (0.5, 0.75), (0.6, 0.675)):
        expected = expected_s(expected, seconds)
        assert expected == pytest.approx(wanted)
