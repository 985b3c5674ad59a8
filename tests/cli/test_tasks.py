"""tasks= of evaluate.py: presets, paths, mappings, the options of tasks, and options without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from cli.compose import checked_config, register_schemas
from cli.help import help_page
from cli.hints import unknown_option
from common.errors import UserError
from config import CONF, Config, EvaluateConfig
from evals.tasks.registry import KINDS
from evals.tasks.task import TaskOptions

PRESETS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))


@pytest.fixture(autouse=True, scope="module")
def schemas() -> None:
    register_schemas()


def composed(*words: str, checkpoint: str = "run", own: Path | None = None) -> EvaluateConfig:
    """The configuration of a command line; `own` is the user's folder, as with -cd."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        if own is not None:
            GlobalHydra.instance().config_loader().get_search_path().append("command-line", f"file://{own}")
        config: EvaluateConfig = checked_config(compose("evaluate", [f"checkpoint={checkpoint}", *words]))
    return config


def tasks_of(*words: str, own: Path | None = None) -> dict[str, Any]:
    tasks: dict[str, Any] = composed(*words, own=own).tasks
    return tasks


def refused(*words: str, own: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        composed(*words, own=own)
    return caught.value.messages


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_options_of_a_known_kind(name: str) -> None:
    (options,) = tasks_of(f"tasks=[{name}]").values()
    assert TaskOptions.of(options).kind in KINDS


def test_ways_to_name_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all" / "blimp").mkdir(parents=True)
    assert tasks_of("tasks=blimp") == tasks_of("tasks=[blimp]")
    assert tasks_of("tasks=[blimp:x/y]")["blimp"]["path"] == "x/y"
    assert tasks_of("tasks=[blimp]", "task.path=all")["blimp"]["path"] == "all/blimp"
    assert tasks_of("tasks=['lm_eval:arc']")["lm_eval:arc"]["kind"] == "lm_eval"
    both = tasks_of("tasks={blimp: {ties: good}, q: {kind: multiple_choice, path: q.jsonl}}", "task.too_long=cut")
    assert both["blimp"]["kind"] == "minimal_pairs"
    assert both["blimp"]["ties"] == "good"
    assert [each["too_long"] for each in both.values()] == ["cut", "cut"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("tasks=[blmp]",), "tasks: 'blmp' is not a task; allowed: "),
        (("tasks=[blmp]",), "did you mean blimp?"),
        (("tasks=[blimp,blimp:x]",), "tasks: blimp is given twice"),
        (("tasks=[blimp,3]",), "tasks: 3 is not the name of a task"),
        (("tasks={blimp: 3}",), "tasks: blimp: 3 is not a mapping"),
        (("tasks={q: {kind: minimal_pair}}",), "tasks: q: kind=minimal_pair is not known; allowed: minimal_pairs"),
        (("tasks={q: {kind: minimal_pairs, tie: good}}",), "q: tie is not an option of tasks; did you mean ties?"),
        (
            ("tasks={q: {kind: minimal_pairs, temperature: 300}}",),
            "q: temperature=300 is out of range; allowed: [0, 100]",
        ),
        (("tasks={q: {kind: minimal_pairs, max_new_tokens: 0}}",), "q: max_new_tokens=0 is out of range"),
        (("tasks={q: {kind: minimal_pairs, max_new_tokens: many}}",), "the options of q are not valid"),
        (("tasks={q: {kind: minimal_pairs, path: ''}}",), "q: path='' is empty"),
        (("tasks=[blimp]", "task.temperature=-1"), "task.temperature=-1 is out of range"),
        (("tasks=[blimp]", "submission=x.json"), "submission=x.json needs a task of the kind competition"),
        (("tasks=[blimp]", "answers=x.json"), "answers=x.json needs a task of the kind competition"),
        (("tasks=[blimp,competition]", "answers=x.json"), "answers=x.json holds no answers to blimp"),
        (("tasks=[competition]", "answers=x", "submission=y"), "submission=y would hold the answers of answers=x"),
        (("tasks=[competition]", "answers=x", "route={a: b}"), "has no effect with answers=x"),
        (("tasks=[blimp]", "route={blimp: 3}"), "route.blimp=3 is not a folder of a run"),
        (("tasks=[blimp]", "tokens=5"), "tokens=5 has no effect without data.path"),
        (("data.path=x", "limit=5"), "limit=5 has no effect without tasks"),
        (("data.path=x", "fraction=0.5"), "fraction=0.5 has no effect without tasks"),
        (("data.path=x", "skip=[a]"), "skip=['a'] has no effect without tasks"),
        (("data.path=x", "baseline=b"), "baseline=b has no effect without tasks"),
        (("data.path=x", "route={a: b}"), "has no effect without tasks"),
        (("data.path=x", "folder=f"), "folder=f has no effect without tasks"),
        (("data.path=x", "task.ties=good"), "task.ties=good has no effect without tasks"),
        (("tasks=[]",), "data.path is missing"),
        ((), "data.path is missing"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], expected: str) -> None:
    (line,) = refused(*words)
    assert expected in line


def test_a_checkpoint_is_needed_unless_answers_are_given() -> None:
    assert composed("tasks=[competition]", "answers=x.json", checkpoint="null").answers == "x.json"
    with pytest.raises(UserError, match="checkpoint is missing"):
        composed("tasks=[blimp]", checkpoint="null")


def test_a_group_of_that_name_is_explained() -> None:
    assert "write tasks=[blimp]" in unknown_option(EvaluateConfig, "task", "blimp")[0]
    assert "write eval.tasks=[blimp]" in unknown_option(Config, "+task", "blimp")[0]


def test_help_lists_the_presets() -> None:
    page = " ".join(help_page("evaluate", "evaluate.py", ["--help"]).split())  # names may be at line ends
    assert all(f" {name} " in page for name in PRESETS)
    assert "data= " not in page
    assert f"eval.tasks= {PRESETS[0]} |" in " ".join(help_page("config", "train.py", ["--help", "task"]).split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ties: good", "mine has no kind"),
        ("kind: minimal_pairs\ntie: good", "mine: tie is not an option of tasks; did you mean ties?"),
        ("kind: minimal_pairs\nseed: -1", "mine: seed=-1 is out of range"),
        ("kind: [", "the preset task/mine.yaml cannot be read"),
        ("kind: ${nowhere}", "the preset task/mine.yaml cannot be read"),
        ("defaults: [blimp]\nkind: minimal_pairs", "the preset task/mine.yaml has a defaults list"),
    ],
)
def test_mistakes_in_presets_of_the_users_own_are_one_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text(text)
    (line,) = refused("tasks=[mine]", own=tmp_path)
    assert expected in line


def test_presets_of_the_users_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("kind: minimal_pairs\nties: good\n")
    tasks = tasks_of("tasks=[mine:x]", own=tmp_path)
    assert tasks == {"mine": {"kind": "minimal_pairs", "ties": "good", "path": "x"}}
