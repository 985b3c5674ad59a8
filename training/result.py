"""result.json and the summary on the console: the outcome of a run, compared with its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from budget.clock import Limits
from budget.flops import flops_6nd_per_token, flops_per_token
from budget.planner.plan import Plan
from common.format import format_count, format_seconds
from common.json_io import significant, write_json
from data.record import corpus_record
from data.shards import validation_text
from run.environment import environment
from run.history import Records, read_metrics
from run.metrics import SCHEMA
from run.report.format_figures import formatted
from training.checkpointing import retry_once
from training.context import Session, Trainer
from training.speed_monitor import slowdowns
from training.start import init_of

SHOWN_SOURCES = 8  # sources of a mix on the console
SAMPLE_WIDTH = 100  # characters of a sample on the console; log.txt and the report hold all of each


def about(trainer: Trainer) -> dict[str, Any]:
    """The part of model.json that describes the training data."""
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
    """Write result.json and return its content. Schema 1: keys may be added, never renamed.

    `figures` are those of the final evaluation, or None. Raises OSError if the disk refuses twice.
    """
    config, clock, state, shape = session.config, session.clock, trainer.state, trainer.shape
    metrics = read_metrics(session.run.folder)
    rate = state.tokens / max(clock.training_s(), 1e-9)
    ledger, device = clock.accounts(), trainer.device
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
        "extended_hours": clock.limits.added.hours,
        "extended": clock.limits.added.to_dict(),
        "progress": clock.progress,
        "learning_rate_last": trainer.optimizer.param_groups[0]["lr"],
        "model": {
            **shape.to_dict(),
            "parameters": shape.parameters(),
            "parameters_law": shape.matmul_parameters(),
        },
        "eval": {"split": "val", **figures} if figures else None,
        "tasks": session.task_figures,
        "throughput": {
            "tokens_per_second": rate,
            "mfu": rate * flops_per_token(shape) / trainer.device.peak_flops,
            "peak_flops": trainer.device.peak_flops,
            "peak_flops_source": trainer.device.peak_source,
            "slow": slowdowns(metrics),
        },
        "plan": {
            **_predicted(trainer.plan),
            "why_off": why_off(trainer.plan, spent, ledger, clock.limits, rates_of(metrics))
            if status == "finished"
            else [],
        },
        "data": {"source": config.data.source, **_corpus_figures(trainer)},
        "init": init_of(session.run),
        "setback": state.setback,
        "standstill_s": clock.standstill_s,
        "samples": session.samples,
        "environment": {
            **environment(device.name, device.torch_version, device.threads),
            "compile_cache": trainer.compile_cache,
        },
    }
    retry_once(lambda: write_json(session.run.result, significant(result, 10)))
    return result


def _predicted(plan: Plan) -> dict[str, Any]:
    """What the plan expected, for the section "plan" of result.json."""
    return {
        "predicted_tokens": plan.tokens,
        "predicted_steps": plan.steps,
        "predicted_tokens_per_second": plan.tokens_per_second,
        "predicted_loss": plan.predicted_loss,
        "predicted_loss_interval": plan.predicted_loss_interval,
        "law": plan.law,
        "optimizer": plan.optimizer,
        "correction": None,  # earlier versions corrected a plan during the run; readers of the file know the key
    }


def _corpus_figures(trainer: Trainer) -> dict[str, Any]:
    """What was trained on, for the section "data" of result.json."""
    corpus = trainer.corpus
    return {
        "fingerprint": corpus.fingerprint,
        "tokenizer": corpus.tokenizer.name,
        "tokenizer_fingerprint": corpus.tokenizer.fingerprint,
        **validation_text(corpus.manifest),
        "train_tokens": corpus.train.n_tokens,
        "epochs": trainer.state.tokens / corpus.train.epoch_tokens,
        **corpus_record(corpus.manifest),
        **mix_figures(trainer),
    }


def mix_figures(trainer: Trainer) -> dict[str, Any]:
    """{"mix": ...} with the figures of each source of a mix: its weight, its size, what was drawn from it; else {}."""
    drawn = trainer.loader.tokens_by_source(trainer.state.step)
    mix = {
        each.name: {
            "weight": each.weight,
            "train_tokens": each.tokens,
            "tokens": tokens,
            "epochs": tokens / each.tokens,
            "fingerprint": each.fingerprint,
        }
        for each, tokens in zip(trainer.corpus.train.mix, drawn, strict=True)
    }
    return {"mix": mix} if mix else {}


def rates_of(metrics: Records) -> list[float]:
    """The logged tokens per second, step by step."""
    return [rate for point in metrics if "event" not in point and (rate := point.get("tokens_per_second"))]


def show_result(session: Session, trainer: Trainer, result: dict[str, Any]) -> None:
    """Print the result beside the plan, and the paths of the files."""
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
    if mix := result["data"].get("mix"):
        console.say(f"by source        {_by_source(mix, figures['by_source'])}")
    for name, score in result["tasks"].items():
        console.say(f"{name:<16} {task_in_words(score)}")
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


def task_in_words(figures: Mapping[str, Any]) -> str:
    """The score of a task, e.g. "61.20 % (95 % interval 59.1 % to 63.3 %, chance 50 %) on 200 of 1,000 items"."""
    percent = "{:.2%}".format
    notes = ["95 % interval {:.2%} to {:.2%}".format(*figures["interval"])] if figures["interval"] else []
    if figures["chance"] is not None:
        notes.append(f"chance {figures['chance']:.2%}")
    noted = f" ({', '.join(notes)})" if notes else ""
    total = f" of {figures['available']:,}" if figures["items"] < figures["available"] else ""
    return f"{formatted(figures['score'], percent)}{noted} on {figures['items']:,}{total} items"


def _by_source(mix: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The sources of a mix, the largest weights first: "web 0.8: 0.25 epochs, loss 3.2100; ..."."""
    largest = sorted(mix, key=lambda name: -mix[name]["weight"])
    parts = [
        f"{name} {mix[name]['weight']:.3g}: {mix[name]['epochs']:.2f} epochs, loss"
        f" {formatted(scores.get(name, {}).get('loss'), '{:.4f}'.format)}"
        for name in largest[:SHOWN_SOURCES]
    ]
    left = len(largest) - len(parts)
    return "; ".join(parts) + (f"; {left} more in the report" if left else "")


def _against(name: str, planned: float, reached: float, form: Callable[[float], str]) -> tuple[str, str, str, str]:
    """A table row: name, planned, reached, difference."""
    return name, form(planned), form(reached), change(planned, reached)


def _shares(ledger_s: Mapping[str, float]) -> str:
    """The accounts with their share of the time, the largest first: "train 161.0 s (89%), setup 9.1 s (5%)"."""
    total_s = sum(ledger_s.values())
    spent = sorted(ledger_s.items(), key=lambda account: -account[1])
    return ", ".join(f"{name} {s:.1f} s ({s / total_s:.0%})" for name, s in spent if s >= 0.05)


def margin(overshoot_s: float) -> str:
    """How the run met its deadline, e.g. ", 2.2 s before the limit"."""
    return f", {abs(overshoot_s):.1f} s {'after' if overshoot_s > 0 else 'before'} the limit"


def change(planned: float, reached: float) -> str:
    """The relative difference, e.g. "+3.1%"."""
    return f"{reached / planned - 1:+.1%}" if planned else "-"


OTHER_ACCOUNTS = ("setup", "compile", "eval", "checkpoint", "idle")  # accounts of the ledger that are not training
TOLERATED = 0.05  # relative difference of tokens that needs no explanation


def why_off(
    plan: Plan, spent: dict[str, Any], ledger: dict[str, float], limits: Limits, rates: list[float]
) -> list[str]:
    """The reasons why a run trained on more or fewer tokens than planned; empty within TOLERATED.

    Without a limit of time, the only reason is budget that was added.

    Args:
        spent: `spent` of result.json.
        ledger: `ledger_s` of result.json, in seconds.
        rates: Tokens per second during the run, as they were logged.
    """
    planned = plan.tokens_per_second
    if abs(spent["tokens"] / plan.tokens - 1) <= TOLERATED:
        return []
    extended = [f"{limits.added} were added to the budget"] if limits.added.to_dict() else []
    if not planned or plan.hours is None or limits.hours is None:
        return extended
    training_s, planned_s = spent["training_hours"] * 3600, plan.hours * 3600
    rate = median(rates) if rates else spent["tokens"] / max(training_s, 1e-9)
    reasons = extended.copy()
    if abs(rate / planned - 1) > TOLERATED / 2:
        how = "measured" if plan.source["tokens_per_second"] == "measured" else "assumed"
        reasons.append(
            f"{format_count(rate)} tokens/s instead of the {format_count(planned)} that were {how}"
            f" ({rate / planned - 1:+.0%})"
        )
    few = len(rates) // 5
    if few and abs(median(rates[-few:]) / median(rates[:few]) - 1) > TOLERATED:
        first, last = median(rates[:few]), median(rates[-few:])
        reasons.append(
            f"the device went from {format_count(first)} to {format_count(last)} tokens/s ({last / first - 1:+.0%})"
        )
    slow_s = training_s - spent["tokens"] / rate
    if slow_s > TOLERATED / 2 * planned_s:
        reasons.append(f"{slow_s:.1f} s of training were slower than usual, or repeated after a killed process")
    if limits.counts == "all" and abs(training_s / planned_s - 1) > TOLERATED / 2 and not limits.added.hours:
        accounts = ", ".join(f"{name} {ledger[name]:.1f} s" for name in OTHER_ACCOUNTS if ledger.get(name, 0.0) >= 0.05)
        reasons.append(f"{accounts}; {limits.hours * 3600 - planned_s:.1f} s were planned for everything but training")
    return reasons or ["several small differences"]
