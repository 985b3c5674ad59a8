"""The plan of a run, made once from measured speed, and the reasons why its tokens came out different."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from budget.clock import Limits
from budget.planner import Plan, load_plan
from config import template
from errors import UserError
from json_io import significant, write_json
from model.shape import Shape
from plan import Text, first_request, plan_here, probe_seconds
from run.console import format_count
from run.plan_view import show_plan, show_plan_briefly
from session import Session

if TYPE_CHECKING:
    from data.shards import Corpus
    from run.machine import Machine
    from run.prober import TrialProcess

OTHER_ACCOUNTS = ("setup", "compile", "eval", "checkpoint", "idle")  # of the ledger: what does not train
# Bytes of a parameter, in float32: the weight, its gradient and the one moment that every optimizer keeps; and of a token of
# a batch: two ids of 8 bytes.
LEAST_BYTES, TOKEN_BYTES = 12, 16
TOLERATED = 0.05  # tokens off by less than this are as planned


def saved_plan(session: Session) -> Plan | None:
    """The plan that this run began with, in an earlier process; its copy where it is damaged. Raises UserError where there
    is nothing that can be read: another plan might choose another shape, which no checkpoint of the run would fit."""
    run = session.run
    if not run.plan.exists() and not run.plan_copy.exists():
        return None
    try:
        return load_plan(run.plan)
    except UserError:
        if not run.plan_copy.exists():
            raise
        session.console.warn(f"{run.plan} is lost or damaged; its copy {run.plan_copy} is used")
        return load_plan(run.plan_copy)


def settle_plan(session: Session, corpus: Corpus, machine: Machine, trials: TrialProcess | None) -> Plan:
    """A new plan, from measured speed where time is what is limited."""
    from data.loader import Loader

    limits = session.clock.limits
    overhead_s = 0.0
    if limits.seconds is not None and limits.counts == "all":
        ending = 4.0 + 0.05 * limits.seconds  # evaluations, saving and report, before they were measured
        overhead_s = session.clock.counted_s() + probe_seconds(limits) + min(60.0, ending)
    text = Text(corpus.tokenizer.n_vocab, corpus.tokenizer.name, corpus.train.n_tokens, corpus.fingerprint)
    block_size = first_request(session.config, text, machine, overhead_s).template.block_size
    Loader(corpus.train, block_size, 1, 0)  # is the corpus long enough? Before measuring
    console = session.console
    plan = plan_here(session.config, text, machine, overhead_s, trials, console.say, console.detail)
    if trials is not None:
        trials.close()  # what they hold of the device's memory is free from here on
    require_memory(plan, plan.sized(template(session.config)), machine.free_memory())
    show_plan(plan, console.for_log(), limits)
    show_plan_briefly(plan, console, limits)
    content = significant(plan.to_dict(), 10)
    session.run.checkpoints.mkdir(exist_ok=True)
    for path in (session.run.plan_copy, session.run.plan):
        write_json(path, content, checksummed=True)
    return load_plan(session.run.plan)  # to the last digit what a resumed run will go on with


def require_memory(plan: Plan, shape: Shape, free: int) -> None:
    """Raise UserError where the plan cannot be trained in `free` bytes: the system would end the process without a word."""
    needed = LEAST_BYTES * shape.parameters() + TOKEN_BYTES * plan.batch_tokens
    if needed > free:
        raise UserError(
            f"{plan.n_layer} layers of width {plan.n_embd} with optim.batch_tokens={plan.batch_tokens} take at least"
            f" {needed / 2**30:,.1f} GiB to train and {free / 2**30:,.1f} are free; choose smaller model.* sizes or batches"
            " (null: planned), or another device="
        )


def why_off(
    plan: Plan, spent: dict[str, Any], ledger: dict[str, float], limits: Limits, rates: list[float]
) -> list[str]:
    """In words, why a run limited by time trained on more or fewer tokens than planned; empty within TOLERATED.

    `spent` and `ledger` are result.json's; `rates`: tokens per second on the way, as logged.
    """
    planned = plan.tokens_per_second
    if not planned or plan.hours is None or limits.hours is None or abs(spent["tokens"] / plan.tokens - 1) <= TOLERATED:
        return []
    training_s, planned_s = spent["training_hours"] * 3600, plan.hours * 3600
    rate = median(rates) if rates else spent["tokens"] / max(training_s, 1e-9)
    reasons = []
    if limits.extend_hours:
        reasons.append(f"{limits.extend_hours:g} hours were added to the budget")
    if abs(rate / planned - 1) > TOLERATED / 2:
        how = "measured" if plan.source["tokens_per_second"] == "measured" else "assumed"
        reasons.append(
            f"{format_count(rate)} tokens/s instead of the {format_count(planned)} that were {how} ({rate / planned - 1:+.0%})"
        )
    few = len(rates) // 5
    if few and abs(median(rates[-few:]) / median(rates[:few]) - 1) > TOLERATED:
        first, last = median(rates[:few]), median(rates[-few:])
        reasons.append(
            f"the device went from {format_count(first)} to {format_count(last)} tokens/s ({last / first - 1:+.0%})"
        )
    again_s = training_s - spent["tokens"] / rate
    if again_s > TOLERATED / 2 * planned_s:
        reasons.append(f"{again_s:.1f} s of training were slower than usual, or lost to a kill and done again")
    if limits.counts == "all" and abs(training_s / planned_s - 1) > TOLERATED / 2 and not limits.extend_hours:
        accounts = ", ".join(f"{name} {ledger[name]:.1f} s" for name in OTHER_ACCOUNTS if ledger.get(name, 0.0) >= 0.05)
        reasons.append(f"{accounts}; {limits.hours * 3600 - planned_s:.1f} s were planned for all that is not training")
    return reasons or ["a little more or less of everything"]
