"""The end of a run: rehearsed before the first step, so that time is kept for it, and done when the budget is spent."""

from __future__ import annotations

from common.errors import UserError
from common.format import format_count, format_seconds
from common.json_io import write_json
from run.environment import git_commit
from run.tracking.fields import wandb_summary
from training.checkpointing import retry_once, save
from training.context import Session, Trainer, set_status, timed, write_report_of
from training.divergence import require_finite_loss
from training.evaluation import SAMPLE_PROMPTS, SAMPLE_TOKENS, evaluate, update_reserve, write_sample
from training.result import about, record, show_result


def dry_run_finalize(session: Session, trainer: Trainer) -> None:
    """Do once, small, what the end of the run will do, and keep that much time for it; a full disk or a broken report
    is found now. Refuses a budget in which not even one step fits."""
    from data.eval_windows import EvalRange

    clock, shape = session.clock, trainer.shape
    git_commit()  # kept from now on: of the code as it is, and its second is not spent at the end
    with session.signals.deferred():
        save(session, trainer, final=False)
    few = EvalRange(trainer.corpus.val, shape.block_size, trainer.micro_batch * shape.block_size)
    with clock.charge("eval"):
        trainer.window_s = timed(clock, lambda: evaluate(session, trainer, few), 2) / few.n_windows
        sample_s = timed(clock, lambda: write_sample(session, trainer, "", tokens=4), 1) / 4
        trainer.report_s = timed(clock, lambda: write_report_of(session), 2)
    limit_s = clock.limits.seconds
    if limit_s is not None:
        shrink_evaluations(session, trainer, limit_s)
    if trainer.interim.n_tokens > trainer.final.n_tokens:
        trainer.interim = trainer.final  # what the curve is measured on is part of what the result is measured on
    trainer.samples_s = sample_s * SAMPLE_TOKENS * len(SAMPLE_PROMPTS)
    update_reserve(session, trainer)
    left, tightest = clock.steps_left(trainer.state.step, trainer.state.tokens, trainer.state.flops, trainer.cost)
    if left == 0 and trainer.state.step == 0:
        raise UserError(too_short(session, trainer, tightest))
    session.console.detail(
        f"ending  {format_seconds(clock.reserve_s)} are kept for the final save, evaluation"
        f" ({format_count(trainer.final.n_tokens)} tokens), samples and report"
    )


def dry_run_report(session: Session, trainer: Trainer) -> None:
    """Write the report meanwhile, for whoever is watching, and keep as much time for the last one as this one took."""
    with session.clock.charge("eval"):
        trainer.report_s = max(trainer.report_s, timed(session.clock, lambda: write_report_of(session), 1))
    update_reserve(session, trainer)


def too_short(session: Session, trainer: Trainer, tightest: str) -> str:
    """The one line for a budget that does not hold a single step."""
    clock = session.clock
    if tightest != "hours":
        value = getattr(session.config.budget, tightest)
        return (
            f"budget.{tightest}={value:g} does not hold one step of {trainer.cost.tokens:,} tokens"
            f" ({trainer.cost.flops:.3g} FLOPs); raise it or lower optim.batch_tokens"
        )
    needed = clock.counted_s() + (clock.reserve_s if clock.limits.counts == "all" else 0.0) + 10 * clock.pace.worst
    return (
        f"budget.hours={session.config.budget.hours:g} ({format_seconds(clock.limits.seconds or 0)}) does not hold one step:"
        f" starting took {format_seconds(clock.counted_s())}, the end needs {format_seconds(clock.reserve_s)};"
        f" give it at least budget.hours={needed / 3600:.2g}"
    )


def shrink_evaluations(session: Session, trainer: Trainer, limit_s: float) -> None:
    """Halve the evaluations until they fit their share of the hours; the record holds the number of tokens scored."""
    from data.eval_windows import EvalRange

    evals, shape, split = session.config.eval, trainer.shape, trainer.corpus.val
    allowed = evals.max_fraction * limit_s / trainer.window_s
    while trainer.final.n_windows > max(1, allowed):
        trainer.final = EvalRange(split, shape.block_size, trainer.final.n_tokens // 2)
    if trainer.final.n_tokens < min(evals.tokens, split.n_tokens - 1):
        session.console.say(
            f"the final evaluation is cut to {trainer.final.n_tokens:,} tokens to stay within"
            f" {evals.max_fraction:.0%} of the hours (eval.max_fraction)"
        )
    times = int(1 / evals.every) if evals.every else 0
    while times and trainer.interim.n_windows > max(1, allowed / times):
        trainer.interim = EvalRange(split, shape.block_size, trainer.interim.n_tokens // 2)


def finish(session: Session, trainer: Trainer, stopped_by: str) -> None:
    """What the reserve was kept for, in the order of what matters most: weights, evaluation, samples, record, report. Raises
    Diverged where the evaluation's loss is no number."""
    from run.directory import full_disk

    run, clock = session.run, session.clock
    with session.signals.deferred():
        save(session, trainer, final=True)
        with clock.charge("checkpoint"):
            try:
                retry_once(lambda: save_model(session, trainer))
            except OSError as error:
                raise full_disk(run.weights, error, f"the checkpoint of step {trainer.state.step}") from None
        with clock.charge("eval"):
            figures = evaluate(session, trainer, trainer.final)
            require_finite_loss(trainer, figures)
            for prompt in SAMPLE_PROMPTS:
                session.samples.append(write_sample(session, trainer, prompt))
                session.signals.check()
    result = record(session, trainer, "finished", stopped_by, figures)
    session.dashboard.summary(wandb_summary(result))
    session.dashboard.finish()
    write_report_of(session)
    set_status(session, "finished", f"the budget of {stopped_by} is spent")
    # once more, with the seconds that the dashboard and the report took
    show_result(session, trainer, record(session, trainer, "finished", stopped_by, figures))


def save_model(session: Session, trainer: Trainer) -> None:
    """The finished weights, read back, and what a reader of them needs. Raises OSError where the disk refuses."""
    from run.checkpoint import save_weights

    run = session.run
    trainer.corpus.tokenizer.save(run.tokenizer)
    digest = save_weights(run.weights, trainer.model)
    content = {"format": 1, "shape": trainer.shape.to_dict(), "sha256": digest, **about(trainer)}
    write_json(run.model, content, checksummed=True)
