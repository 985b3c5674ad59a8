"""Going on with a run: more budget, evaluation before it is finished, and text that was changed meanwhile.

One run of ten steps is the start of most tests; each works on a copy of its folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from run.checkpoint_state import checkpoints
from run.history import read_metrics
from run.load_model import load_model
from run.report.run_report import write_report
from tests.conftest import ROOT, run_here
from tests.copies import copied

CPU = torch.device("cpu")
BASE = ("budget.steps=30", "eval.every=0", "checkpoint.every_s=0.001", "checkpoint.max_fraction=1.0")


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def rates(folder: Path) -> list[float]:
    return [point["learning_rate"] for point in read_metrics(folder) if "loss" in point]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no report: plots take most of such a short run."""
    monkeypatch.setattr("run.report.run_report.write_report", lambda folder: None)


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    return run_here(place, *BASE, name="base")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in an `outputs` of its own."""
    return Path(shutil.copytree(finished, tmp_path / "outputs" / finished.name))


def again(place: Path, copy: Path, *arguments: str) -> Path:
    """The same command on the copy, with more arguments."""
    return run_here(place, *BASE, f"output_dir={copy.parent}", *arguments, name="base")


def test_more_steps_continue_a_finished_run(place: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = (copy / "plan.json").read_bytes()
    assert again(place, copy, "budget.extend=10") == copy
    result, shown = read(copy, "result.json"), capsys.readouterr().out
    assert "the budget was 30 steps and is now 40 steps" in shown
    assert (result["spent"]["steps"], result["stopped_by"], result["progress"]) == (40, "steps", 1.0)
    assert result["extended"] == read(copy, "ledger.json")["extended"] == {"steps": 10}
    assert result["plan"]["why_off"] == ["10 steps were added to the budget"]
    assert "The budget was extended by 10 steps after the start." in write_report(copy).read_text()
    assert (copy / "plan.json").read_bytes() == plan
    # linear schedule: after 30 of 40 steps a quarter of the peak is left, and it falls to 0 at the new end
    added = rates(copy)[30:]
    assert added == pytest.approx([3e-3 * (1 - step / 40) / 0.95 for step in range(31, 41)], rel=1e-3, abs=1e-9)

    again(place, copy, "budget.extend=10steps")
    assert "finished already" in capsys.readouterr().out
    assert read(copy, "result.json") == result
    again(place, copy)
    assert "N is more than all steps added so far (budget.extend=10steps)" in capsys.readouterr().out
    again(place, copy, "budget.extend=15")
    assert read(copy, "result.json")["spent"]["steps"] == 45


def test_an_extended_run_that_was_stopped_wants_its_extension_again(place: Path, copy: Path) -> None:
    again(place, copy, "budget.extend=2")
    (copy / "status.json").write_text('{"status": "stopped", "reason": "SIGTERM"}')
    for fewer in ((), ("budget.extend=1",)):
        with pytest.raises(UserError, match=r"was extended by 2 steps; add at least as much.*budget\.extend=2steps"):
            again(place, copy, *fewer)
    assert read(copy, "status.json")["status"] == "stopped"
    again(place, copy, "budget.extend=2")
    assert read(copy, "status.json")["status"] == "finished"


def test_a_limit_that_did_not_end_the_run_is_not_the_one_to_extend(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("budget.steps=3", "budget.tokens=1e9", "eval.every=0", f"output_dir={tmp_path}")
    run_here(place, *both, name="both")
    with pytest.raises(UserError, match=r"ended at its limit of steps.*budget\.extend=100steps"):
        run_here(place, *both, "budget.extend=1e6tokens", name="both")
    run_here(place, *both, "budget.extend=2steps", name="both")
    (folder,) = tmp_path.glob("both-*")
    assert read(folder, "result.json")["spent"]["steps"] == 5


def test_a_checkpoint_of_an_earlier_version_is_extended_too(place: Path, copy: Path) -> None:
    """It recorded the limit of hours alone, as limit_s."""
    from common.checksum import add_checksum

    for path in checkpoints(copy / "checkpoint"):
        content = read(path, "state.json")
        del content["state"]["limits"], content["checksum"]
        content["state"]["limit_s"] = None
        (path / "state.json").write_text(json.dumps(add_checksum(content)))
    (copy / "start.json").unlink()
    again(place, copy, "budget.extend=30")
    rate = rates(copy)
    assert rate[30] == pytest.approx(3e-3 * (1 - 31 / 60) / 0.95, rel=1e-3)
    assert (rate[-1], len(rate)) == (0.0, 60)


def test_an_unfinished_run_is_loaded_from_its_newest_checkpoint(finished: Path, copy: Path) -> None:
    for name in ("model.safetensors", "model.json", "result.json"):
        (copy / name).unlink()
    newest, before = checkpoints(copy / "checkpoint")
    whole, found = load_model(str(finished), CPU), load_model(str(copy), CPU)
    assert (whole.note, found.note) == ("", "not finished: checkpoint of step 30, 100 % of its budget")
    pairs = zip(whole.model.state_dict().values(), found.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert found.tokenizer.fingerprint == whole.tokenizer.fingerprint
    for inside in (newest, newest / "model.safetensors", newest.parent):
        assert load_model(str(inside), CPU).about["steps"] == 30
    assert load_model(str(before), CPU).about["steps"] < 30
    (newest / "model.safetensors").write_bytes(b"damaged")
    assert load_model(str(copy), CPU).note.startswith(f"not finished: checkpoint of step {int(before.name[5:])}, ")
    assert newest.exists(), "nothing is renamed: the run may be training"
    assert load_model(str(copy), CPU).about["steps"] == int(before.name[5:])


def test_another_checkpoint_of_a_finished_run_can_be_named(copy: Path) -> None:
    before = checkpoints(copy / "checkpoint")[1]
    assert load_model(str(before), CPU).note.startswith("not the finished model: checkpoint of step ")


def test_a_checkpoint_that_is_replaced_while_it_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on training: both checkpoints that were listed are gone when they are read."""
    import run.load_model

    (copy / "model.json").unlink()
    content, hashed = copy / "checkpoint", run.load_model.file_hash
    newest, before = checkpoints(content)

    def replaced(path: Path) -> str:
        if newest.exists():
            shutil.rmtree(before)
            newest.rename(content / "step-000000040")
        return hashed(path)

    monkeypatch.setattr(run.load_model, "file_hash", replaced)
    assert load_model(str(copy), CPU).note


def test_text_that_was_changed_is_refused(place: Path, copy: Path) -> None:
    changed = copy.parents[1] / "texts"
    shutil.copytree(place / "texts", changed)
    (changed / "abc.txt").write_text("another text\n" * 500)
    # The path is part of the run's name, so the text is changed in place.
    kept = place / "texts.kept"
    (place / "texts").rename(kept)
    try:
        changed.rename(place / "texts")
        with pytest.raises(UserError, match=r"was changed since the run began.*fresh=true.*init=run init.checkpoint="):
            again(place, copy, "budget.extend=2")
        shutil.rmtree(place / "texts")
    finally:
        kept.rename(place / "texts")
    again(place, copy, "budget.extend=2")
    assert read(copy, "result.json")["spent"]["steps"] == 32


# ----------------------------------------------------------------------------------------- a new run from a finished model

FROM = ("budget.steps=4", "eval.every=0", "init=run")


def untrained(place: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, name: str) -> tuple[Any, Any]:
    """The session and the trainer of a run as they are before its first step."""
    import train

    seen: list[tuple[Any, Any]] = []
    compile_model = train.compile_model

    def compiled(session: Any, trainer: Any) -> None:
        seen.append((session, trainer))
        trainer.model.eval()
        with torch.no_grad():
            trainer.first_logits = trainer.model(torch.arange(32).view(1, 32))
        trainer.model.train()
        compile_model(session, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(train, "compile_model", compiled)
        run_here(place, *arguments, name=name)
    return seen[0]


def test_a_run_starts_from_the_weights_of_another(
    place: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other text, budget and schedule; sizes and tokenizer are the model's. Then its source is deleted."""
    other = tmp_path / "other"
    other.mkdir()
    for number in range(30):
        (other / f"{number}.txt").write_text(f"{number} other text\n" * 40)
    with torch.no_grad():
        expected = load_model(str(copy), CPU).model(torch.arange(32).view(1, 32))
    sizes = [f"model.{size}=null" for size in ("n_layer", "n_embd", "n_head", "bigram_rows")]
    places = (f"init.checkpoint={copy}", f"data.path={other}", f"output_dir={tmp_path / 'new'}")
    arguments = (*FROM, *places, *sizes, "schedule=cosine", "optim.batch_tokens=128", "data.tokenizer=bpe-4096")
    session, trainer = untrained(place, monkeypatch, *arguments, name="tuned")
    assert torch.equal(trainer.first_logits, expected), "the first loss is the model's"
    folder = session.run.folder
    result, about = read(folder, "result.json"), read(copy, "model.json")
    assert result["init"] == {
        "source": "run",
        "checkpoint": str(copy),
        "fingerprint": about["sha256"],
        "steps": 30,
        "tokens": 30 * 256,
    }
    assert (result["spent"]["steps"], result["data"]["tokenizer"]) == (4, "bytes")
    assert result["learning_rate_last"] == pytest.approx(0.1 * 3e-3), (
        "its own schedule: a tenth of the peak is the floor"
    )
    shown = capsys.readouterr().out
    assert f"init    the weights of {copy} (30 steps, 7.68k tokens)" in shown
    assert "the law holds for training from random weights" in shown
    assert f"The run started from the weights of {copy} (7.68k tokens)." in write_report(folder).read_text()

    shutil.rmtree(copy)
    weights = (folder / "model.safetensors").read_bytes()
    run_here(place, *arguments, "budget.extend=2", name="tuned")
    assert read(folder, "result.json")["spent"]["steps"] == 6
    assert read(folder, "result.json")["init"] == result["init"]
    assert (folder / "model.safetensors").read_bytes() != weights


def test_an_unfinished_run_and_another_context_are_a_start_too(
    place: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "model.json").unlink()
    shutil.rmtree(checkpoints(copy / "checkpoint")[0])
    arguments = (*FROM, f"init.checkpoint={copy}", f"output_dir={tmp_path / 'new'}")
    session, trainer = untrained(place, monkeypatch, *arguments, "model.block_size=64", name="longer")
    assert trainer.shape.block_size == 64
    assert 0 < read(session.run.folder, "result.json")["init"]["steps"] < 30


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("model.n_embd=128", ["model.n_embd=128, but the model of init.checkpoint=", "has 64; leave the option out"]),
        ("model.bias=true", ["model.bias=True", "has False"]),
        ("model.document_mask=true", ["model.document_mask=True", "has False"]),
        ("data.tokenizer=gpt2", ["data.tokenizer=gpt2", "has bytes", "prepared with the tokenizer of the model"]),
        ("init.checkpoint=nowhere", ["init.checkpoint=nowhere: no such folder"]),
    ],
)
def test_what_contradicts_the_model_is_refused_in_one_line(
    place: Path, finished: Path, tmp_path: Path, argument: str, parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        run_here(place, *FROM, f"init.checkpoint={finished}", f"output_dir={tmp_path}", argument, name="refused")
    (message,) = caught.value.messages
    assert all(part in message for part in parts), message
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_was_trained_on_other_text_is_kept(place: Path, tmp_path: Path) -> None:
    """The same name, bpe-300, would mean other ids on another text."""
    first = run_here(place, "budget.steps=2", "data.tokenizer=bpe-300", f"output_dir={tmp_path / 'a'}", name="bpe")
    other = tmp_path / "other"
    other.mkdir()
    for number in range(30):
        (other / f"{number}.txt").write_text(f"{number} zebras quiz jackdaws\n" * 40)
    common = ("budget.steps=2", f"data.path={other}", f"output_dir={tmp_path / 'b'}")
    own = run_here(place, *common, "data.tokenizer=bpe-300", name="own")
    tuned = run_here(place, *common, "data.tokenizer=bpe-4096", "init=run", f"init.checkpoint={first}", name="tuned")
    fingerprints = [read(folder, "model.json")["tokenizer_fingerprint"] for folder in (first, own, tuned)]
    assert fingerprints[2] == fingerprints[0] != fingerprints[1]
    more = ("budget.steps=3", f"output_dir={tmp_path / 'c'}", "data.tokenizer=bpe-300", "init=run")
    same = run_here(place, *more, f"init.checkpoint={first}", name="same")
    corpora = [read(folder, "model.json")["data_fingerprint"] for folder in (first, same)]
    assert corpora[0] == corpora[1], "on the same text, the corpus that is prepared already is used"


def test_the_same_command_with_a_larger_budget_says_what_it_will_do(
    place: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("eval.every=0", "checkpoint.every_s=0.001", "checkpoint.max_fraction=1.0", f"output_dir={copy.parent}")
    ways = (
        f"budget  {copy} has the same options and budget.steps=30; this is a new run, from scratch.",
        "budget.steps=30 budget.extend=2;",
        f"init=run init.checkpoint={copy}",
    )
    for steps, group, expected in ((32, "null", True), (32, "null", False), (33, "sweep", False)):
        run_here(place, f"budget.steps={steps}", f"wandb.group={group}", *arguments, name="base")
        shown = capsys.readouterr().out
        assert [way in shown for way in ways] == [expected] * 3, shown


def test_the_commands_take_an_unfinished_run_and_plan_for_a_model(copy: Path, tmp_path: Path) -> None:
    def script(name: str, *arguments: str) -> tuple[str, str]:
        answer = copied([str(ROOT / f"{name}.py"), *arguments], tmp_path, 60)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout, answer.stderr

    out, _ = script("plan", "init=run", f"init.checkpoint={copy}", "budget.flops=1e12", "output=json")
    plan = json.loads(out)
    assert (plan["n_layer"], plan["n_embd"], plan["vocab_size"]) == (1, 64, 320)
    assert any("training from random weights" in note for note in plan["notes"])
    (copy / "model.json").unlink()
    (tmp_path / "t.txt").write_text("some text\n" * 20)
    expected = "not finished: checkpoint of step 30, 100 % of its budget\n"
    out, error = script("sample", f"checkpoint={copy}", "tokens=3", "output=json")
    assert (json.loads(out)[0]["prompt"], error) == ("", expected)
    out, error = script("evaluate", f"checkpoint={copy}", "data.path=t.txt", "output=json", "device.threads=1")
    assert (json.loads(out)["note"], error) == (expected.strip(), expected)
