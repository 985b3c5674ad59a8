"""eval.tasks and sweep.metric on the command line: what they mean for a run's name, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_values import composed, name_of, refused


def test_tasks_are_part_of_the_name_by_their_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = composed("budget.hours=1")
    names = {
        name_of(composed("budget.hours=1", "eval.tasks=[blimp]", f"task.path={path}"))
        for path in ("pairs", str(tmp_path / "pairs"))
    }
    names |= {name_of(composed("budget.hours=1", f"eval.tasks=['blimp:{tmp_path / 'pairs'}']"))}
    assert len(names) == 1
    assert name_of(plain) not in names
    assert name_of(composed("budget.hours=1", "eval.tasks=null")) == name_of(plain)


def test_a_sweep_may_be_ranked_by_a_task_of_its_runs() -> None:
    tasks = ("eval.tasks=[blimp]", "task.path=pairs")
    assert composed("budget.hours=1", *tasks, "sweep.metric=blimp").sweep.metric == "blimp"
    (line,) = refused("budget.hours=1", *tasks, "sweep.metric=blmp")
    assert "allowed: loss, bits_per_byte, perplexity, accuracy, blimp; did you mean blimp?" in line
    (line,) = refused("budget.hours=1", "sweep.metric=blimp")
    assert "the names of tasks in eval.tasks, which is not set" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task.path=pairs",), "task.path has no effect without eval.tasks"),
        (("eval.tasks={loss: {kind: minimal_pairs, path: pairs}}",), "loss is a metric of every run"),
        (("eval.tasks=[blimpp]",), "did you mean blimp?"),
    ],
)
def test_tasks_that_cannot_be_meant_are_refused(words: tuple[str, ...], said: str) -> None:
    (line,) = refused("budget.hours=1", *words)
    assert said in line
