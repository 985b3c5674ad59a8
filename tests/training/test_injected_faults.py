"""Faults injected into a run: out of memory, non-finite losses, failing writes, signals, another device."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import train
import training.checkpointing
from common.checksum import add_checksum
from common.errors import MachineError, UserError
from data.prepare import prepare
from data.sources.base import DataSpec
from data.tokenizers.tokenizer import Tokenizer
from device.device import Device
from model.gpt import GPT
from run.report.run_report import write_report
from tests.conftest import folder_of, run_here
from tests.training.test_train import points
from training.divergence import SPIKE_STEPS
from training.step import TrainingStep

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
OFTEN = ("checkpoint.every_s=0.01", "checkpoint.max_fraction=1.0")


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def same(ours: Path, theirs: Path) -> bool:
    """Whether two runs have the same weights, bit for bit."""
    first, second = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no report: plots take most of such a short run. Tests of the report write it themselves."""
    monkeypatch.setattr("run.report.run_report.write_report", lambda folder: None)


def page_of(folder: Path) -> str:
    return write_report(folder).read_text()


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run of 40 steps without faults."""
    return run_here(place, "budget.steps=40", name="undisturbed")


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Callable[[], object]) -> None:
    """Call `what` in the training loop right after `step`."""
    show_progress = train.show_progress

    def shown(session: Any, trainer: Any, *others: Any) -> None:
        show_progress(session, trainer, *others)
        if trainer.state.step == step:
            what()

    monkeypatch.setattr(train, "show_progress", shown)


def stopped_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: int, budget: str = "budget.steps=40"
) -> Path:
    """Stop a run by SIGTERM after `step`, and undo all patches. Returns the run's folder."""
    after_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        run_here(place, budget, name=name)
    assert stopped.value.code == 143
    monkeypatch.undo()
    return folder_of(place, name)


# -- memory ------------------------------------------------------------------------------------------------------------


def small_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception, training: bool = True) -> None:
    """Raise `error` for forward passes of more than `most` sequences; unless `training`, only in evaluations."""
    hidden = GPT.hidden

    def limited(self: GPT, tokens: torch.Tensor, *others: Any) -> torch.Tensor:
        if len(tokens) > most and (training or not self.training):
            raise error
        return hidden(self, tokens, *others)

    monkeypatch.setattr(GPT, "hidden", limited)


def test_running_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step is repeated with the same batch, so the losses are those of a run with enough memory."""
    after_step(monkeypatch, 20, lambda: small_memory(monkeypatch, 3, FULL))
    folder = run_here(place, "budget.steps=40", name="memory")
    output = capsys.readouterr().out
    assert output.count("out of memory at step 20") == 2, "8 sequences, then 4, then 2"
    ours, theirs = points(folder), points(whole)
    assert [point["tokens"] for point in ours] == [point["tokens"] for point in theirs]
    assert [p["loss"] for p in ours] == pytest.approx([p["loss"] for p in theirs], abs=2e-4)
    assert [p["loss"] for p in ours[:20]] == [p["loss"] for p in theirs[:20]]
    assert [p["learning_rate"] for p in ours] == [p["learning_rate"] for p in theirs]
    assert result_of(folder)["eval"]["loss"] == pytest.approx(result_of(whole)["eval"]["loss"], abs=1e-3)


def test_a_micro_batch_found_by_halving_trains_like_one_from_the_command_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal bit for bit to a run with optim.micro_batch set; the error is that of the CPU's allocator."""
    asked = run_here(place, "budget.steps=20", "model.dropout=0.1", "optim.micro_batch=2", name="asked")
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory")
    small_memory(monkeypatch, 2, error)
    found = run_here(place, "budget.steps=20", "model.dropout=0.1", name="found")
    assert same(asked, found)
    assert "sequences at a time" in page_of(found)


def test_running_out_of_memory_in_the_evaluation_changes_no_figure(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_memory(monkeypatch, 5, FULL, training=False)
    folder = run_here(place, "budget.steps=40", name="evaluation")
    assert result_of(folder)["eval"]["loss"] == pytest.approx(result_of(whole)["eval"]["loss"], abs=1e-4)
    assert result_of(folder)["eval"]["fingerprint"] == result_of(whole)["eval"]["fingerprint"]


def test_no_memory_for_a_single_sequence_is_an_error_of_one_line_and_keeps_the_checkpoint(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = TrainingStep.clip, itertools.count(1)

    def running_out(step: TrainingStep) -> torch.Tensor:
        if next(calls) == 30:
            small_memory(monkeypatch, 0, FULL)
        return clip(step)

    monkeypatch.setattr(TrainingStep, "clip", running_out)
    with pytest.raises(MachineError, match="single sequence") as caught:
        run_here(place, "budget.steps=40", *OFTEN, name="none-left")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    folder = run_here(place, "budget.steps=40", *OFTEN, name="none-left")
    assert "resuming at step" in (folder / "log.txt").read_text()
    assert same(folder, whole)


def test_running_out_of_memory_in_the_update_is_an_error_of_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some weights may be updated already, so the step is neither repeated nor saved."""
    monkeypatch.setattr(TrainingStep, "clip", lambda step: (_ for _ in ()).throw(FULL))
    with pytest.raises(MachineError, match="out of memory"):
        run_here(place, "budget.steps=40", name="update")
    folder = folder_of(place, "update")
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    run_here(place, "budget.steps=40", name="update")
    assert result_of(folder)["status"] == "finished"


# -- divergence --------------------------------------------------------------------------------------------------------


Parameters = list[torch.Tensor]


def poison(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[Parameters], None]) -> None:
    """Call `how` on the parameters in the update of the process's `step`-th step, counted from 1."""
    clip, calls = TrainingStep.clip, itertools.count(1)

    def clipped(training_step: TrainingStep) -> torch.Tensor:
        norm = clip(training_step)
        if next(calls) == step:
            how(training_step.clipped)
        return norm

    monkeypatch.setattr(TrainingStep, "clip", clipped)


def to_nan(parameters: Parameters) -> None:
    assert parameters[0].grad is not None
    parameters[0].grad.fill_(float("nan"))


def test_a_non_finite_loss_rolls_the_run_back_once_at_half_the_learning_rate(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, 25, to_nan)
    folder = run_here(place, "budget.steps=40", *OFTEN, name="nan")
    output, result = capsys.readouterr().out, result_of(folder)
    assert (result["status"], result["spent"]["steps"]) == ("finished", 40)
    setback = result["setback"]
    assert setback["back_to"] < setback["step"] <= 26
    assert output.count(f"going back to step {setback['back_to']}, once, with 0.5 of the learning rate") == 1
    assert "going back to step" in page_of(folder)
    ours, theirs = points(folder), points(whole)
    assert [point["step"] for point in ours] == list(range(1, 41)), "later points of the curve are dropped"
    ratios = [p["learning_rate"] / q["learning_rate"] for p, q in zip(ours[:-1], theirs[:-1], strict=True)]
    assert ratios == pytest.approx([1.0] * setback["back_to"] + [0.5] * (39 - setback["back_to"]), rel=1e-4)
    assert ours[-1]["loss"] < ours[0]["loss"]
    state = json.loads(max(folder.glob("checkpoint/step-*")).joinpath("state.json").read_text())["state"]
    assert state["setback"] == setback


def test_the_second_divergence_ends_the_run_also_in_another_process(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint stores the rollback."""
    poison(monkeypatch, 10, to_nan)
    save = train.save

    def stopping(session: Any, trainer: Any, final: bool) -> None:
        save(session, trainer, final)
        if trainer.state.setback and trainer.state.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "save", stopping)
    monkeypatch.setattr(train, "save_due", lambda session, trainer: trainer.state.step % 5 == 0)
    with pytest.raises(SystemExit) as stopped:
        run_here(place, "budget.steps=40", name="twice")
    assert stopped.value.code == 143
    monkeypatch.undo()
    poison(monkeypatch, 10, to_nan)
    with pytest.raises(MachineError, match="diverged: the loss of step 31 is nan"):
        run_here(place, "budget.steps=40", name="twice")
    result = result_of(folder_of(place, "twice"))
    assert (result["status"], result["setback"]["back_to"]) == ("diverged", 5)


def throw(parameters: Parameters) -> None:
    """Move all weights far away: the loss rises far above a guess's, and stays there."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(-50)


def test_a_run_stopped_in_a_spike_resumes_from_before_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one checkpoint of the spike is saved: the one before the first loss that shows it."""
    poison(monkeypatch, 30, throw)
    monkeypatch.setattr(train, "save_due", lambda session, trainer: trainer.state.step % 10 == 0)
    folder = stopped_run(place, monkeypatch, "in-spike", 40, "budget.steps=80")
    assert sorted(int(path.name[5:]) for path in folder.glob("checkpoint/step-*")) == [20, 30]
    assert result_of(run_here(place, "budget.steps=80", name="in-spike"))["setback"]["back_to"] == 20
    assert not (folder / "checkpoint" / "step-000000030").exists()


def test_a_diverged_run_fails_again_when_it_is_started_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 10, to_nan)
    monkeypatch.setattr(train, "rollback", lambda session, trainer, error: (_ for _ in ()).throw(error))
    for _ in range(2):
        with pytest.raises(MachineError, match="diverged"):
            run_here(place, "budget.steps=20", name="again-diverged")


def test_non_finite_weights_after_the_last_step_are_rolled_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No later loss shows them."""
    poison(monkeypatch, 40, to_nan)
    folder = run_here(place, "budget.steps=40", *OFTEN, name="last")
    assert all(np.isfinite(value).all() for value in load_file(folder / "model.safetensors").values())
    assert result_of(folder)["setback"]["reason"] == "the weights after step 40 are not finite"
    assert result_of(folder)["eval"]["loss"] < 5.5


def test_no_checkpoint_is_written_of_non_finite_weights(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 15, to_nan)
    monkeypatch.setattr(train, "save_due", lambda session, trainer: True)
    folder = run_here(place, "budget.steps=20", "eval.every=0", name="bad-weights")
    assert result_of(folder)["setback"]["back_to"] == 14
    refused = re.findall("no checkpoint at step (.*): its weights are not finite", (folder / "log.txt").read_text())
    assert refused == ["15"]


def test_a_lasting_spike_rolls_the_run_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 40, throw)
    folder = run_here(place, "budget.steps=120", *OFTEN, name="spike")
    result = result_of(folder)
    assert result["status"] == "finished"
    assert "worse than a guess's" in result["setback"]["reason"]
    assert result["setback"]["back_to"] < 40, "the weights after step 40 are lost"
    assert result["setback"]["step"] <= 40 + SPIKE_STEPS + 2
    assert result["eval"]["loss"] < 5.0


# -- the disk ----------------------------------------------------------------------------------------------------------


def failing_sync(monkeypatch: pytest.MonkeyPatch, which: Callable[[int], bool], number: int) -> None:
    """Let the calls of fsync fail for which `which(n)` holds, n counted from 1. Every durable write ends with one."""
    fsync, calls = os.fsync, itertools.count(1)

    def sync(descriptor: int) -> None:
        if which(next(calls)):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)


ALWAYS = (1, 9, 17, 30)
WRITES = 60  # durable writes of the run below, and some more


@pytest.mark.parametrize(
    "nth", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in range(1, WRITES)]
)
def test_any_write_may_fail_once(
    place: Path, whole: Path, tmp_path: Path, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corpus, plan, checkpoints, report, weights, result: the run continues or resumes to the same weights."""
    arguments = ("budget.steps=40", f"output_dir={tmp_path}", f"data.cache_dir={tmp_path / 'prepared'}", *OFTEN)
    failing_sync(monkeypatch, lambda call: call == nth, errno.ENOSPC if nth % 2 else errno.EIO)
    monkeypatch.setattr(training.checkpointing, "RETRY_S", 0.0)
    try:
        run_here(place, *arguments, name="write")
    except (MachineError, UserError) as error:
        assert len(str(error).splitlines()) == 1
        monkeypatch.undo()
        run_here(place, *arguments, name="write")
    folder = next(tmp_path.glob("write-*"))
    assert result_of(folder)["status"] == "finished"
    assert same(folder, whole)


def test_a_failed_write_at_the_end_is_tried_again(place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transient error of the final checkpoint or the weights does not end a run that is finished."""
    import run.checkpoint

    save_file, failed = run.checkpoint.save_file, list[str]()

    def once(tensors: Any, path: Path) -> None:
        if re.search(r"tmp-0*40/model|model.safetensors.tmp", str(path)) and path.name not in failed:
            failed.append(path.name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        save_file(tensors, path)

    monkeypatch.setattr(run.checkpoint, "save_file", once)
    monkeypatch.setattr(training.checkpointing, "RETRY_S", 0.0)
    folder = run_here(place, "budget.steps=40", name="end-write")
    assert failed == ["model.safetensors", "model.safetensors.tmp"]
    assert same(folder, whole)


@pytest.mark.slow
def test_a_slow_disk_makes_checkpoints_rare_and_the_run_ends_in_time(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each flush takes 0.2 s, and a checkpoint has four."""
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.2)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    folder = run_here(place, "budget.hours=0.012", "checkpoint.max_fraction=0.1", name="slow-disk")
    result = result_of(folder)
    assert result["status"] == "finished"
    assert result["spent"]["overshoot_s"] <= 0
    assert result["ledger_s"]["checkpoint"] < 0.3 * result["spent"]["hours"] * 3600


# -- clock, threads, signals, machines ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_setting_the_system_clock_does_not_change_the_budget(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([4e9, 1.0, 1.7e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    began = time.monotonic()
    folder = run_here(place, "budget.hours=0.002", name="jumps")
    assert time.monotonic() - began < 10
    assert result_of(folder)["spent"]["overshoot_s"] < 1  # a shared machine may stall; the least jump is 50 years
    assert result_of(folder)["progress"] > 0.5  # a busy machine may leave no time for the last steps


def test_a_worker_that_dies_in_preparation_loses_no_committed_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command fails with the worker, and the next one prepares the same corpus."""

    def spec(name: str) -> DataSpec:
        paths = {"path": str(place / "texts"), "cache_dir": str(tmp_path / name)}
        return DataSpec(source="text", tokenizer="bytes", validation_fraction=0.2, workers=2, **paths)

    monkeypatch.setattr("data.prepare.BATCH_BYTES", 10_000)
    monkeypatch.setattr("data.prepare.COMMIT_TOKENS", 10_000)
    encode, calls = Tokenizer.encode, itertools.count()

    def dying(self: Tokenizer, text: str) -> np.ndarray:
        if next(calls) == 30:
            raise MemoryError("the worker's")
        return encode(self, text)

    with monkeypatch.context() as patched:
        patched.setattr(Tokenizer, "encode", dying)
        with pytest.raises(MemoryError, match="the worker's"):
            prepare(spec("died"), progress=False, log=lambda line: None)
    again, undisturbed = (prepare(spec(name), progress=False, log=lambda line: None) for name in ("died", "not"))
    assert again.manifest["fingerprint"] == undisturbed.manifest["fingerprint"]


def test_signals_during_the_save_for_a_signal_change_nothing(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal arrives in every flush of the checkpoint and the report that the first signal caused."""
    fsync = os.fsync

    def asked() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        monkeypatch.setattr(os, "fsync", lambda handle: (os.kill(os.getpid(), signal.SIGTERM), fsync(handle))[1])

    after_step(monkeypatch, 17, asked)
    with pytest.raises(SystemExit) as stopped:
        run_here(place, "budget.steps=40", name="recursion")
    assert stopped.value.code == 138
    folder = folder_of(place, "recursion")
    assert json.loads((folder / "status.json").read_text()) == {"status": "stopped", "reason": "SIGUSR1"}
    assert max(folder.glob("checkpoint/step-*")).name == "step-000000017"
    monkeypatch.undo()
    run_here(place, "budget.steps=40", name="recursion")
    assert same(folder, whole)


def test_a_run_on_another_device_warns_and_uses_its_own_micro_batch(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_progress, batches = train.show_progress, list[int]()

    def stopping(session: Any, trainer: Any, *others: Any) -> None:
        show_progress(session, trainer, *others)
        batches.append(trainer.micro_batch)
        if trainer.state.step == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "show_progress", stopping)
    with pytest.raises(SystemExit):
        run_here(place, "budget.steps=40", name="moved")
    sizes, count = iter([8, 4]), len(batches)  # when the run is built, and when it has moved
    monkeypatch.setattr(Device, "title", property(lambda self: "a smaller one"))
    monkeypatch.setattr(Device, "micro_batch", lambda self, shape, sequences: next(sizes))
    capsys.readouterr()
    folder = run_here(place, "budget.steps=40", name="moved")
    output = capsys.readouterr().out
    assert (
        len(re.findall("the run moved from .* cpu, 1 threads, float32 to a smaller one; its plan is kept", output)) == 1
    )
    assert set(batches[:count]) == {8}
    assert set(batches[count:]) == {4}
    assert result_of(folder)["status"] == "finished"
    assert "the run moved from" in page_of(folder)


@pytest.mark.parametrize("changed", [True, False])
def test_a_run_whose_plan_earlier_code_corrected_continues_as_planned(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: bool
) -> None:
    """Its checkpoint has a record of the correction."""
    name = f"corrected-{changed}"
    path = max(stopped_run(place, monkeypatch, name, 17).glob("checkpoint/step-*")) / "state.json"
    content = json.loads(path.read_text())
    correction = {
        "step": 4, "trained": 1024, "tokens": 9000, "tokens_per_second": 1e4, "changed": changed,
        "batch_tokens": 128, "learning_rate": 1e-3, "weight_decay": 0.05,
    }  # fmt: skip
    content["state"] |= {"correction": correction, "moved_at": 0.3}
    path.write_text(json.dumps(add_checksum(content)))
    capsys.readouterr()
    folder = run_here(place, "budget.steps=40", name=name)
    output = capsys.readouterr().out
    assert "resuming at step 17" in output
    assert output.count("an earlier version of the code changed this run's batch size and learning rate") == changed
    assert result_of(folder)["plan"]["correction"] is None
    assert same(folder, whole)


def test_without_ledger_and_checkpoints_the_spent_budget_is_read_from_the_curve(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training starts again from step 0 with the budget that is left."""
    after_step(monkeypatch, 30, lambda: time.sleep(2))
    folder = stopped_run(place, monkeypatch, "nothing-left", 31)
    known_s = 3600 * points(folder)[-1]["hours"]
    for path in [folder / "ledger.json", *folder.glob("checkpoint/step-*/state.json")]:
        path.write_bytes(path.read_bytes()[:50])
    capsys.readouterr()
    run_here(place, "budget.steps=40", name="nothing-left")
    output = capsys.readouterr().out
    assert output.count("ledger.json is lost or damaged") == 1
    assert result_of(folder)["spent"]["hours"] * 3600 > known_s > 2
    assert result_of(folder)["spent"]["steps"] == 40
