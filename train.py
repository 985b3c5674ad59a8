"""One budgeted run: prepare the corpus, plan, train until the budget is spent, prove what came out.

`fit` is the training loop. `train` reads top to bottom as the stages of a run; typing the same command again resumes it.
torch is imported inside the functions, so that mistakes and --help answer at once.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget.clock import BudgetClock, Heartbeat, StepCost, read_ledger
from budget.flops import flops_6nd_per_token, flops_per_token
from budget.planner import Plan
from config import Config, launch, template
from data.prepare import prepare
from data.sources import DataSpec
from errors import MachineError, UserError
from model.schedule import learning_rate_scale
from model.shape import Shape
from plan import limits_of, plan_here, probe_seconds, show
from run.console import Console, Progress, Status, format_count, format_seconds
from run.dashboard import Dashboard, open_dashboard
from run.directory import RunDirectory, run_name
from run.record import SCHEMA, Metrics, environment, finite, read_json, significant, write_json
from run.signals import Interrupted, Signals

if TYPE_CHECKING:
    import torch

    from data.loader import EvalRange, Loader
    from data.shards import Corpus
    from model.gpt import GPT
    from run.checkpoint import TrainingState
    from run.machine import Machine

# Knobs that do not change what is trained, so a run is found again whatever they are.
NOT_IDENTITY = ("output_dir", "fresh", "output", "wandb", "checkpoint", "data.cache_dir", "data.workers", "budget.extend_hours")
METRICS_EVERY_STEP = 2000  # beyond that many steps, one line of metrics.jsonl for each 1/2000 of the budget
EXIT_S = 0.4  # from the last file written to the end of the process
RESERVE_MARGIN = 1.15  # on what the end was measured to take


class Diverged(Exception):
    """The loss is no number any more."""


@dataclass
class Session:
    """What the stages of one run share."""

    config: Config
    run: RunDirectory
    clock: BudgetClock
    signals: Signals
    console: Console
    dashboard: Dashboard = field(default_factory=Dashboard)
    samples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Trainer:
    """Everything the training loop touches."""

    shape: Shape
    plan: Plan
    machine: Machine
    corpus: Corpus
    model: GPT
    optimizer: torch.optim.Optimizer
    loader: Loader
    forward: Any  # the model, compiled or not
    state: TrainingState
    metrics: Metrics
    cost: StepCost
    micro_batch: int
    interim: EvalRange
    final: EvalRange
    save_s: float = 0.0  # what the last checkpoint took
    saved_at: float = 0.0  # on the clock's scale of spent seconds


def main(config: Config) -> None:
    clock = BudgetClock(limits_of(config))
    refuse_several_processes()
    run = RunDirectory(Path(config.output_dir), run_name(config.name, identity(config)), config.fresh)
    console = Console(run.log)
    try:
        if already_finished(config, run, console):
            return
        with Signals() as signals:
            supervise(Session(config, run, clock, signals, console))
    finally:
        run.close()
    if config.output == "json":
        print(json.dumps(read_json(run.result)))


def identity(config: Config) -> dict[str, Any]:
    """The knobs that decide what is trained; their hash names the run's folder."""
    knobs = asdict(config)
    for dotted in NOT_IDENTITY:
        *groups, leaf = dotted.split(".")
        node = knobs
        for group in groups:
            node = node[group]
        del node[leaf]
    if config.data.path is not None:
        knobs["data"]["path"] = str(Path(config.data.path).resolve())
    return knobs


def refuse_several_processes() -> None:
    """A run is one process on one device; torchrun would only start the same run twice."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: train.py trains on one device; start it without torchrun"
            " (evaluate.py does run on several processes)"
        )


def already_finished(config: Config, run: RunDirectory, console: Console) -> bool:
    """Say so, rather than train a finished run again, unless its hours were extended."""
    status, ledger = read_json(run.status), read_ledger(run.ledger)
    if not status or status["status"] not in ("finished", "diverged"):
        return False
    extended = ledger is not None and config.budget.extend_hours > ledger["extended_hours"]
    if status["status"] == "finished" and extended:
        return False
    console.say(
        f"{run.folder} is {status['status']} already ({status['reason']}); fresh=true starts again,"
        " budget.extend_hours=H goes on with H more hours"
    )
    return True


def supervise(session: Session) -> None:
    """Run the stages and leave a true status behind, whatever happens."""
    run, clock = session.run, session.clock
    ledger = read_ledger(run.ledger)
    if ledger is not None:
        clock.carry(ledger["ledger_s"], ledger["clean"])
    heartbeat = Heartbeat(clock, run.ledger, session.console.warn)
    heartbeat.start()
    set_status(session, "running", "")
    try:
        train(session)
    except Interrupted as stop:
        set_status(session, "stopped", stop.name)
        session.console.say(f"stopped by {stop.name}; type the same command to go on with the budget that is left")
        sys.exit(stop.exit_status)
    except Diverged as error:
        set_status(session, "diverged", str(error))
        raise MachineError(f"diverged: {error}; lower optim.learning_rate, then fresh=true") from None
    except UserError as error:
        set_status(session, "failed", str(error))
        if run.created:
            heartbeat.close()
            run.discard()
        raise
    except BaseException as error:
        set_status(session, "failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        session.dashboard.finish()
        if run.folder.exists():
            heartbeat.close()


def set_status(session: Session, status: str, reason: str) -> None:
    try:
        write_json(session.run.status, {"status": status, "reason": reason})
    except OSError as error:
        session.console.warn(f"{session.run.status} cannot be written ({error})")


# -- the stages of a run -----------------------------------------------------------------------------------------------


def train(session: Session) -> None:
    """Prepare, plan, build, resume, rehearse the end, fit, finish."""
    console, run = session.console, session.run
    console.say(f"run     {run.folder}")
    corpus = prepare_corpus(session)
    from run.machine import find_machine

    device = session.config.device
    machine = find_machine(device.name, device.threads, device.precision, device.peak_flops)
    console.say(
        f"device  {machine.name}, {machine.threads} threads, {machine.precision},"
        f" peak {machine.peak_flops:.3g} FLOP/s ({machine.peak_source})"
    )
    trainer = build(session, corpus, machine, settle_plan(session, corpus, machine))
    resume(session, trainer)
    compile_model(session, trainer)
    rehearse(session, trainer)
    try:
        stopped_by = fit(session, trainer)
        finish(session, trainer, stopped_by)
    except Interrupted:
        with session.signals.deferred():
            save(session, trainer, final=False)
        write_report_of(session)
        raise
    except Diverged:
        record(session, trainer, "diverged", "diverged", None)
        write_report_of(session)
        raise
    finally:
        trainer.metrics.close()


def prepare_corpus(session: Session) -> Corpus:
    """Token shards of the corpus: a stage before the budget, timed and reported."""
    from data.shards import open_corpus

    data = session.config.data
    spec = DataSpec(**{**asdict(data), "fallbacks": tuple(data.fallbacks)})
    with session.clock.off_budget():
        prepared = prepare(spec, log=session.console.say)
        corpus = open_corpus(prepared.folder)
    session.console.say(
        f"data    {data.source}, {data.tokenizer}: {format_count(corpus.train.n_tokens)} training and"
        f" {format_count(corpus.val.n_tokens)} validation tokens"
        f" ({'prepared' if prepared.fresh else 'found'} in {format_seconds(session.clock.prepare_s)}, not on the budget)"
    )
    return corpus


def settle_plan(session: Session, corpus: Corpus, machine: Machine) -> Plan:
    """The plan of the run: the one it began with, or a new one from measured speed."""
    saved = read_json(session.run.plan)
    if saved is not None and read_json(session.run.status) is not None and session.clock.earlier_s > 0:
        return Plan.from_dict(saved)
    from dataclasses import replace

    from run.record import write_json

    limits = session.clock.limits
    probe_s = probe_seconds(limits)
    spent = session.clock.counted_s()
    ending = 3.0 + 0.02 * (limits.seconds or 0.0)  # final evaluation, saving and report, before they were measured
    overhead_s = spent + probe_s + min(60.0, ending)
    plan = plan_here(session.config, corpus.tokenizer.n_vocab, machine, overhead_s, probe_s, session.console.say)
    epochs = plan.tokens / corpus.train.n_tokens
    plan = replace(plan, epochs=epochs)
    show(plan, session.console, limits)
    write_json(session.run.plan, significant(plan.to_dict(), 10))
    return plan
