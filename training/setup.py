"""The stages of a run before there is a model: corpus, device, plan and dashboard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from budget.extension import EXAMPLES, UNITS, Extension
from budget.planner.plan import Plan
from common.errors import MachineError, UserError
from common.format import format_count, format_seconds
from common.json_io import mapping
from config import Config, DataConfig, extension_of, identity
from data.corpus import load_corpus
from run.directory import RunDirectory
from run.history import extension_of_run, final_status, read_result
from run.report.console import Console
from run.same_options import earlier_run
from run.tracking.fields import wandb_config
from run.tracking.logger import Dashboard, open_dashboard, wandb_id
from training.context import Session, Trainer
from training.corpus_text import spec_of
from training.initial_model import initial_model, with_model
from training.plan_run import check_early, make_run_plan, saved_plan, wants_trials
from training.start import check_same_corpus
from training.task_evaluation import open_run_tasks
from training.trial_client import TrialProcess, trial_process

if TYPE_CHECKING:
    from data.shards import Corpus
    from device.device import Device


def already_finished(config: Config, run: RunDirectory, console: Console) -> bool:
    """Whether the run is finished and its budget was not extended since; if so, print it.

    Raises MachineError for a run that diverged: it would diverge again. Raises UserError if budget.extend adds less than
    was added before, or nothing to the limit at which the run ended.
    """
    wanted, recorded = extension_of(config.budget), extension_of_run(run.folder)
    status = final_status(run.folder, wanted)
    if status is None:
        check_extension(config, run, wanted, recorded)
        return False
    message = f"{run.folder} is {status['status']} already ({status.get('reason')}); fresh=true starts again"
    if status["status"] == "diverged":
        raise MachineError(message)
    limit = limit_reached(config, run)
    more = f"it for N more {limit}"
    if recorded.to_dict():  # the option holds the whole extension, so that the same command can be repeated
        more = f"it if N is more than all {limit} added so far ({recorded.as_options})"
    console.say(f"{message}, budget.extend=N continues {more}")
    return True


def limit_reached(config: Config, run: RunDirectory) -> str:
    """The limit that ended a finished run: hours, flops, tokens or steps; the first one of the run if its result is lost."""
    limits = [unit for unit in UNITS if getattr(config.budget, unit) is not None]
    limit = str(read_result(run.folder).get("stopped_by"))
    return limit if limit in limits else limits[0]


def check_extension(config: Config, run: RunDirectory, wanted: Extension, recorded: Extension) -> None:
    """Raise UserError if an existing run cannot continue with the extension `wanted`, where `recorded` is its present one."""
    if recorded.exceeds(wanted):
        raise UserError(
            f"the budget of {run.folder} was extended by {recorded}; add at least as much to continue:"
            f" {recorded.as_options}"
        )
    if not read_result(run.folder) or not wanted.exceeds(recorded):
        return
    limit = limit_reached(config, run)
    if getattr(wanted, limit) <= getattr(recorded, limit):
        raise UserError(
            f"{run.folder} ended at its limit of {limit}, and {wanted.as_options} adds none;"
            f" add {limit}, e.g. budget.extend={EXAMPLES[limit]}"
        )


def prepare_run(session: Session) -> tuple[Corpus, Device, Plan]:
    """Load the tasks, prepare the corpus, open the device, and make the plan, or read the plan of a resumed run.

    With init=run, the options of the session become those of the initial model. The worker process for trials starts
    first, so that it loads its libraries while the corpus is prepared.
    """
    config, console, world = session.config, session.console, session.world
    console.say(f"run     {session.run.folder}")
    session.tasks = open_run_tasks(session)
    as_typed = config
    session.initial = initial_model(config, session.run)
    session.config = config = with_model(config, session.initial)
    plan = saved_plan(session)
    if plan is None:
        check_early(config, session.initial)
        say_how_it_begins(session, as_typed)
    # Rank 0 measures and plans for all processes.
    needs_trials = plan is None and world.rank == 0 and wants_trials(config, session.clock.limits)
    with trial_process(config.device.name, needs_trials, console.warn) as trials:
        corpus = prepare_corpus(session)
        check_same_corpus(session, corpus)
        device = open_run_device(session, trials)
        plan = plan or make_run_plan(session, corpus, device, trials)
    return corpus, device, plan


def say_how_it_begins(session: Session, config: Config) -> None:
    """Of a new run, print what its budget is, and that it starts from scratch where an earlier run could be continued.

    `config` holds the options as they were typed. Jobs of a sweep, which have a wandb group, print nothing.
    """
    added = session.clock.limits.added
    if added.to_dict():
        session.console.say(f"budget  this run is new: {added} count as part of its budget")
    if config.fresh or not session.run.created or config.init.source != "scratch" or config.wandb.group is not None:
        return
    found = earlier_run(Path(config.output_dir), config.name, identity(config))
    if found is not None:
        session.console.say(
            f"budget  {found.folder} has the same options and {found.as_options}; this is a new run, from scratch. To"
            f" continue that one instead: the same command with {found.as_options} {found.extend}; to start from its"
            f" weights: init=run init.checkpoint={found.folder}"
        )


def prepare_corpus(session: Session) -> Corpus:
    """Prepare the token shards of the corpus, or find them prepared.

    The time is reported, but not charged to the budget.
    """
    data = session.config.data
    with session.clock.off_budget():
        tokenizer = session.initial.tokenizer if session.initial else None
        loaded = load_corpus(spec_of(session.config), session.console.say, tokenizer)
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
    """The corpus in a few words: its source and data set, or the sources of a mix with their weights, the largest first."""
    weights = ", ".join(
        f"{each.name} {each.weight:.3g}" for each in sorted(corpus.train.mix, key=lambda each: -each.weight)
    )
    if weights:
        return f"mix of {weights}"
    repo = mapping(corpus.manifest.get("origin")).get("repo")
    chosen = [value for value in (repo, data.config, data.split if data.split != "train" else None) if value]
    return f"{data.source} ({', '.join(chosen)})" if repo else data.source


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
