"""Shows a plan: as tables, as a full derivation, and as a chart of expected loss against size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget.clock import Limits
from budget.laws.published import LAWS, Law, effective_tokens
from budget.planner.hyperparameters import (
    MUON_GAIN,
    REPEATS_WITH_DROPOUT,
    WARMUP_RANGE,
    critical_batch,
    largest_batch,
    learning_rates,
    muon_overhead,
    rate_range,
    weight_decay_range,
)
from budget.planner.plan import MAX_EPOCHS, Plan
from budget.planner.planner import NEAR_OPTIMAL, TIE, step_rule
from common.format import format_count, format_number_of, format_seconds
from model.config import Shape
from run.report.console import Console

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The note of a plan that repeats its text more often than was ever measured.
TAKEN_AS_NEW = (
    f"the value of text repeated more than {MAX_EPOCHS:g} times is not known, so the plan takes the text as new"
)
SHOWN_ALTERNATIVES = 7
BRIEF_ALTERNATIVES = 3
BRIEF_NOTES = 2
HIGHEST = 0.12  # top of the chart: 12 % above the best expected loss


def show_plan(plan: Plan, console: Console, limits: Limits) -> None:
    """Print the full plan as tables."""
    console.table("Plan", ["", "", "from"], _rows(plan, limits))
    if plan.alternatives:
        console.table(
            "Alternatives", ["layers", "width", "parameters", "tokens", "tokens/s", "loss", "why not"], _others(plan)
        )
    close = sum(row.worse < TIE for row in plan.alternatives)
    left = close - sum(row.worse < TIE for row in _shown(plan))
    if left > 0:
        console.say(f"{left} more within {TIE:.1%} of the expected loss: see plan.json or output=json")
    for note in plan.notes:
        console.say(f"note: {note}")


def show_plan_briefly(plan: Plan, console: Console, limits: Limits) -> None:
    """Print the plan in about ten lines: budget, model, training tokens, optimizer, speed and alternatives."""
    rows = [(f"  {name}", text) for name, text in _brief_rows(plan, limits)]
    more = len(plan.notes) - BRIEF_NOTES
    notes = f" with {more} more note{'s' if more > 1 else ''}" if more > 0 else ""
    console.table(f"Plan (in full{notes}: plan.json, log.txt)", ["", ""], rows, ruled=False)
    for note in plan.notes[:BRIEF_NOTES]:
        console.say(f"note: {note}")


def _size(plan: Plan) -> str:
    """Layers, width and heads of the planned model."""
    return f"{format_number_of(plan.n_layer, 'layer')}, width {plan.n_embd}, {format_number_of(plan.n_head, 'head')}"


def _brief_rows(plan: Plan, limits: Limits) -> list[tuple[str, str]]:
    epochs = f" ({plan.epochs:.2f} epochs)" if plan.epochs else ""
    table = f" ({format_count(plan.bigram_rows * plan.n_embd)} in the bigram embedding)" if plan.bigram_rows else ""
    rows = [
        ("budget", budget_of(limits)),
        (
            "model",
            f"{_size(plan)}, context {plan.block_size}, vocabulary {plan.vocab_size};"
            f" {format_count(plan.parameters)} parameters{table}",
        ),
        ("training", f"{format_count(plan.tokens)} tokens{epochs}: {plan.steps:,} steps of {plan.batch_tokens:,}"),
        (
            "optimizer",
            f"{plan.optimizer}, learning rate {plan.learning_rate:g}, warm-up {plan.warmup:.1%} of the budget",
        ),
    ]
    if speed := _speed(plan):
        memory = f", {plan.peak_memory / 2**20:,.0f} MiB" if plan.peak_memory is not None else ""
        rows.append(("speed", f"{speed}{memory} ({plan.source['tokens_per_second']})"))
    if loss := _expected_loss(plan):
        rows.append(("expected loss", loss))
    if plan.alternatives:
        rows.append(("alternatives", _brief_alternatives(plan)))
    elif plan.source["tokens_per_second"] == "measured":
        rows.append(("alternatives", "no other shape was measured"))
    return rows


def _brief_alternatives(plan: Plan) -> str:
    """The alternatives with the least expected loss, and how much worse they are."""
    shown = plan.alternatives[:BRIEF_ALTERNATIVES]
    texts = []
    for row in shown:
        rate = f", {format_count(row.tokens_per_second)} tokens/s" if row.tokens_per_second else ""
        texts.append(f"{row.n_layer} x {row.n_embd} (loss +{max(row.worse, 0.0):.2%}{rate})")
    more = len(plan.alternatives) - len(shown)
    return f"{', '.join(texts)}{f' and {more} more' if more else ''} (layers x width)"


def _speed(plan: Plan) -> str | None:
    """Tokens per second, MFU, and the training time that the budget leaves; None if the speed is unknown."""
    if not plan.tokens_per_second or plan.hours is None:
        return None
    mfu = f", MFU {plan.mfu:.0%}" if plan.mfu else ""
    return f"{format_count(plan.tokens_per_second)} tokens/s{mfu}, {format_seconds(plan.hours * 3600)} of training"


def _shown(plan: Plan) -> list[Any]:
    """The best alternatives, and the last two, which are clearly smaller and larger."""
    rows = plan.alternatives
    return rows if len(rows) <= SHOWN_ALTERNATIVES else [*rows[: SHOWN_ALTERNATIVES - 2], *rows[-2:]]


def _others(plan: Plan) -> list[tuple[object, ...]]:
    return [
        (
            row.n_layer,
            row.n_embd,
            format_count(row.parameters),
            format_count(row.tokens),
            format_count(row.tokens_per_second) if row.tokens_per_second else "-",
            f"+{max(row.worse, 0.0):.2%}",
            row.reason,
        )
        for row in _shown(plan)
    ]


def budget_of(limits: Limits) -> str:
    """The limits of a run in words, e.g. "3h00m of wall clock"."""
    given = (
        (limits.seconds, f"{format_seconds(limits.seconds or 0)} of wall clock"),
        (limits.flops, f"{limits.flops or 0:.3g} FLOPs"),
        (limits.tokens, f"{format_count(limits.tokens or 0)} tokens"),
        (limits.steps, f"{limits.steps} steps"),
    )
    return ", ".join(text for value, text in given if value is not None)


def block_in_words(block: dict[str, Any]) -> str:
    """The block of a plan, e.g. "layernorm, gelu, gpt2 initialisation". Features that are off are left out."""
    names = {"initialisation": "{} initialisation", "qk_norm": "query and key norm", "x0_shortcut": "x0 shortcut"}
    return ", ".join(names.get(name, "{}").format(value) for name, value in block.items() if value)


def _rows(plan: Plan, limits: Limits) -> list[tuple[str, str, str]]:
    epochs = f" ({plan.epochs:.2f} epochs)" if plan.epochs else ""
    low, high = map(format_count, plan.bracket)
    smallest, largest = map(format_count, plan.flat)
    flat = "no other size" if plan.flat[0] == plan.flat[1] else f"{smallest} to {largest} as the law counts parameters"
    parameters, (slowest, fastest) = format_count(plan.parameters), plan.learning_rate_spread
    rate = f"{plan.learning_rate:g} (rules give {slowest:.2g} to {fastest:.2g})"
    rows = [
        ("budget", budget_of(limits), "given"),
        (
            "law",
            f"{format_count(plan.optimum['parameters'])} parameters, {format_count(plan.optimum['tokens'])} tokens"
            f" for {plan.optimum['flops']:.3g} FLOPs; all laws {low} to {high}",
            f"{plan.law}, {plan.standing}",
        ),
        ("model", _size(plan), plan.source["size"]),
        ("parameters", f"{parameters} ({format_count(plan.parameters_law)} as the law counts them)", ""),
        ("within 1 %", flat, plan.source["flat"]),
        *([("block", block_in_words(plan.block), plan.source["block"])] if plan.block else []),
        ("context", f"{plan.block_size} tokens, vocabulary {plan.vocab_size}", ""),
        ("training tokens", f"{format_count(plan.tokens)}{epochs}", ""),
        *_corpus_row(plan),
        ("compute", f"{plan.flops:.3g} FLOPs ({plan.flops_6nd:.3g} as 6ND)", ""),
        ("batch", f"{plan.batch_tokens:,} tokens, {plan.steps:,} steps", plan.source["batch_tokens"]),
        ("optimizer", plan.optimizer, plan.source["optimizer"]),
        ("learning rate", rate, plan.source["learning_rate"]),
        ("warm-up", f"{plan.warmup:.1%} of the budget", plan.source["warmup"]),
        ("weight decay", f"{plan.weight_decay:g}", plan.source["weight_decay"]),
        ("beta2", f"{plan.beta2:g}", plan.source["beta2"]),
        ("dropout", f"{plan.dropout:g}", plan.source["dropout"]),
    ]
    if plan.bigram_rows:
        entries = format_count(plan.bigram_rows * plan.n_embd)
        rows.insert(
            7, ("bigram embedding", f"{plan.bigram_rows:,} rows, {entries} of the parameters, no FLOPs", "compute")
        )
    if plan.interval is not None:
        rows.insert(
            2, ("80 % interval", f"{format_count(plan.interval[0])} to {format_count(plan.interval[1])}", plan.law)
        )
    if speed := _speed(plan):
        rows.append(("speed", speed, plan.source["tokens_per_second"]))
    if plan.compiled:
        cost = f"takes {format_seconds(plan.compile_s)}, " if plan.compile_s else ""
        gain = f"{plan.compile_speedup:.2f} times as fast" if plan.compile_speedup else "requested"
        region = ", block by block" if plan.regional else ""
        rows.append(("torch.compile", cost + gain + region, plan.source.get("compile", "expected")))
    if plan.peak_memory is not None:
        memory = f"{plan.peak_memory / 2**20:,.0f} MiB for a step with {plan.micro_batch} sequences per forward pass"
        rows.append(("memory", memory, "measured"))
    if loss := _expected_loss(plan):
        rows.append(("expected loss", loss, plan.law))
    return rows


def _corpus_row(plan: Plan) -> list[tuple[str, str, str]]:
    """The row with the size of the corpus; none for a plan of an earlier version."""
    source = plan.source.get("corpus")
    if source is None:
        return []
    if plan.corpus_tokens is None:
        return [("corpus", "of unknown size", source)]
    about = "about " if source in ("known", "estimate") else ""
    return [("corpus", f"{about}{format_count(plan.corpus_tokens)} training tokens", source)]


def _expected_loss(plan: Plan) -> str | None:
    """The expected loss with its 80 % interval; None if the law has none."""
    if plan.predicted_loss is None or plan.predicted_loss_interval is None:
        return None
    low, high = plan.predicted_loss_interval
    return f"{plan.predicted_loss:.4f} ({low:.4f} to {high:.4f}, 80 %)"


def explain_plan(plan: Plan, shape: Shape, law: Law, limits: Limits) -> list[str]:
    """How each number of the plan is derived, one line each."""
    tokens, parameters, compute = plan.tokens, plan.parameters_law, plan.flops_6nd
    attention = 12 * shape.n_layer * shape.n_embd * shape.block_size
    counted = None if TAKEN_AS_NEW in plan.notes else plan.corpus_tokens
    lines = [
        f"budget: {budget_of(limits)}",
        f"law {law.name} ({law.source}): N = {math.exp(law.intercept):.4g} C^{law.exponent:.4f}, measured from"
        f" {law.measured[0]:.2g} to {law.measured[1]:.2g} FLOPs; at {compute:.3g} it is {plan.standing}",
        "optimal parameters for these FLOPs by law: "
        + ", ".join(f"{name} {format_count(other.parameters(plan.flops))}" for name, other in LAWS.items()),
    ]
    if plan.hours is not None and plan.tokens_per_second:
        lines.append(
            f"tokens: {format_seconds(plan.hours * 3600)} of training x {plan.tokens_per_second:,.0f} tokens/s"
            f" ({plan.source['tokens_per_second']}); the rest of the budget is for set-up, evaluation and saving"
        )
    table = f"{plan.bigram_rows:,} rows" if plan.bigram_rows else "none"
    lines += [
        f"context: {plan.block_size} tokens, bigram embedding: {table}, block: {block_in_words(plan.block)}; given, or"
        " chosen by the compute (budget/planner/hyperparameters.py)",
        f"score: loss ~ C^-slope exp(curvature (ln N / (centre N*))^2) with C = 6 N x effective tokens; slope,"
        f" curvature and centre: {plan.source['flat']}; within {NEAR_OPTIMAL:.0%}:"
        f" {format_count(plan.flat[0])} to {format_count(plan.flat[1])} parameters",
        f"FLOPs per token: 6 x {parameters:,} + 12 x {shape.n_layer} x {shape.n_embd} x {shape.block_size} ="
        f" {6 * parameters + attention:.4g}; times {tokens:,} tokens = {plan.flops:.4g}",
        f"effective tokens: {effective_tokens(tokens, counted) / tokens:.1%} of the tokens count as new"
        f" ({_epochs(plan)}; Muennighoff et al. 2023)",
    ]
    return lines + _explain_rules(plan, shape, limits)


def _epochs(plan: Plan) -> str:
    """How often a plan repeats the text, and whether that has entered its rules."""
    epochs = f"{plan.epochs:.2f} epochs" if plan.epochs else "corpus size unknown"
    return f"{epochs}, taken as new text" if TAKEN_AS_NEW in plan.notes else epochs


def _explain_rules(plan: Plan, shape: Shape, limits: Limits) -> list[str]:
    """How batch size, optimizer and rates are derived; values that the user fixed have no rule."""
    tokens, parameters = plan.tokens, plan.parameters_law
    rates = ", ".join(f"{name} {rate:.2g}" for name, rate in learning_rates(shape, tokens, plan.batch_tokens).items())
    rule = step_rule(limits, plan.optimizer)
    lowest, highest = weight_decay_range(parameters)
    slowest, fastest = rate_range(plan.optimizer, tokens / plan.batch_tokens)
    rules = {
        "batch_tokens": f"Step Law {0.58 * tokens**0.571:,.0f}, DeepSeek {0.2920 * plan.flops_6nd**0.3271:,.0f} tokens; at"
        f" most {largest_batch(tokens, rule):,.0f}, for {rule.steps} steps ({rule.fewest_steps} where"
        f" {rule.small_batch:,} tokens need more) and half the critical batch of {critical_batch(tokens):,.0f} (Zhang et"
        " al. 2024)"
        + (f"; {plan.batch_tokens:,} for full speed (measured)" if plan.source["batch_tokens"] == "saturation" else ""),
        "optimizer": f"Muon adds 5 n / T x the share of the blocks ="
        f" {muon_overhead(shape, plan.batch_tokens):.0%} to a step and"
        f" saves {1 - 1 / MUON_GAIN:.0%} of the tokens (Wen et al. 2025)",
        "learning_rate": f"{rates}; the plan takes Step Law's, limited to {slowest:.2g} to {fastest:.2g}",
        "weight_decay": f"B / (1.084 (D/N)^-0.527 lr D), limited to {lowest:g} to {highest:g} (Power Lines)",
        "warmup": f"N / D = {parameters / tokens:.3f}, limited to {WARMUP_RANGE[0]:g} to {WARMUP_RANGE[1]:g}",
        "beta2": "0.99 below 2^18 tokens per step, else 0.95 (Porian et al. 2024)",
        "dropout": f"0.1 beyond {REPEATS_WITH_DROPOUT:g} epochs; {_epochs(plan)}",
    }
    return [
        f"{name.replace('_', ' ')}: {_plain(getattr(plan, name))}, {'given' if plan.source[name] == 'fixed' else rule}"
        for name, rule in rules.items()
    ]


def _plain(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def draw_plan(axes: Axes, plan: Mapping[str, Any]) -> None:
    """Draw expected loss against size. The near-optimal range and the range of the laws are shaded, the choice is a star."""
    from matplotlib.ticker import LogLocator, NullLocator

    sizes = [size for size, _ in plan["curve"]]
    worse = [100 * value for _, value in plan["curve"]]
    chosen = plan["parameters_law"]
    axes.axvspan(*plan["bracket"], color="#f97316", alpha=0.13, linewidth=0, label="optimal by the laws")
    axes.axvspan(*plan["flat"], color="#16a34a", alpha=0.13, linewidth=0, label=f"within {NEAR_OPTIMAL:.0%}")
    axes.plot(sizes, worse, color="#3b82f6", linewidth=1.4)
    height = dict(plan["curve"]).get(chosen, min(worse) / 100)  # above 0 if the user fixed the size
    rows = [row for row in plan["alternatives"] if row.get("parameters_law")]
    heights = [100 * ((1 + height) * (1 + row["worse"]) - 1) for row in rows]
    axes.scatter([row["parameters_law"] for row in rows], heights, s=12, color="#64748b", zorder=3)
    axes.plot([chosen], [100 * height], marker="*", markersize=13, color="#f97316", linestyle="none", label="chosen")
    inside = [size for size, value in plan["curve"] if value <= HIGHEST] or sizes
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda size, _: format_count(size))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0.8 * min([*inside, plan["bracket"][0]]), 1.25 * max([*inside, plan["bracket"][1]]))
    axes.set_ylim(-0.4, 100 * max(HIGHEST, 1.1 * height))
    axes.set_ylabel("% above the best expected loss")
    axes.legend(loc="upper center", fontsize=8)


def write_picture(plan: Plan, title: str, path: Path) -> None:
    """Write the chart of a plan to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_plan(axes, plan.to_dict())
    axes.set_xlabel("parameters (blocks + one vocabulary matrix)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=130)
