"""The end of a run: a dry run before the first step reserves the time for it, and `finish` does it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.errors import UserError
from common.format import format_count, format_seconds
from common.json_io import write_json
from common.signals import Interrupted
from run.environment import git_commit
from run.tracking.fields import wandb_summary
from training.checkpointing import retry_once, save
from training.context import Session, Trainer, set_status, timed, write_report_of
from training.divergence import Diverged, require_finite_loss
from training.evaluation import SAMPLE_PROMPTS, SAMPLE_TOKENS, closing_s, evaluate, update_reserve, write_sample
from training.result import about, record, show_result
from training.task_evaluation import (
    FINAL,
    INTERIM,
    check_items,
    final_figures,
    measure_tasks,
    record_counts,
    restore_counts,
)

if TYPE_CHECKING:
    from data.eval_windows import EvalRange


def dry_run_finalize(session: Session, trainer: Trainer) -> None:
    """Do the work of the end once, on little data: it measures the time to reserve, and finds a full disk early.

    Raises UserError if the budget is too small for one step.
    """
    from data.eval_windows import CHUNK_TOKENS, EvalRange

    clock, shape = session.clock, trainer.shape
    git_commit()  # cached: the commit of the code that trains, and its second is not spent at the end
    with session.signals.deferred():
        save(session, trainer, final=False)
    # Each chunk of the sample needs at least one window, so this is about one micro-batch of windows at any block size.
    tokens = trainer.micro_batch * min(shape.block_size, CHUNK_TOKENS)
    one_batch = EvalRange(trainer.corpus.val, shape.block_size, tokens, trainer.corpus.tokenizer.eot)
    with clock.charge("eval"):
        window_s = timed(clock, lambda: evaluate(session, trainer, one_batch), 2) / one_batch.n_windows
        sample_token_s = timed(clock, lambda: write_sample(session, trainer, "", tokens=4), 1) / 4
        trainer.report_s = timed(clock, lambda: write_report_of(session), 2)
        restore_counts(session, trainer)
        measure_tasks(session, trainer)
    trainer.window_s = session.world.broadcast(window_s)  # the sizes of the evaluations follow from it
    limit_s = clock.limits.seconds
    if limit_s is not None:
        shrink_evaluations(session, trainer, limit_s)
    if trainer.interim.n_tokens > trainer.final.n_tokens:
        trainer.interim = trainer.final  # the windows of the curve are some of those of the result
    record_counts(session, trainer)
    with clock.charge("eval"):
        for task in trainer.tasks:
            check_items(trainer, task.task, task.chosen(FINAL))
    trainer.samples_s = sample_token_s * SAMPLE_TOKENS * len(SAMPLE_PROMPTS)
    update_reserve(session, trainer)
    state = trainer.state
    steps_left, limit = session.world.broadcast(clock.steps_left(state.step, state.tokens, state.flops, trainer.cost))
    if steps_left == 0 and state.step == 0:
        raise UserError(no_time_for_a_step(session, trainer, limit))
    session.console.detail(
        f"ending  {format_seconds(clock.reserve_s)} are kept for the final save, evaluation"
        f" ({format_count(trainer.final.n_tokens)} tokens), samples and report"
    )


def shrink_evaluations(session: Session, trainer: Trainer, limit_s: float) -> None:
    """Halve the evaluations until each kind takes at most eval.max_fraction of the budget of `limit_s` seconds.

    result.json records the number of tokens that were scored, and the number of items of each task.
    """
    evals, split = session.config.eval, trainer.corpus.val
    allowed_s = evals.max_fraction * limit_s
    trainer.final = shrunk(trainer, trainer.final, FINAL, allowed_s)
    if trainer.final.n_tokens < min(evals.tokens, split.n_tokens - 1):
        session.console.say(
            f"the final evaluation is cut to {trainer.final.n_tokens:,} tokens to stay within"
            f" {evals.max_fraction:.0%} of the hours (eval.max_fraction)"
        )
    evaluations = int(1 / evals.every) if evals.every else 0
    if evaluations:
        trainer.interim = shrunk(trainer, trainer.interim, INTERIM, allowed_s / evaluations)


def shrunk(trainer: Trainer, windows: EvalRange, kind: str, allowed_s: float) -> EvalRange:
    """Halve the most expensive part of an evaluation, its windows or the items of a task, until it takes `allowed_s` seconds.

    At least one window is left and, at the end of a run, one item of each task. Returns the windows.
    """
    from data.eval_windows import EvalRange

    least = 1 if kind == FINAL else 0
    while True:
        loss_s = windows.n_windows * trainer.window_s
        if loss_s + sum(task.seconds(kind) for task in trainer.tasks) <= allowed_s:
            return windows
        tasks = [task for task in trainer.tasks if task.counts[kind] > least and kind not in task.kept]
        largest = max(tasks, key=lambda task: task.seconds(kind), default=None)
        if largest is not None and (largest.seconds(kind) > loss_s or windows.n_windows == 1):
            largest.counts[kind] //= 2
        elif windows.n_windows > 1:
            eot = trainer.corpus.tokenizer.eot
            windows = EvalRange(trainer.corpus.val, trainer.shape.block_size, windows.n_tokens // 2, eot)
        else:
            return windows


def no_time_for_a_step(session: Session, trainer: Trainer, limit: str) -> str:
    """The error message for a budget whose `limit` is too small for one step."""
    clock = session.clock
    if limit != "hours":
        value = getattr(session.config.budget, limit)
        return (
            f"budget.{limit}={value:g} is too small for one step of {trainer.cost.tokens:,} tokens"
            f" ({trainer.cost.flops:.3g} FLOPs); raise it or lower optim.batch_tokens"
        )
    needed_s = clock.counted_s() + (clock.reserve_s if clock.limits.counts == "all" else 0.0) + 10 * clock.pace.worst
    return (
        f"budget.hours={session.config.budget.hours:g} ({format_seconds(clock.limits.seconds or 0)}) is too small for one"
        f" step: starting took {format_seconds(clock.counted_s())}, the end needs {format_seconds(clock.reserve_s)};"
        f" give it at least budget.hours={needed_s / 3600:.2g}"
    )


def interim_report(session: Session, trainer: Trainer) -> None:
    """Write report.html during the run, and reserve as much time for the final one as this one took."""
    with session.clock.charge("eval"):
        trainer.report_s = max(trainer.report_s, timed(session.clock, lambda: write_report_of(session), 1))
    update_reserve(session, trainer)


@contextmanager
def record_early_end(session: Session, trainer: Trainer) -> Iterator[None]:
    """Around training and `finish`: save and report after a stopping signal; record the result of a diverged run."""
    console = session.console
    try:
        yield
    except Interrupted as stop:
        with session.signals.deferred():
            if trainer.spike is None or trainer.spike.is_healthy:
                save(session, trainer, final=False)
            else:
                console.warn(
                    f"no checkpoint at step {trainer.state.step}: its loss is in a spike; earlier checkpoints are kept"
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
        gc.unfreeze()  # frozen by compile_model


def finish(session: Session, trainer: Trainer, stopped_by: str) -> None:
    """Spend the reserve, the most important first: weights, evaluation, samples, result.json, tasks, report.

    `stopped_by` is the limit that `fit` reached. Raises Diverged if the loss of the evaluation, or a log-probability of a task,
    is not finite, and MachineError if the disk refuses the weights.
    """
    from run.directory import full_disk

    run, clock = session.run, session.clock
    with session.signals.deferred():
        save(session, trainer, final=True)
        with clock.charge("checkpoint"):
            try:
                digest = retry_once(lambda: save_model(session, trainer))
            except OSError as error:
                raise full_disk(run.weights, error, f"the checkpoint of step {trainer.state.step}") from None
        with clock.charge("eval"):
            figures = evaluate(session, trainer, trainer.final)
            require_finite_loss(trainer, figures)
            for prompt in SAMPLE_PROMPTS:
                session.samples.append(write_sample(session, trainer, prompt))
                session.check_signals()
            if trainer.tasks:
                record(session, trainer, "finished", stopped_by, figures)  # of use if the tasks are interrupted
                session.task_figures = final_figures(session, trainer, digest, closing_s(session, trainer))
    result = record(session, trainer, "finished", stopped_by, figures)
    session.dashboard.summary(wandb_summary(result))
    session.dashboard.finish()
    write_report_of(session)
    set_status(session, "finished", f"the budget of {stopped_by} is spent")
    # Again, with the seconds that the dashboard and the report took.
    show_result(session, trainer, record(session, trainer, "finished", stopped_by, figures))


def save_model(session: Session, trainer: Trainer) -> str:
    """Write the finished model: tokenizer.json, model.safetensors (read back to verify) and model.json.

    Returns the sha256 of the weights.
    Raises OSError if the disk refuses.
    """
    from run.checkpoint import save_weights

    run = session.run
    trainer.corpus.tokenizer.save(run.tokenizer)
    digest = save_weights(run.weights, trainer.model)
    content = {"format": 1, "shape": trainer.shape.to_dict(), "sha256": digest, **about(trainer)}
    write_json(run.model, content, checksummed=True)
    return digest
