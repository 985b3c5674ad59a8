"""Show what a budget can buy: `python plan.py budget.hours=3 device=a100` plans for a GPU that is not here,
`python plan.py budget.hours=0.05 probe=true` measures this device first, `budget.flops=3.4e18` needs no device at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from budget.clock import Limits
from budget.devices import BY_NAME
from budget.flops import flops_per_token
from budget.laws import LAWS
from budget.planner import Plan, Request, block_size_for, make_plan, overhead_estimate, shortlist
from command_line import launch
from config import Config, template
from errors import UserError
from model.shape import Shape, padded_vocab
from run.console import Console, format_count, format_seconds
from run.record import significant

if TYPE_CHECKING:
    from run.machine import Machine

# Share of a device's peak that small models reach, to find candidates worth measuring; the measurement replaces it.
FIRST_GUESS_MFU = 0.3


def limits_of(config: Config) -> Limits:
    """The budget as the clock and the planner read it."""
    budget = config.budget
    return Limits(
        hours=budget.hours,
        flops=budget.flops,
        tokens=budget.tokens,
        steps=budget.steps,
        counts=budget.counts,
        extend_hours=budget.extend_hours,
    )


def request_for(config: Config, n_vocab: int | None, flops_per_second: float | None, overhead_s: float) -> Request:
    """The planner's request: the user's fixed sizes, and rules for the block size and vocabulary where they are open."""
    limits, model = limits_of(config), config.model
    shape = template(config)
    if model.vocab_size is None:
        if n_vocab is None:
            raise UserError(
                f"the vocabulary of data.tokenizer={config.data.tokenizer} is not known without its file;"
                " set model.vocab_size"
            )
        shape = replace(shape, vocab_size=padded_vocab(n_vocab))
    elif n_vocab is not None and model.vocab_size < n_vocab:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the {n_vocab} tokens of data.tokenizer="
            f"{config.data.tokenizer}; leave it out or raise it"
        )
    if model.block_size is None:
        shape = replace(shape, block_size=block_size_for(_rough_flops(limits, flops_per_second)))
    batch = config.optim.batch_tokens
    if batch is not None and batch % shape.block_size:
        near = max(1, round(batch / shape.block_size)) * shape.block_size
        raise UserError(
            f"optim.batch_tokens={batch} is not a multiple of model.block_size={shape.block_size}; try {near}"
        )
    return Request(
        limits=limits,
        template=shape,
        law=LAWS[config.law],
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_embd=model.n_embd,
        flops_per_second=flops_per_second,
        overhead_s=overhead_s,
        batch_tokens=batch,
        learning_rate=config.optim.learning_rate,
    )


def _rough_flops(limits: Limits, flops_per_second: float | None) -> float:
    """The compute of a budget to within a factor of a few: enough to choose a context length."""
    guesses = [limits.flops] if limits.flops is not None else []
    if limits.seconds is not None and flops_per_second:
        guesses.append(limits.seconds * flops_per_second)
    if limits.tokens is not None:
        guesses.append(6 * limits.tokens**2 / 20)  # 20 tokens per parameter
    return min(guesses, default=0.0)


def measured_plan(
    request: Request, measure: Callable[[Shape, int], tuple[float, int]], say: Callable[[str], None]
) -> Plan:
    """A plan from measured speed: `measure(shape, batch_tokens)` gives the tokens per second and the micro-batch."""
    batch = make_plan(request).batch_tokens
    speeds: dict[Shape, float] = {}
    micro: dict[Shape, int] = {}
    for shape in shortlist(request):
        speeds[shape], micro[shape] = measure(shape, batch)
        say(
            f"measured {shape.n_layer} x {shape.n_embd} ({format_count(shape.parameters())} parameters):"
            f" {format_count(speeds[shape])} tokens/s, {speeds[shape] * flops_per_token(shape):.3g} FLOP/s"
        )
    plan = make_plan(request, speeds, "measured")
    return replace(plan, micro_batch=micro[plan.sized(request.template)])


def show(plan: Plan, console: Console, limits: Limits) -> None:
    """The plan as tables."""
    console.table("Plan", ["", "", "from"], _rows(plan, limits))
    if plan.alternatives:
        columns = ["layers", "width", "parameters", "tokens", "tokens/s", "loss", "why not"]
        rows = [
            (
                row.n_layer,
                row.n_embd,
                format_count(row.parameters),
                format_count(row.tokens),
                format_count(row.tokens_per_second) if row.tokens_per_second else "-",
                f"+{row.worse:.2%}",
                row.reason,
            )
            for row in plan.alternatives
        ]
        console.table("Also considered", columns, rows)
    for note in plan.notes:
        console.say(f"note: {note}")


def _rows(plan: Plan, limits: Limits) -> list[tuple[str, str, str]]:
    given = [
        text
        for value, text in (
            (limits.seconds, f"{format_seconds(limits.seconds or 0)} of wall clock"),
            (limits.flops, f"{limits.flops or 0:.3g} FLOPs"),
            (limits.tokens, f"{format_count(limits.tokens or 0)} tokens"),
            (limits.steps, f"{limits.steps} steps"),
        )
        if value is not None
    ]
    epochs = f" ({plan.epochs:.2f} epochs)" if plan.epochs else ""
    rows = [
        ("budget", ", ".join(given), "given"),
        (
            "law",
            f"{format_count(plan.optimum['parameters'])} parameters, {format_count(plan.optimum['tokens'])} tokens"
            f" for {plan.optimum['flops']:.3g} FLOPs",
            plan.law,
        ),
        ("model", f"{plan.n_layer} layers, width {plan.n_embd}, {plan.n_head} heads", plan.source["size"]),
        ("parameters", f"{format_count(plan.parameters)} ({format_count(plan.parameters_law)} as the law counts)", ""),
        ("context", f"{plan.block_size} tokens, vocabulary {plan.vocab_size}", ""),
        ("training tokens", f"{format_count(plan.tokens)}{epochs}", ""),
        ("compute", f"{plan.flops:.3g} FLOPs ({plan.flops_6nd:.3g} as 6ND)", ""),
        ("batch", f"{plan.batch_tokens:,} tokens, {plan.steps:,} steps", plan.source["batch_tokens"]),
        ("learning rate", f"{plan.learning_rate:g}, beta2 {plan.beta2:g}", plan.source["learning_rate"]),
    ]
    if plan.tokens_per_second and plan.hours is not None:
        mfu = f", MFU {plan.mfu:.0%}" if plan.mfu else ""
        speed = f"{format_count(plan.tokens_per_second)} tokens/s{mfu}, {format_seconds(plan.hours * 3600)} of training"
        rows.append(("speed", speed, plan.source["tokens_per_second"]))
    return rows


def with_mfu(plan: Plan, shape: Shape, peak_flops: float) -> Plan:
    """The plan with the share of the peak that its speed amounts to."""
    if not plan.tokens_per_second:
        return plan
    return replace(plan, mfu=plan.tokens_per_second * flops_per_token(shape) / peak_flops)


def plan_without_device(config: Config, n_vocab: int | None) -> Plan:
    """A plan from the device table, or from FLOPs, tokens or steps alone; imports no torch."""
    device = BY_NAME.get(config.device.name)
    limits = limits_of(config)
    rate = peak = None
    if device is not None:
        peak = config.device.peak_flops or device.peak
        rate = peak * (config.mfu or device.expected_mfu)
    overhead = overhead_estimate(limits.seconds) if limits.seconds is not None else 0.0
    request = request_for(config, n_vocab, rate, overhead)
    plan = make_plan(request, speed_source="mfu" if config.mfu else "table")
    return with_mfu(plan, plan.sized(request.template), peak) if peak else plan


def plan_here(
    config: Config, n_vocab: int, machine: Machine, overhead_s: float, probe_s: float, say: Callable[[str], None]
) -> Plan:
    """A plan from speeds measured on this machine within about `probe_s` seconds (or from mfu= where it is given)."""
    from run.trial import measure_shape

    rate = machine.peak_flops * (config.mfu or FIRST_GUESS_MFU)
    request = request_for(config, n_vocab, rate, overhead_s)
    limited_by_time = request.limits.seconds is not None
    if not limited_by_time and not config.probe:  # then speed decides nothing
        return make_plan(replace(request, flops_per_second=None))
    if config.mfu or config.probe is False:
        plan = make_plan(request, speed_source="mfu" if config.mfu else "assumed")
    else:
        optim, each = config.optim, min(1.0, probe_s / len(shortlist(request)))
        plan = measured_plan(
            request,
            lambda shape, batch: measure_shape(machine, shape, optim.name, batch, optim.micro_batch, each),
            say,
        )
    return with_mfu(plan, plan.sized(request.template), machine.peak_flops)


def probe_seconds(limits: Limits) -> float:
    """How long measuring may take: 2 % of the hours, between 2 and 30 seconds."""
    return 5.0 if limits.seconds is None else min(30.0, max(2.0, 0.02 * limits.seconds))


def main(config: Config) -> None:
    from data.tokenizer import vocab_size_of

    def say(text: str) -> None:  # standard output holds the plan alone
        print(text, file=sys.stderr)

    n_vocab = config.model.vocab_size or vocab_size_of(config.data.tokenizer)
    limits = limits_of(config)
    if config.probe or (limits.seconds is not None and config.device.name not in BY_NAME):
        from run.machine import find_machine

        if n_vocab is None:
            raise UserError(
                f"the vocabulary of data.tokenizer={config.data.tokenizer} is not known; set model.vocab_size"
            )
        device = config.device
        say("measuring this device; for another one name it, e.g. device=a100")
        machine = find_machine(device.name, device.threads, device.precision, device.peak_flops)
        overhead = overhead_estimate(limits.seconds) if limits.seconds is not None else 0.0
        plan = plan_here(config, n_vocab, machine, overhead, probe_seconds(limits), say)
    else:
        plan = plan_without_device(config, n_vocab)
    if config.output == "json":
        print(json.dumps(significant(plan.to_dict()), indent=1))
    else:
        show(plan, Console(), limits)


if __name__ == "__main__":
    launch(main, "config")
