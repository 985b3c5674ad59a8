"""The end of a run: rehearsed before the first step, so that time is kept for it, and done when the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from budget.flops import flops_6nd_per_token, flops_per_token
from errors import UserError
from json_io import significant, write_json
from recover import refuse_no_number
from run.console import format_count, format_seconds
from run.figures import formatted
from run.headline import headline
from run.history import Records, read_metrics
from run.record import SCHEMA, environment, git_commit
from run.watch import slow_spells
from session import (
    SAMPLE_PROMPTS,
    SAMPLE_TOKENS,
    Session,
    Trainer,
    evaluate,
    insist,
    save,
    set_status,
    timed,
    write_report_of,
    write_sample,
)
from settle import why_off

EXIT_S = 0.3  # from the last file written to the end of the process
RESERVE_MARGIN = 1.15  # on what the end was measured to take
SAMPLE_WIDTH = 100  # characters of a sample on the console; log.txt and the report hold all of each


def rehearse(session: Session, trainer: Trainer) -> None:
    """Do once, small, what the end of the run will do, and keep that much time for it; a full disk or a broken report
    is found now. Refuses a budget in which not even one step fits."""
    from data.loader import EvalRange

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
    keep_time(session, trainer)
    left, tightest = clock.steps_left(trainer.state.step, trainer.state.tokens, trainer.state.flops, trainer.cost)
    if left == 0 and trainer.state.step == 0:
        raise UserError(too_short(session, trainer, tightest))
    session.console.detail(
        f"ending  {format_seconds(clock.reserve_s)} are kept for the final save, evaluation"
        f" ({format_count(trainer.final.n_tokens)} tokens), samples and report"
    )


def keep_time(session: Session, trainer: Trainer) -> None:
    """Set the reserve from what the parts of the end were measured to take."""
    wandb = session.config.wandb
    dashboard_s = wandb.timeout_s if wandb.mode == "online" else 0.0
    evaluation_s = trainer.final.n_windows * trainer.window_s
    ending_s = 3 * trainer.save_s + evaluation_s + trainer.samples_s + trainer.report_s + dashboard_s
    session.clock.reserve_s = RESERVE_MARGIN * ending_s + EXIT_S


def rehearse_report(session: Session, trainer: Trainer) -> None:
    """Write the report meanwhile, for whoever is watching, and keep as much time for the last one as this one took."""
    with session.clock.charge("eval"):
        trainer.report_s = max(trainer.report_s, timed(session.clock, lambda: write_report_of(session), 1))
    keep_time(session, trainer)


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
    from data.loader import EvalRange

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
                insist(lambda: save_model(session, trainer))
            except OSError as error:
                raise full_disk(run.weights, error, f"the checkpoint of step {trainer.state.step}") from None
        with clock.charge("eval"):
            figures = evaluate(session, trainer, trainer.final)
            refuse_no_number(trainer, figures)
            for prompt in SAMPLE_PROMPTS:
                session.samples.append(write_sample(session, trainer, prompt))
                session.signals.check()
    result = record(session, trainer, "finished", stopped_by, figures)
    session.dashboard.summary(headline(result))
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


def about(trainer: Trainer) -> dict[str, Any]:
    """What a reader of the weights needs to know besides their shape."""
    corpus = trainer.corpus
    return {
        "tokenizer": corpus.tokenizer.name,
        "tokenizer_fingerprint": corpus.tokenizer.fingerprint,
        "n_vocab": corpus.tokenizer.n_vocab,
        "data_fingerprint": corpus.fingerprint,
        "steps": trainer.state.step,
        "tokens": trainer.state.tokens,
    }


def record(
    session: Session, trainer: Trainer, status: str, stopped_by: str, figures: dict[str, Any] | None
) -> dict[str, Any]:
    """Write result.json (schema 1: keys may be added, never renamed) and return it."""
    config, clock, state, shape = session.config, session.clock, trainer.state, trainer.shape
    metrics = read_metrics(session.run.folder)
    rate = state.tokens / max(clock.training_s(), 1e-9)
    ledger, machine = clock.accounts(), trainer.machine
    spent = {
        "hours": clock.spent_s() / 3600,
        "training_hours": clock.training_s() / 3600,
        "flops": state.flops,
        "flops_6nd": state.tokens * flops_6nd_per_token(shape),
        "tokens": state.tokens,
        "steps": state.step,
        "overshoot_s": clock.overshoot_s(),
    }
    result = {
        "schema": SCHEMA,
        "status": status,
        "stopped_by": stopped_by,
        "name": session.run.folder.name,
        "budget": asdict(config.budget),
        "spent": spent,
        "ledger_s": ledger,
        "prepare_s": clock.prepare_s,
        "extended_hours": config.budget.extend_hours,
        "progress": clock.progress,
        "learning_rate_last": trainer.optimizer.param_groups[0]["lr"],
        "model": {
            **shape.to_dict(),
            "parameters": shape.parameters(),
            "parameters_law": shape.matmul_parameters(),
        },
        "eval": {"split": "val", **figures} if figures else None,
        "throughput": {
            "tokens_per_second": rate,
            "mfu": rate * flops_per_token(shape) / trainer.machine.peak_flops,
            "peak_flops": trainer.machine.peak_flops,
            "peak_flops_source": trainer.machine.peak_source,
            "slow": slow_spells(metrics),
        },
        "plan": {
            "predicted_tokens": trainer.plan.tokens,
            "predicted_steps": trainer.plan.steps,
            "predicted_tokens_per_second": trainer.plan.tokens_per_second,
            "predicted_loss": trainer.plan.predicted_loss,
            "predicted_loss_interval": trainer.plan.predicted_loss_interval,
            "law": trainer.plan.law,
            "optimizer": trainer.plan.optimizer,
            "correction": None,  # no plan is corrected on the way any more; readers of the file know the key
            "why_off": why_off(trainer.plan, spent, ledger, clock.limits, rates_of(metrics))
            if status == "finished"
            else [],
        },
        "data": {
            "source": config.data.source,
            "fingerprint": trainer.corpus.fingerprint,
            "tokenizer": trainer.corpus.tokenizer.name,
            "train_tokens": trainer.corpus.train.n_tokens,
            "epochs": state.tokens / trainer.corpus.train.n_tokens,
        },
        "setback": state.setback,
        "standstill_s": clock.standstill_s,
        "samples": session.samples,
        "environment": {
            **environment(machine.name, machine.torch_version, machine.threads),
            "compile_cache": trainer.compile_cache,
        },
    }
    insist(lambda: write_json(session.run.result, significant(result, 10)))
    return result


def rates_of(metrics: Records) -> list[float]:
    """Tokens per second of the run's steps, as they were logged."""
    return [rate for point in metrics if "event" not in point and (rate := point.get("tokens_per_second"))]


def show_result(session: Session, trainer: Trainer, result: dict[str, Any]) -> None:
    """The end of the console: what came out, against the plan, and where it lies."""
    console, run, plan, spent = session.console, session.run, trainer.plan, result["spent"]
    figures, over, limit_s = result["eval"], spent["overshoot_s"], session.clock.limits.seconds
    rows = [_against("tokens", plan.tokens, spent["tokens"], format_count)]
    if plan.tokens_per_second:
        rate = result["throughput"]["tokens_per_second"]
        rows.append(_against("tokens/s", plan.tokens_per_second, rate, format_count))
    if plan.predicted_loss is not None:
        rows.append(_against("loss", plan.predicted_loss, figures["loss"], "{:.4f}".format))
    if limit_s is not None:
        rows.append(_against("wall clock", limit_s, spent["hours"] * 3600, format_seconds))
    console.table("Result", ["", "planned", "reached", "difference"], rows, ruled=False)
    if reasons := result["plan"]["why_off"]:
        console.say(f"off plan         {'; '.join(reasons)}")
    error = f" ± {figures['loss_se']:.4f}" if figures["loss_se"] is not None else ""
    console.say(f"validation loss  {figures['loss']:.4f}{error} nats per token on {figures['tokens']:,} tokens")
    console.say(
        f"                 bits per byte {formatted(figures['bits_per_byte'], '{:.4f}'.format)}, perplexity"
        f" {formatted(figures['perplexity'], '{:.2f}'.format)}, accuracy {figures['accuracy']:.2%} of next tokens"
    )
    console.say(f"stopped by       {result['stopped_by']}{'' if over is None else margin(over)}")
    console.say(f"time             {_shares(result['ledger_s'])}")
    samples = [repr(sample["prompt"] + sample["text"]) for sample in session.samples]
    if samples:
        console.say(f"sample           {samples[0][:SAMPLE_WIDTH]}{'...' if len(samples[0]) > SAMPLE_WIDTH else ''}")
    for text in samples:
        console.detail(f"sample in full   {text}")
    console.say(f"report           {run.report}")
    console.say(f"result           {run.result}")
    console.say(f"weights          {run.weights}")


def _against(name: str, planned: float, reached: float, form: Callable[[float], str]) -> tuple[str, str, str, str]:
    """A row of plan against outcome."""
    return name, form(planned), form(reached), change(planned, reached)


def _shares(ledger_s: Mapping[str, float]) -> str:
    """Where the time went, the most first: "train 161.0 s (89 %), setup 9.1 s (5 %)"; less what took no time."""
    total_s = sum(ledger_s.values())
    spent = sorted(ledger_s.items(), key=lambda account: -account[1])
    return ", ".join(f"{name} {s:.1f} s ({s / total_s:.0%})" for name, s in spent if s >= 0.05)


def margin(overshoot_s: float) -> str:
    """How the run met its deadline."""
    return f", {abs(overshoot_s):.1f} s {'after' if overshoot_s > 0 else 'before'} the limit"


def change(planned: float, reached: float) -> str:
    return f"{reached / planned - 1:+.1%}" if planned else "-"
