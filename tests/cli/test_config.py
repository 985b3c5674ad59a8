"""The command line: invalid input, error messages, help pages, and the use of every option."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import pytest

from cli.compose import checked_config, register_schemas
from cli.groups import group_choices, groups
from cli.validate import find_problems
from config import CONF, REMOVED_OPTIONS, Config, EvaluateConfig, SampleConfig, identity, leaves, option
from model.config import PRESETS
from run.directory import run_name
from tests.copies import copied

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return copied([str(ROOT / script), *arguments], cwd, 60)


def refused(tmp_path: Path, *arguments: str, script: str = "train.py") -> list[str]:
    """The error lines of a command that must end with status 2, print nothing else and write nothing."""
    answer = run(script, *arguments, cwd=tmp_path)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    lines = answer.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), answer.stderr
    assert answer.stdout == ""
    assert list(tmp_path.iterdir()) == []
    return lines


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("budget.hour=3", "did you mean budget.hours"),
        ("n_layer=3", "did you mean model.n_layer"),
        ("budget.hours=three", "budget.hours=three: not a duration; write hours as a number, or e.g. 3h, 90m, 45s"),
        ("budget.steps=1.5", "budget.steps=1.5: not a whole number"),
        ("+model.foo=1", "model.foo is not an option"),
        ("~model.dropout", "removes an option"),
        ("data=slimpijama", "did you mean slimpajama"),
        ("device=a10000", "did you mean a100"),
        ("budget.hours=0", "out of range"),
        ("budget.hours=-1", "out of range"),
        ("model.dropout=1", "model.dropout"),
        ("schedule.shape=cosin", "schedule.shape=cosin"),
        ("wandb.mode=of", "wandb.mode=of"),
        ("data.source=text", "data.path"),
        ("data.source=pile", "allowed: stdlib, slimpajama, hub, text"),
        ("data.max_bytes=0", "data.max_bytes=0 is out of range"),
        ("optim.name=lion", "allowed: auto, adamw, muon"),
        ("name=../x", "not a folder name"),
        ("a=b=c", "a is not an option"),
        ("=3", "not KEY=VALUE"),
        ("budget.hours=nan", "out of range"),
        ("law=local", "law=local: outputs/law.json"),
        ("budget.extend=5steps", "budget.extend=5steps adds steps, but budget.steps is not set"),
        ("init=run", "init.source=run needs init.checkpoint"),
        ("init.checkpoint=outputs/x", "add init=run"),
    ],
)
def test_an_error_is_one_line_with_its_fix(tmp_path: Path, argument: str, expected: str) -> None:
    arguments = [argument] if argument.startswith("budget.hours=") else ["budget.hours=1", argument]
    lines = refused(tmp_path, *arguments)
    assert any(expected in line for line in lines), lines


def test_a_law_that_cannot_be_read_is_refused_before_any_corpus_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "law.json").write_text("{}")
    for name in ("law.json", "missing.json"):
        config = Config(law="local")
        config.budget.hours, config.plan.law_file = 1.0, str(tmp_path / name)
        (line,) = find_problems(config)
        assert name in line
        assert "make law" in line
        assert "plan.law_file=" in line


@pytest.mark.parametrize(
    ("source", "path", "validation_path", "words"),
    [
        ("text", "a.txt", "b.txt", ()),
        ("slimpajama", "folder", "b.txt", ()),
        ("text", "a.txt", "./a.txt", ("data.validation_path=./a.txt is data.path",)),
        ("slimpajama", None, "b.txt", ("data.validation_path=b.txt needs training text in files",)),
        ("stdlib", None, "b.txt", ("data.validation_path=b.txt needs training text in files",)),
        ("text", None, "b.txt", ("data.source=text needs data.path",)),  # one mistake, one error
        ("stdlib", "a.txt", "b.txt", ("data.path=a.txt is ignored by data=stdlib",)),
        ("text", "a.txt", "", ("data.validation_path='' is empty",)),
    ],
)
def test_validation_path_needs_other_text_in_files(
    source: str, path: str | None, validation_path: str, words: tuple[str, ...]
) -> None:
    config = Config()
    config.budget.hours = 1.0
    config.data.source, config.data.path, config.data.validation_path = source, path, validation_path
    lines = find_problems(config)
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True)), lines


def test_validation_path_is_part_of_a_runs_name_wherever_it_is_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.data.path = "a.txt"
    without = identity(config)
    config.data.validation_path = "b.txt"
    relative = identity(config)
    config.data.validation_path = str(tmp_path / "b.txt")
    assert without != relative == identity(config)


@pytest.mark.parametrize(("every", "refused"), [(0.0, True), (0.1, False), (0.2, False), (0.25, True), (0.5, True)])
def test_halving_needs_an_evaluation_before_its_first_rung(every: float, refused: bool) -> None:
    config = Config()
    config.budget.hours, config.eval.every = 1.0, every
    assert find_problems(config) == []
    config.sweep.prune = "halving"
    lines = find_problems(config)
    assert len(lines) == refused
    assert all(f"eval.every={every:g}" in line for line in lines)


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    lines = refused(tmp_path, "budget.hours=-1", "model.n_embd=100", "model.n_head=3", "seed=abc", "modle.bias=true")
    for part in ("budget.hours=-1", "model.n_embd=100 is not divisible", "seed=abc", "modle.bias"):
        assert any(part in line for line in lines), (part, lines)


def test_a_run_without_a_limit_is_refused(tmp_path: Path) -> None:
    assert "no budget is set" in refused(tmp_path)[0]


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "sample.py", "plan.py"])
def test_help_shows_every_option_with_its_meaning(script: str) -> None:
    answer = run(script, "--help", "all")
    assert answer.returncode == 0
    text = " ".join(answer.stdout.split())
    schema = {"evaluate.py": EvaluateConfig, "sample.py": SampleConfig}.get(script, Config)
    for name, each, _ in leaves(schema):
        assert f"  {name}=" in answer.stdout
        assert len(each.help) > 5
        assert " ".join(each.help.split()) in text


def test_evaluate_and_sample_need_a_checkpoint(tmp_path: Path) -> None:
    for script in ("evaluate.py", "sample.py"):
        assert "checkpoint is missing" in refused(tmp_path, script=script)[0]


def test_every_group_choice_composes() -> None:
    """Each YAML under conf/ is valid on its own, through Hydra as the command line uses it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for group in (
            path.name for path in CONF.iterdir() if path.is_dir() and path.name != "task"
        ):  # see test_tasks.py
            for option in (path.stem for path in (CONF / group).glob("*.yaml")):
                config = OmegaConf.to_object(compose("config", [f"{group}={option}", "budget.steps=1", "data.path=x"]))
                problems = [m for m in find_problems(config) if "data.path" not in m and "init.checkpoint" not in m]
                assert problems == []
                if option in PRESETS:
                    assert {key: getattr(config.model, key) for key in PRESETS[option]} == PRESETS[option]
                    assert config.model.qk_norm == PRESETS[option].get("qk_norm", False)


def test_groups_mirror_the_folders() -> None:
    assert {"budget", "device", "model", "data", "optim", "schedule", "logger"} <= {p.name for p in CONF.iterdir()}
    assert "a100" in group_choices("device")


def attribute_chains(path: Path) -> set[str]:
    """Every `a.b.c` in a file."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_every_option_is_read_by_the_code() -> None:
    """An option that nothing reads would have no effect. Groups that are passed on whole (budget -> Limits, model -> Shape,
    data -> DataSpec, optim -> OptimSettings, task -> TaskOptions) count as read if the class has the same field."""
    from budget.clock import Limits
    from data.sources.base import DataSpec
    from evals.tasks.task import TaskOptions
    from model.config import Shape
    from model.optim.settings import OptimSettings

    whole = {"budget": Limits, "model": Shape, "data": DataSpec, "optim": OptimSettings, "task": TaskOptions}
    passed_on = {f"{group}.{f.name}" for group, schema in whole.items() for f in fields(schema)}
    readers = [
        *ROOT.glob("*.py"),
        *(path for name in ("cli", "training", "sweeps") for path in (ROOT / name).rglob("*.py")),
    ]
    read = set().union(*(attribute_chains(path) for path in readers))
    last_two = {".".join(chain.split(".")[-2:]) for chain in read}
    # `optim = config.optim` and then `optim.name`; `device.threads`, ...
    for schema in (Config, EvaluateConfig, SampleConfig):
        for name, _, _ in leaves(schema):
            tail = ".".join(name.split(".")[-2:]) if "." in name else f"config.{name}"
            group_alias = re.sub(r"^eval\.", "evals.", tail)
            assert name in passed_on or tail in last_two or group_alias in last_two, f"{name} is never read"


@pytest.mark.parametrize("script", ["train.py", "plan.py", "evaluate.py", "sample.py"])
def test_help_is_one_page(script: str) -> None:
    page = run(script, "--help").stdout
    assert len(page.splitlines()) < 60
    assert f"usage: {script} " in page
    assert page.count(f"  {script} ") >= 2  # examples
    assert max(map(len, page.splitlines())) <= 140


def test_help_names_every_group_and_its_choices() -> None:
    page = run("train.py", "--help").stdout
    for leaf in fields(Config):
        if is_dataclass(leaf.default_factory):
            assert f"\n  {leaf.name} " in page
            assert str(leaf.default_factory.__doc__).splitlines()[0] in page
    for group in groups():
        assert f"{group}= {' | '.join(group_choices(group))[:40]}" in page
    assert sum(each.common for _, each, _ in leaves(Config)) == 10


def test_help_of_a_group_shows_its_options_and_no_others() -> None:
    page = run("train.py", "--help", "optim").stdout
    for name, _, _ in leaves(Config):
        assert (f"\n  {name}=" in page) == name.startswith("optim."), name
    assert "allowed: [0, 1)" in page
    assert "schedule=" not in page
    assert "\n  seed=1337" in run("plan.py", "--help", "general").stdout
    assert "\n  data.path=null" in run("evaluate.py", "--help", "data").stdout


def test_help_of_an_unknown_group_is_one_line(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, "--help", "optin")
    assert "did you mean optim?" in line
    assert "general, budget, device" in line


def test_help_imports_neither_torch_nor_hydra() -> None:
    words = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"]
    answer = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert answer.returncode == 0
    assert "config" in imported
    assert not {"torch", "hydra", "omegaconf", "matplotlib"} & imported


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("--cfg", "job", "budget.hours=1"), "hours: 1.0"),
        (("--cfg", "job", "--resolve", "-p", "optim"), "learning_rate: null"),
        (("--cfg", "job", "-cn", "seeds", "-cd", str(ROOT / "sweeps")), "name: seeds"),
        (("--info", "defaults", "budget.hours=1"), "config_schema"),
        (("--hydra-help",), "--multirun"),
        (("--shell-completion", "install=bash"), "complete"),
    ],
)
def test_the_flags_of_hydra_still_work(tmp_path: Path, arguments: tuple[str, ...], shown: str) -> None:
    answer = run("train.py", *arguments, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert shown in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_shell_completes_options(tmp_path: Path) -> None:
    typed = "train.py optim.learn"
    environment = {**os.environ, "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "_": "python"}
    words = [sys.executable, str(ROOT / "train.py"), "--shell-completion", "query=bash"]
    answer = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "optim.learning_rate=" in answer.stdout, answer.stderr


KNOWN_RUNS = {
    ("budget.hours=0.05",): "run-2e718038",
    ("budget.hours=3", "data=slimpajama", "device=a100"): "run-e735f119",
    (
        *("budget.steps=60", "model=classic", "model.n_layer=2", "model.n_embd=64", "optim=muon", "schedule=wsd"),
        "name=mine",
    ): "mine-df2c4e39",
    (
        *("budget.flops=1e15", "model.value_embeddings=true", "optim.table_rate=1", "seed=2", "data.tokenizer=bytes"),
        "wandb.mode=offline",
    ): "run-2eef5457",
}


@pytest.mark.parametrize(("words", "folder"), KNOWN_RUNS.items(), ids=KNOWN_RUNS.values())
def test_a_command_finds_the_run_that_earlier_versions_made(words: tuple[str, ...], folder: str) -> None:
    """Users' folders have these names: never change them here."""
    from hydra import compose, initialize_config_dir

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked_config(compose("config", list(words)))
    assert run_name(config.name, identity(config)) == folder


def test_the_defaults_keep_their_hash() -> None:
    assert run_name("run", identity(Config())) == "run-92ca6783"


def test_a_tokenizer_file_is_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    hashes = set()
    for place, name in ((".", "a/tokenizer.json"), ("a", "./tokenizer.json"), ("a/b", "../tokenizer.json")):
        monkeypatch.chdir(tmp_path / place)
        config = Config()
        config.data.tokenizer = name
        hashes.add(run_name("run", identity(config)))
    assert len(hashes) == 1
    config.data.tokenizer = "me/my-model"
    assert identity(config)["data"]["tokenizer"] == "me/my-model"


def test_an_option_that_is_added_later_changes_no_hash_at_its_default() -> None:
    @dataclass
    class Later(Config):
        extra: int = option(3, "of a later version", added_later=True)

    assert identity(Later()) == identity(Config())
    assert identity(Later(extra=4)) == {**identity(Config()), "extra": 4}


@pytest.mark.parametrize("name", REMOVED_OPTIONS)
def test_a_removed_option_names_the_alternative(tmp_path: Path, name: str) -> None:
    (line,) = refused(tmp_path, "budget.hours=1", f"{name}=1")
    assert f"{name} was removed; leave it out: " in line
    assert name not in [each for each, _, _ in leaves(Config)]


def test_a_removed_option_in_a_file_is_an_error_too(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    head = "defaults:\n  - config\n  - _self_\nbudget: {hours: 1}\n"
    for number, text in enumerate(("model: {size: 2x64}\n", "sweep:\n  known: nothing\n", "samples: {tokens: 3}\n")):
        (folder / f"own{number}.yaml").write_text(head + text)
        answer = run("train.py", "-cd", str(folder), "-cn", f"own{number}", cwd=tmp_path)
        assert answer.returncode == 2, answer.stdout
        assert "was removed; leave it out" in answer.stderr, answer.stderr
