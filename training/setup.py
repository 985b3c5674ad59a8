"""The stages of a run before training: corpus, device and dashboard."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from common.errors import MachineError
from common.format import format_count, format_seconds
from config import Config
from data.prepare import prepare
from run.directory import RunDirectory
from run.history import final_status, read_metrics
from run.report.console import Console
from run.tracking.fields import wandb_config
from run.tracking.logger import Dashboard, open_dashboard, wandb_id
from training.context import Session, Trainer
from training.plan_run import spec_of
from training.trial_client import TrialProcess

if TYPE_CHECKING:
    from data.shards import Corpus
    from device.device import Device


def already_finished(config: Config, run: RunDirectory, console: Console) -> bool:
    """Say so, rather than train a finished run again, unless its hours were extended. Raises MachineError for one that
    diverged, which would only do so again."""
    status = final_status(run.folder, config.budget.extend_hours)
    if status is None:
        return False
    said = f"{run.folder} is {status['status']} already ({status.get('reason')}); fresh=true starts again"
    if status["status"] == "diverged":
        raise MachineError(said)
    console.say(f"{said}, budget.extend_hours=H goes on with H more hours")
    return True


def prepare_corpus(session: Session) -> Corpus:
    """Token shards of the corpus: a stage before the budget, timed and reported."""
    from data.shards import open_corpus

    data = session.config.data
    with session.clock.off_budget():
        prepared = prepare(spec_of(session.config), log=session.console.say)
        corpus = open_corpus(prepared.folder)
    left_out = ", ".join(f"{n:,} {what}" for what, n in prepared.left_out.items())
    session.console.say(
        f"data    {data.source}, {data.tokenizer}: {format_count(corpus.train.n_tokens)} training and"
        f" {format_count(corpus.val.n_tokens)} validation tokens"
        f" ({'prepared' if prepared.fresh else 'found'} in {format_seconds(session.clock.prepare_s)}, not on the budget"
        f"{f'; documents left out: {left_out}' if left_out else ''})"
    )
    if prepared.cut:
        session.console.say(
            f"data    stopped at data.max_bytes={data.max_bytes:,} of text; data.max_bytes=null takes all of it"
        )
    return corpus


def open_run_device(session: Session, trials: TrialProcess | None) -> Device:
    """The device that the run computes on; its peak is measured when `trials` have done their loading."""
    from device.device import open_device

    if trials is not None:
        trials.wait()
    wanted = session.config.device
    device = open_device(wanted.name, wanted.threads, wanted.precision, wanted.peak_flops)
    session.console.say(
        f"device  {device.name}, {device.threads} threads, {device.precision},"
        f" peak {device.peak_flops:.3g} FLOP/s ({device.peak_source})"
    )
    return device


def open_run_dashboard(session: Session, trainer: Trainer) -> Dashboard:
    """The wandb run of this folder; the same one after a resume."""
    wandb, run = session.config.wandb, session.run
    dashboard = open_dashboard(
        mode=wandb.mode,
        project=wandb.project,
        entity=wandb.entity,
        name=run.folder.name,
        run_id=wandb_id(run.folder),
        group=wandb.group,
        tags=wandb.tags,
        config=wandb_config(asdict(session.config), trainer.plan.to_dict()),
        directory=run.folder,
        timeout_s=wandb.timeout_s,
        warn=session.console.warn,
    )
    dashboard.summary({"status": "running", "reason": ""})
    return dashboard


def show_earlier_points(session: Session) -> None:
    """Bring the dashboard to where the record is: an earlier process may have had none, or no network."""
    for point in read_metrics(session.run.folder):
        if "event" not in point:
            session.dashboard.log(point)
