"""Train a language model within a budget: `python train.py budget.hours=1`. The same command resumes a run.

`train` lists the stages of a run in order, and `fit` is the training loop. The stages are in training/, one file each.
torch is imported inside functions, so that --help and errors in the command line appear at once.
"""

from __future__ import annotations

import sys

from cli.compose import as_yaml
from cli.launch import SweepFunctions, launch, leave
from config import Config
from model.optim.lr_schedule import learning_rate_scale
from sweeps.engine.launching import conclude_sweep, current_sweep, run_job
from training.build import build, initialize_model
from training.checkpointing import save, save_due
from training.compile import compile_model
from training.context import Session, Trainer
from training.divergence import Diverged, peak_learning_rate, require_finite_weights, rollback
from training.evaluation import interim_evaluation
from training.finalize import dry_run_finalize, finish, interim_report, record_early_end
from training.metrics import DeferredMetrics, show_progress
from training.micro_batching import forward_backward
from training.resume import resume
from training.setup import open_run_dashboard, prepare_run
from training.speed_monitor import SpeedMonitor
from training.supervise import supervise

INTERIM_REPORTS = (0.1, 0.5)  # shares of the budget after which report.html is written before the end
SIGNAL_STATUS = 128  # an exit status above this is 128 + the number of a signal


def main(config: Config) -> None:
    """Train one run under supervision: its folder is locked, and status.json is correct however the run ends."""
    supervise(config, as_yaml(config), train)


def train(session: Session) -> None:
    """Run all stages: corpus, device and plan; model; resume; compile; dry run of the end; training loop; end."""
    corpus, device, plan = prepare_run(session)
    model = initialize_model(session, corpus, device, plan)
    trainer = build(session, corpus, device, plan, model)
    session.dashboard = open_run_dashboard(session, trainer)
    resume(session, trainer)
    compile_model(session, trainer)
    dry_run_finalize(session, trainer)
    with record_early_end(session, trainer):
        stopped_by = fit_with_rollback(session, trainer)
        finish(session, trainer, stopped_by)


def fit_with_rollback(session: Session, trainer: Trainer) -> str:
    """Run `fit`. If the model diverges, return to an earlier checkpoint, and train on at half the learning rate.

    This happens once; the second time, Diverged is raised.
    """
    try:
        return fit(session, trainer)
    except Diverged as error:
        rollback(session, trainer, error)
    return fit(session, trainer)


def fit(session: Session, trainer: Trainer) -> str:
    """Train until the budget is spent. Returns the limit that was reached: hours, flops, tokens or steps.

    The learning rate and the evaluations follow `progress`, the share of the budget that is spent (0 to 1), not the
    step number. The loss of a step is read after the next step was launched, so that a GPU never waits for the host.
    train.py runs one process today (supervise.require_one_process). With several processes, every decision is rank 0's
    (`world.broadcast`), or that of the first rank that has one (`world.first`). Raises Diverged, and Interrupted after
    a stopping signal.
    """
    from model.optim.build import set_schedule

    config, clock, state, world = session.config, session.clock, trainer.state, session.world
    schedule, eval_every, step = config.schedule, config.eval.every, trainer.training_step
    metrics = DeferredMetrics(session, trainer)
    speed_monitor = SpeedMonitor(
        clock.limits.seconds, trainer.device.snapshot, session.console.warn, trainer.metrics.write
    )
    clock.steps_ahead = trainer.device.steps_ahead
    # The time between steps is charged to training too; evaluations and checkpoints have their own accounts.
    with session.signals.deferred(), session.console.progress() as bar, clock.charge("train"):
        while True:
            steps_left, limit = world.broadcast(clock.steps_left(state.step, state.tokens, state.flops, trainer.cost))
            if steps_left == 0 or clock.progress >= 1.0:
                break
            if world.first(session.signals.received):
                metrics.read()  # the record includes the loss of the last step
                session.check_signals()

            last_progress, progress = clock.progress, world.broadcast(clock.advance(steps_left))
            scale = learning_rate_scale(progress, schedule.shape, trainer.plan.warmup, schedule.floor, schedule.decay)
            learning_rate = peak_learning_rate(trainer) * scale
            set_schedule(trainer.optimizer, learning_rate, progress)

            with clock.step():
                loss = forward_backward(session, trainer)
                grad_norm = step.clip()
                step.update()
                metrics.read()  # of the previous step: waits until the GPU has finished it
            state.step += 1
            state.tokens += trainer.cost.tokens
            state.flops += trainer.cost.flops
            state.progress = progress
            speed_monitor.after_step(state.step, state.tokens, clock.ledger)
            metrics.push(loss, grad_norm, learning_rate)

            # Evaluate each time progress passes a multiple of eval.every, but not in the last step: `finish` does that.
            if eval_every and int(progress / eval_every) > int(last_progress / eval_every) and steps_left > 1:
                interim_evaluation(session, trainer)
            show_progress(session, trainer, bar, metrics.loss)
            if any(last_progress < share <= progress for share in INTERIM_REPORTS):
                interim_report(session, trainer)
            if world.broadcast(save_due(session, trainer)) and metrics.is_healthy():
                save(session, trainer, final=False)
        metrics.read()
        require_finite_weights(session, trainer)
    return limit


def command() -> None:
    """Run train.py as a command.

    After a run, the process ends without the interpreter's shutdown, which takes up to a second of the budget, or of the
    grace period after a signal.
    """
    status = 0
    try:
        launch(main, "config", SweepFunctions(run_job, conclude_sweep))
    except SystemExit as stop:
        if not isinstance(stop.code, int) or stop.code <= SIGNAL_STATUS:  # a user's error, or Hydra's: no hurry
            raise
        status = stop.code
    if current_sweep():  # the launcher of a sweep may have processes of its own to end
        sys.exit(status)
    leave(status)


# Hydra's completion for fish works for scripts that contain "@hydra.main".
if __name__ == "__main__":
    command()
