"""Commands and examples about tasks, in docs/benchmarks.md and on other pages, are accepted as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cli.compose import checked_config, register_schemas
from config import CONF
from evals.tasks.competition import LOADERS, read_items
from tests.conftest import ROOT
from tests.docs.commands import checked

PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
PAGES = PAGE + (ROOT / "docs" / "runs.md").read_text() + (ROOT / "README.md").read_text()
COMMANDS = [line for line in re.findall(r"^python .*$", PAGES, re.MULTILINE) if "tasks=" in line]


def test_every_command_of_the_page_is_found() -> None:
    assert sum(command in PAGE for command in COMMANDS) == PAGE.count("\npython ") >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted_as_it_stands(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names and options of its tasks; a sweep is composed job by job, later."""
    register_schemas()
    config, arguments = checked(command, monkeypatch)
    if "-m" not in arguments:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            checked_config(compose(config, arguments))


def test_the_example_of_a_competition_has_an_item_of_each_type(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "items.json").write_text(example)
    rows = read_items(tmp_path / "items.json")
    assert rows == json.loads(example)
    assert [row["task_type"] for row in rows] == list(LOADERS)
