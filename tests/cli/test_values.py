"""Values as people type them: units, `~`, characters that Hydra's grammar refuses, prompts, and hints that are right."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import sample
from cli.compose import checked_config, register_schemas
from cli.groups import config_folders, group_choices, groups
from cli.help import help_page
from cli.launch import launch
from common.errors import UserError
from config import CONF, Config, SampleConfig, identity
from run.directory import run_name
from tests.fuzz import Answer, answer

ROOT = Path(__file__).parents[2]


def composed(*words: str, script: str = "config") -> Any:
    """The configuration that a script gets for a command line."""
    got: list[Any] = []
    answered = called(*words, script=script, task=got.append)
    assert answered.status == 0, answered.err
    return got[0]


def called(*words: str, script: str = "config", task: Any = lambda config: None) -> Answer:
    return answer(lambda: launch(task, script), "train.py", list(words))


def refused(*words: str, script: str = "config") -> list[str]:
    return called(*words, script=script).refused()


def name_of(config: Config) -> str:
    return run_name(config.name, identity(config))


# Units


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("budget.hours=3h", 3.0), ("budget.hours=90m", 1.5), ("budget.hours=1h30m", 1.5), ("budget.hours=45s", 0.0125),
        ("budget.hours='2d'", 48.0), ("budget.extend_hours=30m", 0.5), ("sweep.hours=2d", 48.0),
        ("checkpoint.every_s=10m", 600.0), ("wandb.timeout_s=1m", 60.0), ("budget.tokens=10B", 1e10),
        ("budget.steps=20k", 20000), ("budget.steps=1e3", 1000), ("budget.flops=1T", 1e12), ("optim.batch_tokens=64k", 64000),
        ("data.max_bytes=1GB", 10**9), ("data.max_bytes=1GiB", 2**30), ("device.peak_flops=312T", 3.12e14),
        ("plan.corpus_tokens=6B", 6e9), ("eval.tokens=1M", 10**6),
    ],
)  # fmt: skip
def test_a_quantity_is_a_number(word: str, value: float) -> None:
    key = word.partition("=")[0]
    group, _, leaf = key.partition(".")
    got = getattr(getattr(composed("budget.hours=1", "data.source=stdlib", word), group), leaf)
    assert got == value
    assert type(got) is type(value)


def test_the_same_budget_is_the_same_run() -> None:
    assert name_of(composed("budget.hours=3h")) == name_of(composed("budget.hours=3"))
    assert name_of(composed("budget.hours=180m")) == name_of(composed("budget.hours=3"))


def test_evaluate_and_sample_take_units_too() -> None:
    words = ["checkpoint=x", "tokens=1M"]
    assert composed(*words, "data.path=y", script="evaluate").tokens == 10**6
    assert composed(*words, script="sample").tokens == 10**6


def test_files_take_units_and_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - config\n  - _self_\nbudget: {hours: 90m}\ndata: {max_bytes: 1GB}\noutput_dir: ~/runs\n"
    )
    config = composed("-cd", str(tmp_path), "-cn", "mine")
    assert (config.budget.hours, config.data.max_bytes, config.output_dir) == (1.5, 10**9, "/home/someone/runs")
    (tmp_path / "bad.yaml").write_text("defaults:\n  - config\n  - _self_\nbudget: {hours: 90x}\n")
    (line,) = refused("-cd", str(tmp_path), "-cn", "bad")
    assert line.startswith("bad.yaml: budget.hours=90x: not a duration")


def test_the_jobs_of_a_sweep_see_numbers(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    from sweeps.engine.job import make_job

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked_config(compose("config", ["budget.hours=30m"]))
    job = make_job(config, 0, ["budget.hours=30m", "model.dropout=0"], str(tmp_path))
    assert job.overrides == ("budget.hours=0.5", "model.dropout=0")
    assert "hours: 0.5" in job.config.read_text()


def test_a_sweep_over_units_is_the_sweep_over_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.overrides import readable

    assert readable("config", ["-m", "budget.hours=30m,1h", "seed=1,2"]) == ["-m", "budget.hours=0.5,1", "seed=1,2"]
    kept = ["-m", "budget.hours=choice(30m,1h)", "seed=range(1,3)", "optim.learning_rate=interval(0.001,0.1)"]
    assert readable("config", kept) == kept


# Paths and characters


def test_home_folders_are_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    words = ["output_dir=~/runs", "data.cache_dir=~", "data.path=~/a/*.txt", "plan.folder=~/p"]
    config = composed("budget.hours=1", "data=text", *words)
    assert (config.output_dir, config.data.cache_dir, config.data.path, config.plan.folder) == (
        "/home/someone/runs", "/home/someone", "/home/someone/a/*.txt", "/home/someone/p",
    )  # fmt: skip
    assert composed("budget.hours=1", "data=hub", "data.repo=~/repo").data.repo == "/home/someone/repo"
    assert composed("checkpoint=~/x", script="sample").checkpoint == "/home/someone/x"
    assert composed("budget.hours=1", "output_dir=./a//b/~").output_dir == "./a//b/~"


@pytest.mark.parametrize(
    "path", ["/d/日本.txt", "a b.txt", "x~/y", "a=b.txt", "a#b&c|d<e>f;g*h?.txt", "a\\b.txt", "C:\\x\\", "café/é.txt"]
)
def test_a_path_needs_no_quotes_for_hydra(path: str) -> None:
    assert composed("budget.hours=1", "data=text", f"data.path={path}").data.path == path


@pytest.mark.parametrize("path", ["/d/a(1).txt", "it's.txt", 'say "x".txt', "[a,b", "a{b.txt"])
def test_what_has_a_meaning_for_hydra_is_refused_with_the_words_to_type(path: str) -> None:
    (line,) = refused("budget.hours=1", "data=text", f"data.path={path}")
    (typed,) = shlex.split(line.partition("; type ")[2])
    assert composed("budget.hours=1", "data=text", typed).data.path == path


def test_several_values_outside_a_sweep_name_both_ways() -> None:
    (line,) = refused("budget.hours=1", "data=text", "data.path=a,b")
    assert "add -m" in line
    (typed,) = shlex.split(line.partition(", type ")[2])
    assert composed("budget.hours=1", "data=text", typed).data.path == "a,b"
    (line,) = refused("budget.hours=1", "wandb.tags=a,b")
    (typed,) = shlex.split(line.partition(", type ")[2])
    assert composed("budget.hours=1", typed).wandb.tags == ["a", "b"]
    assert composed("budget.hours=1", "wandb.tags=a").wandb.tags == ["a"]


# One error per mistake, and hints that are right


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["budget.hours=3x"], "budget.hours=3x: not a duration; write hours as a number, or e.g. 3h, 90m, 45s"),
        (["budget.tokens=10Q"], "budget.tokens=10Q: not a count; write a number, or e.g. 32k, 500M, 10B"),
        (["budget.steps=1.5"], "budget.steps=1.5: not a whole number"),
        (["budget.hours=1", "data.max_bytes=1XB"], "data.max_bytes=1XB: not a size; write bytes as a number, or e.g. 500MB"),
        (["budget.hours=0"], "budget.hours=0 is out of range"),
        (["budget.hours=1e-9"], "budget.hours=1e-09 is less than the start of a run takes"),
        (["budget.hours=x", "sweep.hours=3"], "budget.hours=x: not a duration"),
        (["budget.hours=1", "data=slimpijama", "data.path=x"], "data=slimpijama is not known"),
        (["budget.hours=1", "data.source=text", "data.path=[x]"], "data.path=['x'] has the wrong type"),
        (["budget.hours=1", "hydra.run.dir=x"], "hydra.run.dir=x has no effect on a run; choose the folder for runs with"),
        (["budget.hours=1", "hydra.sweep.dir=x"], "hydra.sweep.dir=x has no effect"),
        (["+budget.hours=3"], "'+budget.hours=3' adds an option that exists; leave out the +: budget.hours=3"),
        (["budget.hours=1", "+new.key=1"], "new.key is not an option; `--help all`"),
        (["-sc", "install"], "--shell-completion install: give one of install=SHELL"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(words: list[str], start: str) -> None:
    (line,) = refused(*words)
    assert line.startswith(start), line


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("device=A100", "a100"), ("hours=3", "budget.hours"), ("budget.hour=3", "budget.hours"),
        ("budget.minutes=5", "budget.hours=5m"), ("seconds=90", "budget.hours=90s"), ("budget=3h", "budget.hours=3h"),
        ("data=my.txt", "data=text data.path=my.txt"), ("device=cuda:1", "device.name=cuda:1"), ("lr=1", "optim.learning_rate"),
        ("DATA.PATH=x", "data.path"), ("modle.bias=true", "model.bias"), ("model.learning_rate=1", "optim.learning_rate"),
        ("batch_size=8", "optim.batch_tokens"), ("max_iters=8", "budget.steps"), ("optin=muon", "optim"),
    ],
)  # fmt: skip
def test_the_hint_is_what_was_meant(word: str, hint: str) -> None:
    lines = refused("budget.flops=1e15", word)
    assert len(lines) == 1
    assert f"did you mean {hint}?" in lines[0], lines


def test_no_budget_is_not_a_second_error_of_a_misspelled_one() -> None:
    for word in ("hours=3", "budget.hour=3", "budget.minutes=5", "max_steps=5"):
        assert len(refused(word)) == 1, word
    assert len(refused("seed=x")) == 2  # two mistakes: no budget is meant here


@pytest.mark.parametrize(
    ("word", "pip"),
    [
        ("hydra/sweeper=tpe", "pip install hydra-optuna-sweeper==1.3.0 'SQLAlchemy<2'"),
        ("hydra/launcher=slurm", "pip install hydra-submitit-launcher==1.2.0"),
        ("hydra/launcher=joblib", "pip install hydra-joblib-launcher==1.2.0"),
    ],
)
def test_a_missing_plugin_names_the_pip_command(monkeypatch: pytest.MonkeyPatch, word: str, pip: str) -> None:
    monkeypatch.setattr("cli.plugins.find_spec", lambda name: None)
    (line,) = refused("-m", "budget.hours=1", word)
    assert line.endswith(f"needs a plugin that is not installed: {pip}")


@pytest.mark.parametrize("word", ["hydra/sweeper=tpe", "hydra/launcher=joblib", "hydra/launcher=basic"])
def test_a_plugin_of_sweeps_is_refused_without_a_sweep(word: str) -> None:
    """Hydra would ignore it, and start a run of hours."""
    assert refused("budget.hours=1", word) == [f"{word} has no effect on a single run; add -m to start a sweep"]


def test_a_launcher_is_only_for_training() -> None:
    """Jobs of the other commands run in one process, which collects their results."""
    (line,) = refused("-m", "hydra/launcher=joblib", "checkpoint=a,b", "tasks=[blimp]", script="evaluate")
    assert (
        line == "hydra/launcher=joblib is for train.py; the jobs of this command run one after the other; leave it out"
    )


def test_an_unknown_launcher_lists_the_known_ones() -> None:
    (line,) = refused("-m", "budget.hours=1", "hydra/launcher=slrum")
    assert "did you mean slurm?" in line


def test_a_storage_that_the_installed_packages_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.plugins import require_storage

    monkeypatch.setattr("cli.plugins.version", lambda name: "2.0.36")
    with pytest.raises(UserError, match="pip install 'SQLAlchemy<2'"):
        require_storage()
    monkeypatch.setattr("cli.plugins.version", lambda name: "1.4.54")
    require_storage()


# Config groups of the user's own folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name, text in {
        "model/tiny": "n_layer: 2\n",
        "model/bad": "n_layr: 2\n",
        "budget/mine": "hours: 30m\n",
        "experiment/one": "# @package _global_\nmodel: {n_layer: 3}\nbudget: {hours: 30m}\n",
    }.items():
        path = tmp_path / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "own"


def test_own_choices_of_groups_work(own: Path) -> None:
    config = composed("-cd", str(own), "model=tiny", "budget=mine")
    assert (config.model.n_layer, config.budget.hours) == (2, 0.5)
    config = composed("-cd", str(own), "+experiment=one")
    assert (config.model.n_layer, config.budget.hours) == (3, 0.5)


def test_an_unknown_option_in_an_own_file_names_the_file(own: Path) -> None:
    (line,) = refused("-cd", str(own), "model=bad", "budget=mine")
    assert line.startswith("model/bad.yaml: model.n_layr is not an option; did you mean model.n_layer?")
    (line,) = refused("-cd", str(own), "model=tinny", "budget=mine")
    assert "llama, modern, tiny; did you mean tiny?" in line
    (line,) = refused("-cd", str(own), "experiment=one", "budget=mine")
    assert line.endswith("write +experiment=one")


def test_own_choices_are_listed(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tiny" not in group_choices("model")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config-dir={own}"])
    assert config_folders() == (CONF, own)
    assert "experiment" in groups()
    page = help_page("config", "train.py", ["--help"])
    assert "modern | tiny" in page
    assert "+experiment= one" in page


# Prompts


@pytest.mark.parametrize(
    ("word", "prompts"),
    [
        ("prompts=hello", ["hello"]),
        ('prompts=Hello, world! (no) "quotes" and it\'s', ['Hello, world! (no) "quotes" and it\'s']),
        ("prompts=one\\n\\ttwo\\\\n", ["one\n\ttwo\\n"]),
        ('prompts=["def ","The "]', ["def ", "The "]),
        ('prompts="The "', ["The "]),
        ("prompts=", [""]),
        ("prompts=3", ["3"]),
        ("prompts={a: 1}", ["{a: 1}"]),
        ("prompts=ends with \\", ["ends with \\"]),
    ],
)
def test_a_prompt_is_taken_as_it_is_typed(word: str, prompts: list[str]) -> None:
    assert sample.prompts_of(composed("checkpoint=x", word, script="sample")) == prompts


def test_prompts_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\\n\r\n\r\n two \n三\n".encode())
    (tmp_path / "b.jsonl").write_text('{"prompt": "x\\ny", "id": 3}\n\n"z"\n')
    (tmp_path / "c.json").write_text(json.dumps(["p", {"prompt": "q"}]))
    entries = [f"FILE:{tmp_path / name}" for name in ("a.txt", "b.jsonl", "c.json")]
    got = sample.prompts_of(SampleConfig(prompts=[*entries, "last\\t"]))
    assert got == ["one\\n", " two ", "三", "x\ny", "z", "p", "q", "last\t"]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.txt", b"\n \n"[:1], "has no prompt"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.json", b"{}", "JSON object; write a list"),
        ("a.jsonl", b'{"text": 3}\n', "a JSON object without a text"),
        ("a.jsonl", b"[" * 100_000, "nested too deep"),
        ("none.txt", None, "No such file"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, content: bytes | None, part: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=part):
        sample.prompts_of(SampleConfig(prompts=[f"FILE:{tmp_path / name}"]))
