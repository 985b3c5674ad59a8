"""One budgeted run: prepare the corpus, plan, train until the budget is spent, prove what came out.

`fit` is the training loop. `train` reads top to bottom as the stages of a run; typing the same command again resumes it.
torch is imported inside the functions, so that mistakes and --help answer at once.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from budget.clock import BudgetClock
from budget.ledger import Heartbeat
from cli.compose import as_yaml
from cli.launch import SweepFunctions, launch, leave
from common.errors import FULL_DISK, MachineError, UserError
from common.json_io import read_json
from common.signals import Interrupted, Signals
from config import Config, identity
from device.memory import out_of_memory
from model.optim.lr_schedule import learning_rate_scale
from run.directory import RunDirectory, full_disk, run_name
from run.report.console import Console
from run.tracking.fields import wandb_summary
from sweeps.engine.launching import conclude_sweep, current_sweep, run_job
from training.build import build, initialize_model
from training.checkpointing import has_finite_weights, save, save_due
from training.compile import compile_model
from training.context import Session, Trainer, set_status, write_report_of
from training.divergence import Diverged, peak_rate, rollback
from training.evaluation import interim_evaluation
from training.finalize import dry_run_finalize, dry_run_report, finish
from training.metrics import DeferredMetrics, show_progress
from training.micro_batching import forward_backward
from training.plan_run import check_early, limits_of, make_run_plan, saved_plan, wants_trials
from training.result import record
from training.resume import restore_spent_budget, resume
from training.setup import already_finished, open_run_dashboard, open_run_device, prepare_corpus, show_earlier_points
from training.speed_monitor import SpeedWatch
from training.trial_client import trial_process

if TYPE_CHECKING:
    pass

DISK_FAULTS = (*FULL_DISK, errno.EROFS, errno.EIO, errno.ESTALE)


SIGNALLED = 128  # exit statuses beyond are those of signals


REPORTS_AT = (0.1, 0.5)  # of the budget: early, so that what it needs is loaded; then with half of its curves


def main(config: Config) -> None:
    clock = BudgetClock(limits_of(config))
    require_one_process()
    run = RunDirectory(Path(config.output_dir), run_name(config.name, identity(config)), config.fresh)
    console = Console(run.log, sys.stderr if config.output == "json" else None)
    try:
        if not already_finished(config, run, console):
            run.config.write_text(as_yaml(config))
            with Signals() as signals:
                supervise(Session(config, run, clock, signals, console))
    except OSError as error:
        if error.errno in DISK_FAULTS:
            raise full_disk(run.folder, error, "every checkpoint that was finished") from None
        raise
    finally:
        run.close()
    if config.output == "json":
        print(json.dumps(read_json(run.result)))


def require_one_process() -> None:
    """A run is one process on one device; torchrun would only start the same run twice."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: train.py trains on one device; start it without torchrun"
            " (evaluate.py does run on several processes)"
        )


def supervise(session: Session) -> None:
    """Run the stages and leave a true status behind, whatever happens."""
    run = session.run
    heartbeat = Heartbeat(session.clock, run.ledger, session.console.warn)
    try:
        restore_spent_budget(session)
        heartbeat.start()
        set_status(session, "running", "")
        train(session)
    except Interrupted as stop:
        set_status(session, "stopped", stop.name)
        session.console.say(f"stopped by {stop.name}; type the same command to go on with the budget that is left")
        sys.exit(stop.exit_status)
    except Diverged as error:
        raise MachineError(f"diverged: {error}; lower optim.learning_rate, then fresh=true") from None
    except UserError as error:
        set_status(session, "failed", str(error))
        if run.created:
            heartbeat.close()
            run.discard()
        raise
    except BaseException as error:
        set_status(session, "failed", f"{type(error).__name__}: {error}")
        if out_of_memory(error):
            raise MachineError(
                f"out of memory ({' '.join(str(error).split())}); kept: every checkpoint; end what else uses the memory, then"
                " type the same command"
            ) from None
        raise
    finally:
        session.dashboard.finish()
        if run.folder.exists():
            heartbeat.close()


# -- the stages of a run -----------------------------------------------------------------------------------------------


def train(session: Session) -> None:
    """Prepare, plan, build, resume, rehearse the end, fit, finish."""
    console, run = session.console, session.run
    console.say(f"run     {run.folder}")
    saved = saved_plan(session)
    if saved is None:
        check_early(session.config)
    # The process for trials loads its libraries while the corpus is prepared and while this one loads its own.
    wanted = saved is None and wants_trials(session.config, session.clock.limits)
    with trial_process(session.config.device.name, wanted, console.warn) as trials:
        corpus = prepare_corpus(session)
        device = open_run_device(session, trials)
        plan = saved or make_run_plan(session, corpus, device, trials)
    model = initialize_model(session, corpus, device, plan)
    trainer = build(session, corpus, device, plan, model)
    session.dashboard = open_run_dashboard(session, trainer)
    resume(session, trainer)
    show_earlier_points(session)
    compile_model(session, trainer)
    dry_run_finalize(session, trainer)
    try:
        stopped_by = fit_with_rollback(session, trainer)
        finish(session, trainer, stopped_by)
    except Interrupted as stop:
        with session.signals.deferred():
            if trainer.spike is None or trainer.spike.is_healthy:
                save(session, trainer, final=False)
            else:
                console.warn(
                    f"no checkpoint at step {trainer.state.step}: its loss is far off; the earlier ones are kept"
                )
            set_status(session, "stopped", stop.name)
            write_report_of(session)
        raise
    except Diverged as error:
        set_status(session, "diverged", str(error))
        session.dashboard.summary(wandb_summary(record(session, trainer, "diverged", "diverged", None)))
        write_report_of(session)
        raise
    finally:
        trainer.metrics.close()
        gc.unfreeze()


# -- the training loop -------------------------------------------------------------------------------------------------


def fit_with_rollback(session: Session, trainer: Trainer) -> str:
    """`fit`; and where the model was lost on the way, once again from its newest checkpoint. Raises Diverged the second
    time."""
    try:
        return fit(session, trainer)
    except Diverged as error:
        rollback(session, trainer, error)
    return fit(session, trainer)


def fit(session: Session, trainer: Trainer) -> str:
    """Train until the budget is spent; returns the limit that was reached.

    Learning rate and evaluations follow `progress`, the share of the budget spent, never the step. The host reads the
    loss of the step before, so that a GPU is never waited for and never more than one step behind.
    """
    from model.optim.build import set_schedule

    config, clock, state, world = session.config, session.clock, trainer.state, session.world
    schedule, step = config.schedule, trainer.training_step
    late = DeferredMetrics(session, trainer)
    watch = SpeedWatch(clock.limits.seconds, trainer.device.snapshot, session.console.warn, trainer.metrics.write)
    clock.steps_ahead = trainer.device.steps_ahead
    # The millisecond or two between steps counts as training too; evaluations and checkpoints charge their own accounts.
    with session.signals.deferred(), session.console.progress() as bar, clock.charge("train"):
        while True:
            left, tightest = world.broadcast(clock.steps_left(state.step, state.tokens, state.flops, trainer.cost))
            if left == 0 or clock.progress >= 1.0:
                break
            if world.first(session.signals.received):
                late.read()  # the last step's loss belongs on the record
                session.signals.check()
            before, progress = clock.progress, world.broadcast(clock.advance(left))
            scale = learning_rate_scale(progress, schedule.shape, trainer.plan.warmup, schedule.floor, schedule.decay)
            learning_rate = peak_rate(trainer) * scale
            set_schedule(trainer.optimizer, learning_rate, progress)
            with clock.step():
                loss = forward_backward(session, trainer)
                norm = step.clip()
                step.update()
                late.read()  # waits for the step before this one
            state.step += 1
            state.tokens += trainer.cost.tokens
            state.flops += trainer.cost.flops
            state.progress = progress
            watch.after_step(state.step, state.tokens, clock.accounts())
            late.push(loss, norm, learning_rate)
            if config.eval.every and int(progress / config.eval.every) > int(before / config.eval.every) and left > 1:
                interim_evaluation(session, trainer)
            show_progress(session, trainer, bar, late.loss)
            if any(before < share <= progress for share in REPORTS_AT):
                dry_run_report(session, trainer)
            if world.broadcast(save_due(session, trainer)) and late.is_healthy():
                save(session, trainer, final=False)
        late.read()
        if not has_finite_weights(trainer):
            raise Diverged(f"the weights after step {state.step} are no numbers", state.step + 1)
    return tightest


def command() -> None:
    """train.py as it is typed. Once a run has ended, taking the interpreter apart would cost up to a second of the budget,
    and of the time that is left after a signal."""
    status = 0
    try:
        launch(main, "config", SweepFunctions(run_job, conclude_sweep))
    except SystemExit as stop:
        if not isinstance(stop.code, int) or stop.code <= SIGNALLED:  # a mistake, or a word of Hydra's: no hurry
            raise
        status = stop.code
    if current_sweep():  # its launcher may have processes of its own to end
        sys.exit(status)
    leave(status)


if __name__ == "__main__":
    command()
