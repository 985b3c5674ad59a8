"""The view of a project: the JSON that wandb gets, and that it draws what runs really log."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from run.dashboard import DEFAULT_AXIS
from run.workspace import COLUMNS, SECTIONS, Curve, Pairs, main
from tests.run.wandb_server import WandbServer, running

GOLDEN = Path(__file__).parent / "workspace.json"
IDS = ("__id__", "id")  # made anew at each call


def without_ids(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_ids(value) for key, value in content.items() if key not in IDS}
    return [without_ids(value) for value in content] if isinstance(content, list) else content


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with running() as (url, server):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        yield server


def view(tmp_path: Path) -> Any:
    main(["--project", "stint", "--entity", "me", "--json", str(tmp_path / "view.json")])
    return json.loads((tmp_path / "view.json").read_text())


def test_the_view_is_the_one_on_file(tmp_path: Path) -> None:
    """Needs neither a server nor an account. After a meant change: copy the JSON over tests/run/workspace.json."""
    assert without_ids(view(tmp_path)) == json.loads(GOLDEN.read_text())


def test_every_curve_is_over_budget_hours(tmp_path: Path) -> None:
    """Read from the JSON: the workspace, each section, each line plot. A section's own default would be wandb's step."""
    section = view(tmp_path)["spec"]["section"]
    assert section["settings"]["xAxis"] == DEFAULT_AXIS == "hours"
    sections = section["panelBankConfig"]["sections"]
    names = ["Loss", "Bits per byte", "Accuracy", "Tokens per second", "MFU", "Budget ledger", "Plan against actual"]
    assert [entry["name"] for entry in sections] == names
    assert {entry["localPanelSettings"]["xAxis"] for entry in sections} == {"hours"}
    plots = [panel for entry in sections for panel in entry["panels"] if panel["viewType"] == "Run History Line Plot"]
    assert len(plots) == sum(isinstance(panel, Curve) for panels in SECTIONS.values() for panel in panels)
    assert {plot["config"]["xAxis"] for plot in plots} == {"hours"}


def drawn() -> tuple[set[str], set[str]]:
    """The figures that the view draws over the hours, and those of a run's end."""
    curves, ends = set(), {name.removeprefix("summary:") for name in COLUMNS if name.startswith("summary:")}
    for panel in (panel for panels in SECTIONS.values() for panel in panels):
        if isinstance(panel, Curve):
            curves |= set(panel.metrics)
        else:
            ends |= {panel.planned, panel.reached} if isinstance(panel, Pairs) else set(panel.metrics)
    return curves, ends


def test_a_second_call_brings_the_same_view_up_to_date(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--project", "stint"])
    assert "/me/stint?nw=stintbudget" in capsys.readouterr().out
    (first,) = server.views.values()
    assert (first["entityName"], first["projectName"], "id" in first["spec"]) == ("me", "stint", True)
    main(["--project", "stint"])
    (second,) = server.views.values()
    assert second["id"] == first["id"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr()
    assert (stop.value.code, told.out, told.err.count("\n")) == (2, "", 1)
    return told.err


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ImportError("No module named 'wandb_workspaces'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert "pip install wandb-workspaces" in refused(capsys, "--json", str(tmp_path / "view.json"))


def test_without_an_account_one_line_says_how_to_log_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    line = refused(capsys, "--project", "stint")
    assert "`wandb login`" in line
    assert "--json FILE" in line
