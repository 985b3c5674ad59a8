"""The dashboard of a project, as the JSON that wandb gets."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from run.tracking.logger import DEFAULT_AXIS
from run.tracking.workspace import main
from tests.run.tracking.wandb_server import WandbServer, running

CURVE, BARS = "Run History Line Plot", "Bar Chart"  # wandb's names for a panel's kind


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


def panels(section: dict[str, Any]) -> list[tuple[str, set[str]]]:
    """The kind of each panel of a section, and the figures that it draws."""
    found = []
    for panel in section["panels"]:
        config = panel["config"]
        pair = {str(config.get(axis)).removeprefix("summary:") for axis in ("xAxis", "yAxis")}
        found.append((panel["viewType"], set(config.get("metrics", pair))))
    return found


def drawn(view: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The figures that the view draws over the hours, and the final ones in its panels and columns."""
    spec = view["spec"]["section"]
    curves: set[str] = set()
    columns = spec["runSets"][0]["runFeed"]["columnPinned"]
    ends = {name.removeprefix("summary:") for name in columns if name.startswith("summary:")}
    for section in spec["panelBankConfig"]["sections"]:
        for kind, figures in panels(section):
            (curves if kind == CURVE else ends).update(figures)
    return curves, ends


def test_each_section_has_its_curve_and_the_final_figures(tmp_path: Path) -> None:
    """Needs neither a server nor an account."""
    sections = {s["name"]: panels(s) for s in view(tmp_path)["spec"]["section"]["panelBankConfig"]["sections"]}
    ledger = {f"ledger_s_{account}" for account in ("setup", "compile", "data", "train", "eval", "checkpoint", "idle")}
    assert {name: content[0] for name, content in sections.items()} == {
        "Loss": (CURVE, {"val_loss"}),
        "Bits per byte": (CURVE, {"val_bits_per_byte"}),
        "Accuracy": (CURVE, {"val_accuracy"}),
        "Tokens per second": (CURVE, {"tokens_per_second"}),
        "MFU": (CURVE, {"mfu"}),
        "Budget ledger": (CURVE, ledger),
        "Plan against actual": (
            BARS,
            {f"off_plan_{name}" for name in ("tokens", "tokens_per_second", "loss", "hours")},
        ),
    }
    ends = {name: [figures for kind, figures in content if kind == BARS] for name, content in sections.items()}
    assert ends["Loss"] == [{"eval_loss"}]
    assert ends["Budget ledger"] == [ledger]
    planned = [figures for kind, figures in sections["Plan against actual"] if kind == "Scatter Plot"]
    assert {"plan_predicted_tokens", "spent_tokens"} in planned
    assert {"budget_hours", "spent_hours"} in planned


def test_every_curve_is_over_budget_hours(tmp_path: Path) -> None:
    """Holds for the workspace, each section and each line plot. The default of a section would be wandb's step."""
    section = view(tmp_path)["spec"]["section"]
    sections = section["panelBankConfig"]["sections"]
    plots = [panel for entry in sections for panel in entry["panels"] if panel["viewType"] == CURVE]
    axes = [
        section["settings"],
        *(entry["localPanelSettings"] for entry in sections),
        *(plot["config"] for plot in plots),
    ]
    assert {axis["xAxis"] for axis in axes} == {DEFAULT_AXIS} == {"hours"}


def test_a_second_call_updates_the_same_view(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
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
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    return captured.err


def test_without_the_package_the_error_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ImportError("No module named 'wandb_workspaces'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert "pip install wandb-workspaces" in refused(capsys, "--json", str(tmp_path / "view.json"))


def test_without_an_account_the_error_says_how_to_log_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    line = refused(capsys, "--project", "stint")
    assert "`wandb login`" in line
    assert "--json FILE" in line
