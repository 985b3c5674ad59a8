"""Creates the dashboard of a wandb project: `make dashboard`, or `python -m run.tracking.workspace --project stint`.

The dashboard is a saved view of the project's workspace with the figures of run/tracking/fields.py. All curves are over
budget-hours, which continue across resumes and are comparable between runs. A second call updates the same view. `--json
FILE` writes the view to a file and needs neither an account nor a network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from budget.clock import ACCOUNTS
from common.errors import MachineError, UserError, reported
from common.paths import user_path
from run.tracking.logger import DEFAULT_AXIS, no_account, tear_down, why_not_online

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

VIEW_NAME = "stint: what the budget bought"
VIEW_ID = "stintbudget"  # in the view's address; wandb's own have eleven letters and digits too
MAX_RUNS = 50  # per chart
LEDGER = tuple(f"ledger_s_{account}" for account in ACCOUNTS)
COLUMNS = (
    "run:state", "run:group", "summary:eval_bits_per_byte", "summary:eval_loss", "summary:eval_accuracy",
    "summary:spent_hours", "summary:spent_tokens", "summary:throughput_mfu", "summary:off_plan_tokens",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit status 2 without wandb-workspaces or an account, 1 if wandb's server fails."""
    parser = argparse.ArgumentParser(prog="python -m run.tracking.workspace", description=__doc__.split("\n")[0])
    parser.add_argument("--project", default="stint", help="wandb project, as in wandb.project")
    parser.add_argument("--entity", help="wandb team or user (default: your default entity)")
    parser.add_argument(
        "--json", type=user_path, metavar="FILE", help="write the view to FILE instead of saving it on wandb"
    )
    options = parser.parse_args(arguments)
    with reported():
        if options.json:
            view = as_json(build(options.project, options.entity or ""))
            options.json.write_text(json.dumps(view, indent=1) + "\n", encoding="utf-8")
            print(f"view    {options.json}")
        else:
            print(f"view    {publish(options.project, options.entity)}")


def build(project: str, entity: str) -> Workspace:
    """Build the view of a project. Raises UserError if wandb-workspaces is not installed."""
    try:
        from wandb_workspaces import workspaces
    except ImportError as error:
        raise UserError(
            f"wandb-workspaces cannot be imported ({error}); `make dashboard` installs it, or"
            " pip install wandb-workspaces"
        ) from None
    axis = workspaces.SectionPanelSettings(x_axis=DEFAULT_AXIS)  # a section's own default is wandb's step
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=VIEW_NAME,
        sections=[
            workspaces.Section(name=name, panels=panels, is_open=True, panel_settings=axis)
            for name, panels in panels_by_section().items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=DEFAULT_AXIS, max_runs=MAX_RUNS),
        runset_settings=workspaces.RunsetSettings(pinned_columns=list(COLUMNS)),
    )


def panels_by_section() -> dict[str, list[Any]]:
    """The panels of the view by section."""
    from wandb_workspaces.reports import v2

    def curve(title: str, unit: str, *metrics: str) -> v2.LinePlot:
        """A chart over budget-hours with one line per run; several figures are stacked."""
        return v2.LinePlot(
            title=title,
            x=DEFAULT_AXIS,
            y=list(metrics),
            title_x="budget-hours",
            title_y=unit,
            plot_type="stacked-area" if len(metrics) > 1 else "line",
            max_runs_to_show=MAX_RUNS,
        )

    def bars(title: str, unit: str, *metrics: str) -> v2.BarPlot:
        """A bar chart of final figures."""
        return v2.BarPlot(title=title, metrics=list(metrics), title_x=unit, max_runs_to_show=MAX_RUNS)

    def pairs(title: str, planned: str, reached: str) -> v2.ScatterPlot:
        """A scatter plot of actual against planned values, with one point per run."""
        x, y = v2.SummaryMetric(planned), v2.SummaryMetric(reached)
        return v2.ScatterPlot(title=f"{title}: planned (x) and actual (y)", x=x, y=y)

    return {
        "Loss": [
            curve("Validation loss", "nats per token", "val_loss"),
            curve("Training loss", "nats per token", "loss"),
            bars("Loss of the finished model", "nats per token", "eval_loss"),
        ],
        "Bits per byte": [
            curve("Validation bits per byte", "bits per byte", "val_bits_per_byte"),
            bars("Bits per byte of the finished model", "bits per byte", "eval_bits_per_byte"),
        ],
        "Accuracy": [
            curve("Validation accuracy", "share of next tokens", "val_accuracy"),
            bars("Accuracy of the finished model", "share of next tokens", "eval_accuracy"),
        ],
        "Tokens per second": [
            curve("Tokens per second", "tokens/s", "tokens_per_second"),
            bars("Tokens per second of training", "tokens/s", "throughput_tokens_per_second"),
        ],
        "MFU": [
            curve("Model FLOPs utilisation", "share of the peak", "mfu"),
            bars("Model FLOPs utilisation of training", "share of the peak", "throughput_mfu"),
        ],
        "Budget ledger": [
            curve("Where the time has gone so far", "seconds", *LEDGER),
            bars("Where the time went", "seconds", *LEDGER),
            curve("Share of the budget spent", "share", "progress"),
        ],
        "Plan against actual": [
            bars(
                "Deviation from the plan",
                "share of the plan",
                *(f"off_plan_{name}" for name in ("tokens", "tokens_per_second", "loss", "hours")),
            ),
            pairs("Tokens", "plan_predicted_tokens", "spent_tokens"),
            pairs("Tokens per second", "plan_predicted_tokens_per_second", "throughput_tokens_per_second"),
            pairs("Loss (predicted with law=local)", "plan_predicted_loss", "eval_loss"),
            pairs("Hours", "budget_hours", "spent_hours"),
            curve("Tokens so far", "tokens", "tokens"),
        ],
    }


def as_json(view: Workspace) -> dict[str, Any]:
    """The view as it is sent to wandb. wandb-workspaces has no public method for this; its version is pinned."""
    model = view._to_model()
    spec = model.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"entity": model.entity, "project": model.project, "displayName": model.display_name, "spec": spec}


def publish(project: str, entity: str | None) -> str:
    """Save the view on wandb, replacing that of an earlier call, and return its address.

    Raises UserError without an account, and MachineError if the server is unreachable or refuses the view.
    """
    view = build(project, entity or "")
    import wandb

    if missing := no_account(wandb):
        raise UserError(f"{missing}; --json FILE needs no account")
    if reason := why_not_online(wandb):
        raise MachineError(f"{reason}; --json FILE needs no network")
    try:
        view.entity = entity or str(wandb.Api().default_entity)
        replace_earlier(view)
        view.save()
        return str(view.url)
    except Exception as error:  # wandb may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MachineError(
            f"wandb refused the view of {view.entity}/{project}: {reason}; does the project have a run?"
        ) from None
    finally:
        tear_down()


def replace_earlier(view: Workspace) -> None:
    """Give the view the id of the one that an earlier call saved, or a fixed id that a later call will find."""
    from wandb_workspaces.workspaces import Workspace

    try:
        earlier = Workspace.from_url(f"https://wandb.ai/{view.entity}/{view.project}?nw={VIEW_ID}")
        view._internal_name, view._internal_id = earlier._internal_name, earlier._internal_id
    except ValueError:  # not saved yet
        view._internal_name = f"nw-{VIEW_ID}-v"


if __name__ == "__main__":
    main()
