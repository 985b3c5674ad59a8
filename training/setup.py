"""The stages of a run before there is a model: corpus, device, plan and dashboard."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from budget.planner.plan import Plan
from common.errors import MachineError
from common.format import format_count, format_seconds
from config import Config, DataConfig
from data.corpus import load_corpus
from run.directory import RunDirectory
from run.history import final_status
from run.report.console import Console
from run.tracking.fields import wandb_config
from run.tracking.logger import Dashboard, open_dashboard, wandb_id
from training.context import Session, Trainer
from training.plan_run import check_early, make_run_plan, saved_plan, spec_of, wants_trials
from training.trial_client import TrialProcess, trial_process

if TYPE_CHECKING:
    from data.shards import Corpus
    from device.device import Device


def already_finished(config: Config, run: RunDirectory, console: Console) -> bool:
    """Whether the run is finished and its hours were not extended since; if so, print it.

    Raises MachineError for a run that diverged: it would diverge again.
    """
    status = final_status(run.folder, config.budget.extend_hours)
    if status is None:
        return False
    message = f"{run.folder} is {status['status']} already ({status.get('reason')}); fresh=true starts again"
    if status["status"] == "diverged":
        raise MachineError(message)
    console.say(f"{message}, budget.extend_hours=H continues it for H more hours")
    return True


def prepare_run(session: Session) -> tuple[Corpus, Device, Plan]:
    """Prepare the corpus, open the device, and make the plan, or read the plan of a resumed run.

    The worker process for trials starts first, so that it loads its libraries while the corpus is prepared.
    """
    config, console, world = session.config, session.console, session.world
    console.say(f"run     {session.run.folder}")
    plan = saved_plan(session)
    if plan is None:
        check_early(config)
    # Rank 0 measures and plans for all processes.
    needs_trials = plan is None and world.rank == 0 and wants_trials(config, session.clock.limits)
    with trial_process(config.device.name, needs_trials, console.warn) as trials:
        corpus = prepare_corpus(session)
        device = open_run_device(session, trials)
        plan = plan or make_run_plan(session, corpus, device, trials)
    return corpus, device, plan


def prepare_corpus(session: Session) -> Corpus:
    """Prepare the token shards of the corpus, or find them prepared.

    The time is reported, but not charged to the budget.
    """
    data = session.config.data
    with session.clock.off_budget():
        loaded = load_corpus(spec_of(session.config), session.console.say)
    corpus = loaded.corpus
    session.console.say(
        f"data    {_described(data, corpus)}, {corpus.tokenizer.name}: {format_count(corpus.train.n_tokens)} training and"
        f" {format_count(corpus.val.n_tokens)} validation tokens"
        f" ({'prepared' if loaded.fresh else 'found'} in {format_seconds(session.clock.prepare_s)}, not on the budget)"
    )
    for note in loaded.notes:
        session.console.say(f"data    {note}")
    return corpus


def _described(data: DataConfig, corpus: Corpus) -> str:
    """The corpus in a few words: its source, or the sources of a mix with their weights."""
    weights = ", ".join(f"{each.name} {each.weight:.3g}" for each in corpus.train.mix)
    return f"mix of {weights}" if weights else data.source


def open_run_device(session: Session, trials: TrialProcess | None) -> Device:
    """Open the device that the run computes on.

    Its peak is measured after the trial worker has loaded its libraries.
    """
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
    """Open the wandb run of this folder; a resumed run continues the same one.

    With wandb.mode=disabled, it does nothing.
    """
    wandb, run = session.config.wandb, session.run
    options = asdict(session.config)
    options["data"]["tokenizer"] = trainer.corpus.tokenizer.name  # a short name, also for a file
    dashboard = open_dashboard(
        mode=wandb.mode,
        project=wandb.project,
        entity=wandb.entity,
        name=run.folder.name,
        run_id=wandb_id(run.folder),
        group=wandb.group,
        tags=wandb.tags,
        config=wandb_config(options, trainer.plan.to_dict()),
        directory=run.folder,
        timeout_s=wandb.timeout_s,
        warn=session.console.warn,
    )
    dashboard.summary({"status": "running", "reason": ""})
    return dashboard
