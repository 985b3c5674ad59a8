"""One budgeted run: prepare the corpus, plan, train until the budget is spent, prove what came out.

`fit` is the training loop. `train` reads top to bottom as the stages of a run; typing the same command again resumes it.
torch is imported inside the functions, so that mistakes and --help answer at once.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assemble import build, compile_model, initial_model
from budget.clock import BudgetClock, Heartbeat, read_ledger
from budget.flops import flops_per_token
from command_line import SweepFunctions, as_yaml, launch, leave
from config import Config, identity
from data.prepare import prepare
from errors import FULL_DISK, MachineError, UserError
from finish import finish, keep_time, record, rehearse, rehearse_report
from json_io import finite, mapping, number, read_json
from model.schedule import learning_rate_scale
from plan import check_early, limits_of, spec_of, wants_trials
from recover import Diverged, carry_earlier, go_back, peak_rate, refuse_no_number, resume
from run.console import Console, Progress, Status, format_count, format_seconds
from run.dashboard import Dashboard, open_dashboard, wandb_id
from run.directory import RunDirectory, full_disk, run_name
from run.figures import formatted
from run.headline import headline, knobs
from run.history import read_metrics
from run.memory import out_of_memory
from run.prober import TrialProcess, trial_process
from run.signals import Interrupted, Signals
from run.spikes import LASTING, Spike
from run.watch import SpeedWatch
from session import (
    Session,
    Trainer,
    axes,
    evaluate,
    forward_backward,
    has_numbers,
    save,
    save_due,
    set_status,
    write_report_of,
)
from settle import saved_plan, settle_plan
from sweeps.launching import conclude_sweep, current_sweep, run_job

if TYPE_CHECKING:
    import torch

    from data.shards import Corpus
    from run.machine import Machine

DISK_FAULTS = (*FULL_DISK, errno.EROFS, errno.EIO, errno.ESTALE)
SIGNALLED = 128  # exit statuses beyond are those of signals
REPORTS_AT = (0.1, 0.5)  # of the budget: early, so that what it needs is loaded; then with half of its curves
METRICS_EVERY_STEP = 2000  # beyond that many steps, one line of metrics.jsonl for each 1/2000 of the budget


def main(config: Config) -> None:
    clock = BudgetClock(limits_of(config))
    refuse_several_processes()
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


def refuse_several_processes() -> None:
    """A run is one process on one device; torchrun would only start the same run twice."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: train.py trains on one device; start it without torchrun"
            " (evaluate.py does run on several processes)"
        )


def already_finished(config: Config, run: RunDirectory, console: Console) -> bool:
    """Say so, rather than train a finished run again, unless its hours were extended. Raises MachineError for one that
    diverged, which would only do so again."""
    status = mapping(read_json(run.status))
    if status.get("status") not in ("finished", "diverged"):
        return False
    spent = read_ledger(run.ledger) or mapping(read_json(run.result))
    extended = config.budget.extend_hours > number(spent.get("extended_hours"), 0.0)
    if status["status"] == "finished" and extended:
        return False
    said = f"{run.folder} is {status['status']} already ({status.get('reason')}); fresh=true starts again"
    if status["status"] == "diverged":
        raise MachineError(said)
    console.say(f"{said}, budget.extend_hours=H goes on with H more hours")
    return True


def supervise(session: Session) -> None:
    """Run the stages and leave a true status behind, whatever happens."""
    run = session.run
    heartbeat = Heartbeat(session.clock, run.ledger, session.console.warn)
    try:
        carry_earlier(session)
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
        machine = machine_of(session, trials)
        plan = saved or settle_plan(session, corpus, machine, trials)
    model = initial_model(session, corpus, machine, plan)
    trainer = build(session, corpus, machine, plan, model)
    session.dashboard = dashboard_of(session, trainer)
    resume(session, trainer)
    show_earlier_points(session)
    compile_model(session, trainer)
    rehearse(session, trainer)
    try:
        stopped_by = fit_or_go_back(session, trainer)
        finish(session, trainer, stopped_by)
    except Interrupted as stop:
        with session.signals.deferred():
            if trainer.spike is None or trainer.spike.calm:
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
        session.dashboard.summary(headline(record(session, trainer, "diverged", "diverged", None)))
        write_report_of(session)
        raise
    finally:
        trainer.metrics.close()
        gc.unfreeze()


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


def machine_of(session: Session, trials: TrialProcess | None) -> Machine:
    """The device that the run computes on; its peak is measured when `trials` have done their loading."""
    from run.machine import find_machine

    if trials is not None:
        trials.wait()
    device = session.config.device
    machine = find_machine(device.name, device.threads, device.precision, device.peak_flops)
    session.console.say(
        f"device  {machine.name}, {machine.threads} threads, {machine.precision},"
        f" peak {machine.peak_flops:.3g} FLOP/s ({machine.peak_source})"
    )
    return machine


def dashboard_of(session: Session, trainer: Trainer) -> Dashboard:
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
        config=knobs(asdict(session.config), trainer.plan.to_dict()),
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


# -- the training loop -------------------------------------------------------------------------------------------------


def fit_or_go_back(session: Session, trainer: Trainer) -> str:
    """`fit`; and where the model was lost on the way, once again from its newest checkpoint. Raises Diverged the second
    time."""
    try:
        return fit(session, trainer)
    except Diverged as error:
        go_back(session, trainer, error)
    return fit(session, trainer)


def fit(session: Session, trainer: Trainer) -> str:
    """Train until the budget is spent; returns the limit that was reached.

    Learning rate and evaluations follow `progress`, the share of the budget spent, never the step. The host reads the
    loss of the step before, so that a GPU is never waited for and never more than one step behind.
    """
    from model.optim import set_schedule

    config, clock, state, world = session.config, session.clock, trainer.state, session.world
    schedule, step = config.schedule, trainer.training_step
    late = LateMetrics(session, trainer)
    watch = SpeedWatch(clock.limits.seconds, trainer.machine.look, session.console.warn, trainer.metrics.write)
    clock.steps_ahead = trainer.machine.steps_ahead
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
                rehearse_report(session, trainer)
            if world.broadcast(save_due(session, trainer)) and late.calm():
                save(session, trainer, final=False)
        late.read()
        if not has_numbers(trainer):
            raise Diverged(f"the weights after step {state.step} are no numbers", state.step + 1)
    return tightest


class LateMetrics:
    """Reads the loss of a step once the next one was launched, checks it, and writes it down."""

    def __init__(self, session: Session, trainer: Trainer) -> None:
        self.session, self.trainer = session, trainer
        self.loss: float | None = trainer.state.loss
        self.spike = trainer.spike = Spike(math.log(trainer.corpus.tokenizer.n_vocab), self.loss)
        self._waiting: tuple[Callable[[], list[float]], dict[str, Any]] | None = None
        self._written = -1.0

    def push(self, loss: torch.Tensor, norm: torch.Tensor, learning_rate: float) -> None:
        numbers = self.trainer.machine.later(loss, norm)
        self._waiting = (numbers, {**axes(self.session, self.trainer), "learning_rate": learning_rate})

    def calm(self) -> bool:
        """Whether the loss, the last step's included, is where it should be: two checkpoints are kept, and no more than one
        of them may be of weights that are lost, as those after a step show only in the loss of the next."""
        self.read()
        return self.spike.calm

    def read(self) -> None:
        """Raises Diverged when the model is lost: the rest of the budget would be thrown after it."""
        if self._waiting is None:
            return
        numbers, point = self._waiting
        step, self._waiting = point["step"], None
        self.loss, norm = numbers()
        if finite(self.loss) is None:
            raise Diverged(f"the loss of step {step} is {self.loss}", step)
        if self.spike.lasts(self.loss):
            reason = f"the loss of step {step}, {self.loss:.3g}, has been worse than a guess's for long"
            raise Diverged(reason, step - LASTING + 1)
        self.trainer.state.loss = self.loss
        many = step > METRICS_EVERY_STEP
        if many and point["progress"] - self._written < 1 / METRICS_EVERY_STEP and point["progress"] < 1:
            return
        self._written = point["progress"]
        rate = self.session.clock.tokens_per_second(self.trainer.cost)
        mfu = rate * flops_per_token(self.trainer.shape) / self.trainer.machine.peak_flops
        point |= {"loss": self.loss, "grad_norm": norm, "tokens_per_second": rate, "mfu": mfu}
        self.trainer.metrics.write(point)
        self.session.dashboard.log(point)


def show_progress(session: Session, trainer: Trainer, bar: Progress, loss: float | None) -> None:
    clock, state = session.clock, trainer.state
    # Anew: the steps that were left before this one, at the pace of now, would be wrong where the pace has changed.
    left, _ = clock.steps_left(state.step, state.tokens, state.flops, trainer.cost)
    rate = clock.tokens_per_second(trainer.cost)
    bar.update(
        Status(
            step=state.step,
            steps_left=left,
            progress=clock.progress,
            budget_left_s=clock.seconds_left(),
            eta_s=left * clock.pace.typical + clock.reserve_s,
            loss=loss,
            validation_loss=trainer.validation_loss,
            learning_rate=trainer.optimizer.param_groups[0]["lr"],
            tokens_per_second=rate,
            mfu=rate * flops_per_token(trainer.shape) / trainer.machine.peak_flops,
        )
    )


def interim_evaluation(session: Session, trainer: Trainer) -> None:
    """Score the model on the way; what that takes now says more about the end than the rehearsal did. Raises Diverged where
    its loss is no number."""
    with session.clock.charge("eval"):
        began = session.clock.awake_s()
        figures = evaluate(session, trainer, trainer.interim)
        seconds = session.clock.awake_s() - began
    refuse_no_number(trainer, figures)
    trainer.window_s = expected_s(trainer.window_s, seconds / trainer.interim.n_windows)
    keep_time(session, trainer)
    point = {
        **axes(session, trainer),
        **{f"val_{name}": figures[name] for name in ("loss", "bits_per_byte", "accuracy")},
        "ledger_s": session.clock.accounts(),
    }
    trainer.metrics.write(point)
    session.dashboard.log(point)
    trainer.validation_loss = figures["loss"]
    session.console.detail(
        f"step {trainer.state.step}: validation loss {figures['loss']:.4f}, {formatted(figures['bits_per_byte'], '{:.4f}'.format)}"
        f" bits per byte on {figures['tokens']:,} tokens"
    )


def expected_s(before: float, seconds: float) -> float:
    """What to expect of something that just took so many seconds: no less than that, while a slow spell that is over is
    forgotten by halves, as time kept for it would be lost to training."""
    return max(seconds, (before + seconds) / 2)


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
