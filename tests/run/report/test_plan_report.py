"""The output of plan.py, and the plan that a run shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from budget.clock import Limits
from budget.planner.planner import make_plan
from run.report.console import Console
from run.report.plan_report import show_plan_briefly
from run.report.run_report import write_report
from tests.budget.planner.test_planner import request
from tests.conftest import ROOT
from tests.copies import copied


def plan(*arguments: str, status: int = 0, cwd: Path = ROOT) -> str:
    answer = copied([str(ROOT / "plan.py"), *arguments], cwd, 60)
    assert answer.returncode == status, answer.stderr
    return answer.stdout if status == 0 else answer.stderr


def test_a_list_of_budgets_gives_one_row_each(tmp_path: Path) -> None:
    shown = plan("budget.hours=0.5,1,3,10,24", "device=a100", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    rows = [line for line in shown.splitlines() if "of wall clock" in line]
    assert [row.split(" of ")[0].strip() for row in rows] == ["30m00s", "1h00m", "3h00m", "10h00m", "24h00m"]
    plans = json.loads(plan("-m", "budget.flops=1e17,1e18,1e19", "output=json"))
    sizes = [each["parameters_law"] for each in plans]
    assert sizes == sorted(sizes)
    assert len(sizes) == 3


@pytest.mark.parametrize("arguments", [("-m", "model.n_layer=2,4"), ("-m", "seed=1,2", "model.n_layer=2")])
def test_any_option_can_be_listed_and_a_sweep_of_training_is_not_touched(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "outputs" / "sweeps" / "run").mkdir(parents=True)
    (tmp_path / "outputs" / "sweeps" / "run" / "sweep.json").write_text("{}")
    shown = plan(*arguments, "budget.hours=3", "device=a100", cwd=tmp_path)
    assert shown.count("of wall clock") == 2
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == ["outputs/sweeps/run/sweep.json"]


@pytest.mark.parametrize("more", [(), ("-m",)])
def test_the_file_of_a_sweep_gives_one_row_per_job_and_writes_nothing(more: tuple[str, ...], tmp_path: Path) -> None:
    sweep = ("-cd", str(ROOT / "sweeps"), "-cn", "size")
    shown = plan(*sweep, *more, "budget.hours=0.02", "device=a100", cwd=tmp_path)
    assert shown.count("of wall clock") >= 3
    assert list(tmp_path.iterdir()) == []
    alone = plan(*sweep, "budget.hours=0.02", "hydra.mode=RUN", "device=a100", "output=json", cwd=tmp_path)
    assert json.loads(alone)["n_layer"] >= 1


def test_flags_between_overrides_are_refused_with_a_hint() -> None:
    said = plan("budget.hours=3", "-m", "device=a100", status=2)
    hint = "flags (-m, -cd, -cn) go before or after all KEY=VALUE, not between them"
    assert said == f"error: unrecognized arguments: device=a100; {hint}\n"


def test_a_precision_without_a_peak_in_the_table_is_refused() -> None:
    said = plan("budget.hours=3", "device=a100", "device.precision=float32", status=2)
    assert "device.precision=float32" in said
    assert "device.peak_flops=" in said
    assert "wall clock" in plan("budget.hours=3", "device=a100", "device.precision=float32", "device.peak_flops=156e12")


def test_explain_prints_the_derivation() -> None:
    shown = plan("budget.hours=3", "device=a100", "explain=true", "plan.corpus_tokens=6e9")
    expected = ("chinchilla-table3 (Hoffmann", "porian-refinedweb", "FLOPs per token: 6 x", "Step Law", "Power Lines")
    assert [words for words in expected if words not in shown] == []
    assert "Power Lines" not in plan("budget.hours=3", "device=a100")


def test_a_run_shows_its_plan_in_about_ten_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = ("first", "second", "third")
    found = make_plan(request(limits=Limits(hours=3), flops_per_second=1e14, corpus_tokens=6e9, notes=notes))
    show_plan_briefly(found, Console(), Limits(hours=3))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 11
    assert [line.split()[0] for line in lines[1:7]] == [
        "budget", "model", "training", "optimizer", "speed", "alternatives",
    ]  # fmt: skip
    assert f"width {found.n_embd}" in lines[2]
    assert f"{found.steps:,} steps of {found.batch_tokens:,}" in lines[3]
    assert f"{found.alternatives[0].n_layer} x {found.alternatives[0].n_embd}" in lines[6]
    assert lines[7:] == ["note: first", "note: second"]
    assert "1 more note:" in lines[0]


def test_files_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    plan("budget.hours=3", "device=a100", f"plan.folder={tmp_path / 'p'}")
    content = json.loads((tmp_path / "p" / "plan.json").read_text())
    assert content["n_layer"] >= 1
    assert (tmp_path / "p" / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_a_run_shows_the_chart(tmp_path: Path) -> None:
    plan("budget.hours=3", "device=a100", f"plan.folder={tmp_path}")
    page = write_report(tmp_path).read_text()
    assert "Expected loss against size for this budget" in page
    assert page.count("<svg") == 1
    for size in ("50M", "100M", "200M"):  # the ticks
        assert f">{size}<" in page


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("law=locl", "did you mean local"),
        ("law=local", "budget.laws.refit"),
        ("plan.aspect_min=200", "plan.aspect_max"),
        ("plan.corpus_tokens=1e6", "plan.max_epochs="),
    ],
)
def test_errors_are_one_line(argument: str, words: str) -> None:
    shown = plan("budget.flops=1e17", argument, "plan.law_file=nowhere/law.json", status=2)
    assert words in shown
    assert len(shown.splitlines()) == 1


GPU = ("budget.hours=3", "device=a100", "output=json")
ASSUMED = "this plan is for SlimPajama with GPT-2's tokens"


def test_a_plan_for_a_gpu_is_for_slimpajama_unless_a_corpus_is_named() -> None:
    assumed = json.loads(plan(*GPU))
    assert (assumed["vocab_size"], assumed["source"]["corpus"]) == (50304, "known")
    assert assumed["corpus_tokens"] == pytest.approx(5.9e9, rel=0.01)
    assert assumed["epochs"] == pytest.approx(assumed["tokens"] / 5.9e9, rel=0.01)
    assert assumed["notes"][0].startswith(ASSUMED)
    named = json.loads(plan(*GPU, "data=stdlib"))
    assert named["vocab_size"] == 4096
    assert not any(note.startswith(ASSUMED) for note in named["notes"])
    assert json.loads(plan(*GPU, "data.tokenizer=bytes"))["vocab_size"] == 320


@pytest.mark.parametrize(
    "arguments",
    [
        ("budget.hours=1,3", "device=a100"),
        ("-m", "device=a100,h100", "budget.hours=3"),
        ("-cd", str(ROOT / "sweeps"), "-cn", "size", "budget.hours=3", "device=a100"),
    ],
)
def test_lists_and_sweeps_for_a_gpu_are_for_slimpajama(arguments: tuple[str, ...]) -> None:
    plans = json.loads(plan(*arguments, "output=json"))
    assert {each["vocab_size"] for each in plans} == {50304}
    assert plan(*arguments).count(ASSUMED) == 1


def test_the_corpus_of_a_sweeps_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\ndata: {tokenizer: bytes}\n")
    shown = plan("-cd", str(tmp_path), "-cn", "mine", *GPU, cwd=tmp_path)
    assert json.loads(shown)["vocab_size"] == 320


def test_a_plan_says_how_often_it_repeats_its_corpus() -> None:
    day = plan("budget.hours=24", "device=h100")
    assert "(1.49 epochs)" in day
    assert "1.5 epochs of SlimPajama's 6B sample; for the original with 627B tokens: data=slimpajama" in day
    assert "data.repo=cerebras/SlimPajama-627B data.max_bytes=39GB" in day
    toy = plan("budget.flops=3.4e18")
    assert re.search(r"note: 3\d\d epochs of the .*M-token default corpus", toy)
    assert "takes the text as new" in toy
    assert "default corpus only show that everything works; data=slimpajama plans for 5.9B tokens" in toy
    assert "estimate" in next(line for line in toy.splitlines() if line.startswith("corpus "))
    explained = plan("budget.flops=3.4e18", "explain=true")
    assert re.search(r"100\.0% of the tokens count as new \(3\d\d\.\d\d epochs, taken as new text", explained)
    assert re.search(r"dropout: 0, .*; 3\d\d\.\d\d epochs, taken as new text", explained)
    unknown = plan("budget.flops=1e17", "data=text", "data.path=/nowhere")
    assert "the size of the corpus is not known" in unknown


def test_a_plan_refuses_as_many_epochs_as_training_does() -> None:
    said = plan("device=h100", "budget.tokens=1e12", status=2)
    assert "169.5 epochs of the corpus (about 5.9B tokens); at most 16 epochs are allowed" in said
    assert "plan.max_epochs=170" in said
    assert "169.49 epochs" in plan(
        "device=h100", "budget.tokens=1e12", "plan.corpus_tokens=5.9e9", "plan.max_epochs=170"
    )


@pytest.mark.parametrize(("variables", "data"), [(["DEVICE=a100"], None), (["DEVICE=a100", "DATA=stdlib"], "stdlib")])
def test_make_plan_names_a_corpus_only_if_the_user_does(variables: list[str], data: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("DATA", "MAKEFLAGS", "MFLAGS")}
    command = ["make", "-n", "plan", *variables]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in printed.splitlines() if "plan.py" in line)
    assert [word for word in line.split() if word.startswith("data=")] == ([f"data={data}"] if data else [])
