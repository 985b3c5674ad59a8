"""Fit a law to folders of finished runs with the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from budget.laws.published import LAWS, effective_tokens, load_law, save_law
from budget.laws.refit import check_comparable, read_run, read_runs
from budget.planner.planner import make_plan
from common.errors import UserError
from config import Config
from data.prepare import prepare, prepared_fingerprint
from data.sources.base import DataSpec
from tests.budget.laws.test_fit import FIVE, SMALL, runs, unequal
from tests.conftest import ROOT
from training.corpus_text import Text
from training.plan_run import request_for


def write_run(folder: Path, parameters: float, tokens: float, loss: float, **changes: Any) -> Path:
    """Create the folder of a finished run with the files that refit reads."""
    folder.mkdir(parents=True)
    result = {
        "status": changes.get("status", "finished"),
        "init": changes.get("init"),
        "stopped_by": changes.get("stopped_by", "tokens"),
        "spent": {
            "tokens": tokens,
            "flops_6nd": 6 * parameters * tokens,
            "flops": changes.get("flops", 8 * parameters * tokens),
            "training_hours": 0.1,
        },
        "model": {"parameters_law": parameters, "block_size": 256, **changes.get("model", {})},
        "eval": {"loss": loss, "bits_per_byte": loss / 3, "fingerprint": changes.get("scored", "f" * 32)},
        "data": {
            "tokenizer": changes.get("tokenizer", "bytes"),
            "fingerprint": changes.get("corpus", "c" * 64),
            "train_tokens": changes.get("train_tokens", tokens),
            **changes.get("data", {}),
            "text_fingerprint": changes.get("text"),
        },
    }
    (folder / "result.json").write_text(json.dumps(result))
    config = {"seed": 1337, "name": folder.name, "optim": {"learning_rate": None}, **changes.get("config", {})}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "plan.json").write_text(json.dumps({"batch_tokens": changes.get("batch_tokens", 8192)}))
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    for i, point in enumerate(runs(SMALL, [1e13, 4e13], FIVE, noise=0.002)):
        write_run(tmp_path / "outputs" / f"run-{i}", point.parameters, point.tokens, point.loss)
    return tmp_path / "outputs"


def refit(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "budget.laws.refit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_runs_become_a_law_that_a_plan_uses(outputs: Path) -> None:
    write_run(outputs / "stopped", 1e5, 1e8, 3.0, status="stopped")
    write_run(outputs / "tuned", 1e5, 1e8, 2.0, init={"source": "run", "checkpoint": "outputs/stopped"})
    (outputs / "no-run").mkdir()
    law_file = outputs / "law.json"
    answer = refit(*sorted(outputs.iterdir()), "--output", law_file)
    assert answer.returncode == 0, answer.stderr
    assert "stopped: left out, its status is stopped" in answer.stdout
    assert "tuned: left out, it started from the weights of another model" in answer.stdout
    assert "no-run: left out, no readable result.json" in answer.stdout
    assert "without a prior the exponent would be" in answer.stdout
    assert (outputs / "law.png").read_bytes().startswith(b"\x89PNG")
    law, about = load_law(law_file)
    assert about["tokenizer"] == "bytes"
    assert len(about["runs"]) == 10
    assert about["corpora"] == ["c" * 64]
    command = [sys.executable, "plan.py", "budget.flops=1e14", "law=local", f"plan.law_file={law_file}", "output=json"]
    plan = subprocess.run([*command, "data.tokenizer=bytes"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert plan.returncode == 0, plan.stderr
    shown = json.loads(plan.stdout)
    assert shown["law"] == "local"
    assert shown["optimum"]["parameters"] == pytest.approx(law.parameters(shown["optimum"]["flops"]), rel=1e-4)
    low, high = shown["predicted_loss_interval"]
    assert low < shown["predicted_loss"] < high
    other = subprocess.run([*command, "data.tokenizer=gpt2"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert other.returncode == 2
    assert "--metric bits_per_byte" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_a_plan_notes_that_its_law_was_fitted_on_another_corpus(tmp_path: Path) -> None:
    law_file = tmp_path / "law.json"
    save_law(replace(LAWS["epoch"], name="local"), {"metric": "loss", "corpora": ["c" * 64, "d" * 64]}, law_file)
    config = Config(law="local")
    config.budget.flops, config.plan.law_file = 1e14, str(law_file)

    def notes(fingerprint: str | None) -> list[str]:
        text = Text(257, "bytes", None, fingerprint)
        return [n for n in make_plan(request_for(config, text, None, 0.0)).notes if "corpus" in n]

    assert notes("d" * 64) == []
    (other,) = notes("e" * 64)
    assert "another corpus (cccccccc, dddddddd) than this one (eeeeeeee)" in other
    assert "make law" in other
    (unknown,) = notes(None)
    assert "not prepared" in unknown
    save_law(replace(LAWS["epoch"], name="local"), {"metric": "loss"}, law_file)
    (unnamed,) = notes("e" * 64)
    assert "does not name" in unnamed
    config.law = "epoch"
    assert notes("e" * 64) == []


def test_plan_finds_the_fingerprint_of_a_corpus_that_is_prepared(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"text {i}, " * 300)
    place = str(tmp_path / "prepared")
    spec = DataSpec(
        source="text", path=str(tmp_path / "*.txt"), tokenizer="bytes", validation_fraction=0.5, cache_dir=place
    )
    assert prepared_fingerprint(spec) is None
    info = prepare(spec, progress=False, log=lambda _: None)
    assert prepared_fingerprint(spec) == info.manifest["fingerprint"]
    assert prepared_fingerprint(replace(spec, path=str(tmp_path / "nowhere"))) is None


def test_runs_of_equal_flops_form_a_slice_and_the_shift_is_reported(tmp_path: Path) -> None:
    """budget.flops includes attention, so that each size has a different 6ND."""
    for i, point in enumerate(unequal(SMALL, [1e13, 4e13], "flops", 0.15)):
        write_run(tmp_path / f"run-{i}", point.parameters, point.tokens, point.loss, flops=point.spent["flops"])
    answer = refit(*sorted(tmp_path.iterdir()), "--output", tmp_path / "law.json")
    assert answer.returncode == 0, answer.stderr
    slices = [line for line in answer.stdout.splitlines() if "5 runs" in line]
    assert len(slices) == 2
    assert all("best" in line and "6ND differs by 27%" in line and "moved" in line for line in slices)


def test_hours_count_as_a_budget_only_if_they_ended_the_run(tmp_path: Path) -> None:
    """Runs that happen to take equally long do not form a slice."""
    folders = [write_run(tmp_path / by, 1e5, 8e6, 3.0, stopped_by=by) for by in ("hours", "tokens")]
    runs, _ = read_runs(folders, "loss")
    assert runs[0].point.spent == {"flops_6nd": 4.8e12, "flops": 6.4e12, "hours": 0.1}
    assert runs[1].point.spent == {"flops_6nd": 4.8e12, "flops": 6.4e12}


def test_no_finished_runs_is_a_one_line_error(tmp_path: Path) -> None:
    answer = refit(tmp_path, "--output", tmp_path / "law.json")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: no finished run")
    assert not (tmp_path / "law.json").exists()


def test_different_tokenizers_are_refused_with_a_hint_at_bits_per_byte(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", 1e5, 1e8, 3.0, tokenizer="bytes"),
        write_run(tmp_path / "b", 1e5, 1e8, 4.0, tokenizer="gpt2", scored="0" * 32),
    ]
    found, left_out = read_runs(folders, "loss")
    assert not left_out
    with pytest.raises(UserError, match=r"bytes in 1, gpt2 in 1.*--metric bits_per_byte"):
        check_comparable(found, "loss")
    (note,) = check_comparable(read_runs(folders, "bits_per_byte")[0], "bits_per_byte")
    assert "different tokenizers (bytes in 1, gpt2 in 1)" in note


@pytest.mark.parametrize("metric", ["loss", "bits_per_byte"])
def test_different_text_is_refused_for_every_metric(tmp_path: Path, metric: str) -> None:
    folders = [write_run(tmp_path / text, 1e5, 1e8, 3.0, corpus=text, text=text) for text in "ab"]
    with pytest.raises(UserError, match="evaluated on different text"):
        check_comparable(read_runs(folders, metric)[0], metric)


def test_different_evaluations_are_refused_and_different_block_sizes_noted(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", 1e5, 1e8, 3.0)
    other = write_run(tmp_path / "b", 1e5, 1e8, 3.0, scored="0" * 32)
    with pytest.raises(UserError, match="evaluated on different tokens"):
        check_comparable(read_runs([first, other], "loss")[0], "loss")
    longer = write_run(tmp_path / "c", 1e5, 1e8, 3.0, model={"block_size": 512})
    notes = check_comparable(read_runs([first, longer], "loss")[0], "loss")
    assert "block sizes (256 in 1, 512 in 1)" in notes[0]


def test_different_blocks_are_noted(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(on), 1e5, 1e8, 3.0, model={"qk_norm": on}) for on in (True, False)]
    (note,) = check_comparable(read_runs(folders, "loss")[0], "loss")
    assert all(part in note for part in ("different blocks", "qk_norm=True", "qk_norm=False"))


def test_repeated_tokens_count_as_effective_tokens(tmp_path: Path) -> None:
    """Eight epochs are worth 0.83 of as many new tokens (Muennighoff et al. 2023)."""
    once, often = (write_run(tmp_path / str(n), 1e5, 8e6, 3.0, train_tokens=n) for n in (8e6, 1e6))
    runs, _ = read_runs([once, often], "loss")
    assert runs[0].point.tokens == 8e6
    assert runs[1].point.tokens == pytest.approx(effective_tokens(8e6, 1e6))
    assert runs[1].point.tokens == pytest.approx(0.83 * 8e6, rel=0.01)
    mix = {"epochs": 8.0, "mix": {"web": {"weight": 0.9}, "code": {"weight": 0.1}}}
    mixed = write_run(tmp_path / "mixed", 1e5, 8e6, 3.0, train_tokens=8e6, data=mix)
    (run,) = read_runs([mixed], "loss")[0]
    assert run.point.tokens == runs[1].point.tokens, "a mix counts by its most repeated source"


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({"config": {"seed": 2, "output_dir": "elsewhere", "wandb": {"mode": "offline"}}}, True),
        ({"config": {"optim": {"learning_rate": 0.01}}}, False),
        ({"config": {"data": {"max_bytes": 10, "workers": 2}}}, False),
        ({"config": {"unheard_of": 1}}, False),
        ({"batch_tokens": 16384}, False),
        ({"corpus": "d" * 64}, False),
    ],
)
def test_only_runs_that_differ_in_their_seed_alone_are_alike(
    tmp_path: Path, changes: dict[str, Any], alike: bool
) -> None:
    folders = [write_run(tmp_path / "a", 1e5, 8e6, 3.0), write_run(tmp_path / "b", 1e5, 8e6, 3.1, **changes)]
    runs, left_out = read_runs(folders, "loss")
    assert not left_out
    assert (runs[0].point.setup == runs[1].point.setup) is alike


# Nine lines of YAML that are three gigabytes of JSON.
BILLION_LAUGHS = "a: &a [lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("config.yaml", content) for content in (None, "", "[", "3", BILLION_LAUGHS, "[" * 1000, "#" * 100_000)),
        *(("plan.json", content) for content in (None, "", "[", "3", "{}", '{"batch_tokens": null}')),
        *(("result.json", content) for content in ("", "[]", '{"status": "finished"}')),
        ("result.json", '{"status": "finished", "data": 3}'),
    ],
)
def test_a_run_with_a_damaged_file_is_left_out_by_name(tmp_path: Path, file: str, content: str | None) -> None:
    folder = write_run(tmp_path / "run", 1e5, 8e6, 3.0)
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    found = read_run(folder, "loss")
    assert isinstance(found, str)
    assert file in found


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("eval", "loss", "3.0"),
        ("eval", "loss", float("inf")),
        ("eval", "fingerprint", None),
        ("model", "parameters_law", "many"),
        ("model", "block_size", None),
        ("spent", "tokens", 0),
        ("spent", "tokens", 10**400),
        ("data", "tokenizer", None),
        ("data", "fingerprint", 7),
    ],
)
def test_an_invalid_value_is_reported_by_name(tmp_path: Path, part: str, key: str, value: Any) -> None:
    folder = write_run(tmp_path / "run", 1e5, 1e8, 3.0)
    result = json.loads((folder / "result.json").read_text())
    result[part][key] = value
    (folder / "result.json").write_text(json.dumps(result))
    found = read_run(folder, "loss")
    assert isinstance(found, str)
    assert f"{part}.{key} in its result.json is" in found


@pytest.mark.parametrize("output", ["a-file/law.json", "a-folder"])
def test_an_unwritable_output_is_an_error_before_the_fit(tmp_path: Path, output: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    answer = refit(tmp_path, "--output", tmp_path / output)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert f"--output {tmp_path / output} cannot be written" in answer.stderr
    assert answer.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "a-folder"]
