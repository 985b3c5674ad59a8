"""Tests that the README's commands run and that its numbers agree with the files in bench/results/."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bench.docs.performance_page
from bench.docs.performance_page import comparison, medians, with_comparison
from model.config import PLAIN, PRESETS
from tests.conftest import ROOT, TINY, folder_of, train

README = (ROOT / "README.md").read_text()
PROSE = README.replace("\n", " ")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
MAKE = [command for command in COMMANDS if command.startswith("make ")]
PYTHON = [command for command in COMMANDS if command.startswith("python ")]


def test_every_readme_command_is_covered_by_a_test() -> None:
    assert set(COMMANDS) == set(MAKE) | set(PYTHON)
    assert len(PYTHON) > 8


@pytest.mark.parametrize("command", MAKE)
def test_make_targets_exist(command: str) -> None:
    """A dry run: `make test` would run this test again, and `make train` takes minutes."""
    words = shlex.split(command)
    dry_run = subprocess.run(["make", "--dry-run", *words[1:]], capture_output=True, text=True, cwd=ROOT)
    assert dry_run.returncode == 0, dry_run.stderr


def test_make_help_lists_every_target() -> None:
    page = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT).stdout
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert len(targets) > 8
    assert all(f"  {target} " in page for target in targets)


@pytest.mark.parametrize("command", PYTHON)
def test_python_commands_run(command: str, place: Path) -> None:
    """Each command runs as written; training commands get options that make them small."""
    if not list((place / "outputs").glob("readme-*")):
        train(place, "budget.steps=20", name="readme")
    (place / "blimp").mkdir(exist_ok=True)
    (place / "blimp" / "pairs.jsonl").write_text('{"sentence_good": "It runs.", "sentence_bad": "It run."}\n')
    words = [word.replace("outputs/NAME", str(folder_of(place, "readme"))) for word in shlex.split(command)]
    script, arguments = words[1], words[2:]
    if script == "train.py":
        arguments = [word for word in arguments if not word.startswith("budget.hours")]
        given = {word.split("=")[0] for word in arguments}
        small = [word for word in TINY if word.split("=")[0] not in given]
        arguments += [*small, f"data.path={place / 'texts'}", "budget.steps=3"]
        arguments = list({word.split("=")[0] if "=" in word else word: word for word in arguments}.values())
    arguments = [word.replace("README.md", str(ROOT / "README.md")) for word in arguments]
    arguments = [str(ROOT / "sweeps") if word == "sweeps" else word for word in arguments]
    process = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], capture_output=True, text=True, cwd=place, timeout=120
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_first_result_agrees_with_make_train_json() -> None:
    recorded = json.loads((ROOT / "bench/results/make_train.json").read_text())
    shown = README.split("<!-- make train: begin -->")[1].split("<!-- make train: end -->")[0]
    figures = recorded["result"]["eval"]
    assert f"validation loss  {figures['loss']:.4f}" in shown
    assert f"perplexity {figures['perplexity']:.2f}" in shown
    assert f"bits per byte {figures['bits_per_byte']:.4f}" in shown
    assert f"accuracy {figures['accuracy']:.2%}" in shown
    assert recorded["how"] == "make train"


def test_the_comparison_agrees_with_the_result_files() -> None:
    assert with_comparison(README) == README, "python -m bench.docs.performance_page updates it"
    assert README.count("| nanoGPT | tuned | 3 |") == 1, "the main comparison has three seeds"


def test_the_comparison_names_the_modern_block_where_it_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.docs.performance_page, "RESULTS", tmp_path)
    mentions = []
    for block in (PRESETS["modern"], PLAIN):
        model = {option: block[option] for option in PLAIN}
        row = {"form": "tuned", "peer_loss": 4.2, "stint": [{"loss": 3.7, "model": model}], "time_to_loss": None}
        (tmp_path / "against_nanogpt.json").write_text(json.dumps({"rounds": [row]}))
        mentions.append("modern" in comparison())
    assert mentions == [True, False]


def test_the_comparison_shows_medians() -> None:
    runs = [
        {"peer_loss": 4.2, "stint": [{"loss": own}, {"loss": 4.5}], "time_to_loss": ratio}
        for own, ratio in ((3.7, 7.0), (3.5, 8.04), (3.8, 6.0))
    ]
    assert medians(runs) == ["4.20", "3.70", "0.50", "7.0 times as fast"]
    missed = {"peer_loss": 4.2, "stint": [{"loss": 4.3}], "time_to_loss": None}
    assert medians([runs[0], missed, missed])[-1] == "not reached"
    assert medians([runs[0], missed, runs[1]])[-1] == "7.0 times as fast", "a seed that missed the loss counts"
    faster = {**runs[1], "stint": [{"loss": 3.5}, {"loss": 4.1}]}
    assert medians([runs[0], faster])[-1] == "at least 7.5 times as fast", "even its shortest run was better"
    only_full = [{**run, "stint": run["stint"][:1], "time_to_loss": 1.0} for run in runs]
    assert medians(only_full)[-1] == "-", "no shorter run was made"


def test_the_law_extrapolation_agrees_with_replay_json() -> None:
    replay = json.loads((ROOT / "bench/results/replay.json").read_text())
    corpora = [replay[name] for name in ("RefinedWeb", "OpenWebText2")]
    assert "68 times the compute of its own runs, within 4 %" in PROSE
    assert all(replay["target_flops"] / max(corpus["budgets"]) == pytest.approx(68, rel=0.01) for corpus in corpora)
    assert all(abs(corpus["error"]) <= 0.04 for corpus in corpora)


def test_the_test_of_the_plan_agrees_with_prove_plan_json() -> None:
    recorded = json.loads((ROOT / "bench/results/prove_plan.json").read_text())
    chosen, verdict = recorded["chosen"], recorded["verdict"]
    half, twice = (
        min(recorded["others"], key=lambda row: abs(row["parameters_law"] / chosen["parameters_law"] - factor))["loss"]
        for factor in (0.5, 2.0)
    )
    assert verdict["above_the_best"] == 0
    assert "lowest loss of five sizes" in PROSE
    assert f"{half / chosen['loss'] - 1:.1%} below half".replace("%", " %") in PROSE
    assert f"{twice / chosen['loss'] - 1:.1%} below twice".replace("%", " %") in PROSE
    assert f"{-verdict['clock_off']:.1%} under the budget".replace("%", " %") in PROSE
    assert f"{-verdict['tokens_off']:.1%} fewer than planned".replace("%", " %") in PROSE
    assert f"{-verdict['predicted_loss_off']:.1%} lower than predicted".replace("%", " %") in PROSE
