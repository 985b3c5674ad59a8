"""One self-contained HTML page about a run: what was planned, what came out, and where each second went.

    python -m run.report outputs/NAME

The page needs nothing but itself (no script, no font, no picture from elsewhere) and reads the run's own files. A
run that was stopped, killed or diverged has fewer of them; the page then says so and shows what there is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from run import curves, page
from run.console import format_count, format_seconds
from run.figures import difference, hours, percent, scientific, show, with_error
from run.history import (
    Records,
    Run,
    column,
    finite,
    is_number,
    listing,
    mapping,
    median,
    number,
    read_metrics,
    read_run,
)
from run.plan_view import draw as draw_plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCOUNT_COLOURS = {
    "setup": "#8b5cf6",
    "compile": "#ec4899",
    "data": "#eab308",
    "train": "#3b82f6",
    "eval": "#16a34a",
    "checkpoint": "#f97316",
    "idle": "#94a3b8",
}
METRICS = (("loss", "Loss, nats/token", 4), ("perplexity", "Perplexity", 2), ("bits_per_byte", "Bits per byte", 4))
STATUS_WORDS = {
    "finished": "finished",
    "stopped": "stopped early",
    "diverged": "diverged",
    "failed": "failed",
    "running": "not ended",
}


def write_report(folder: Path, records: Records | None = None) -> Path:
    """Write folder/report.html and return its path.

    records: what read_metrics(folder) returns, where the caller has it at hand. The file appears whole or not at
    all. Raises OSError when it cannot be written.
    """
    page = render(read_run(folder, read_metrics(folder) if records is None else records))
    path = folder / "report.html"
    temporary = folder / f".report.html.{os.getpid()}"
    try:
        with temporary.open("w", encoding="utf-8", errors="replace") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def render(run: Run) -> str:
    """The page."""
    sections = (
        _headline(run),
        _plan_and_outcome(run),
        _loss_section(run),
        _schedule_section(run),
        _ledger_section(run),
        _throughput_section(run),
        _source_section(run),
        _alternatives_section(run),
        _samples_section(run),
        _events_section(run),
        _config_section(run),
        _environment_section(run),
    )
    return page.whole(run.name, sections)


# The sections, from top to bottom. Each returns "" where the run has nothing to show.


def _headline(run: Run) -> str:
    evaluation = run.part("eval")
    tiles = [("Status", STATUS_WORDS.get(run.outcome, run.outcome))]
    if run.result.get("stopped_by"):
        tiles.append(("Stopped by", str(run.result["stopped_by"])))
    tiles += [(label, with_error(evaluation, key, digits)) for key, label, digits in METRICS if key in evaluation]
    if "accuracy" in evaluation:
        tiles.append(("Next-token accuracy", with_error(evaluation, "accuracy", 2, percent=True)))
    if not evaluation and run.validation:
        tiles.append(("Last validation loss", with_error(run.validation[-1], "val_loss", 4)))
    boxes = "".join(f"<div><dt>{page.text(label)}</dt><dd>{_tile(value)}</dd></div>" for label, value in tiles)
    kind = run.outcome if run.outcome in STATUS_WORDS else "unknown"
    notes = "".join(f'<p class="note">{page.text(note)}</p>' for note in _remarks(run))
    return f'<header class="{kind}"><h1>{page.text(run.name)}</h1><dl class="tiles">{boxes}</dl>{notes}</header>'


def _tile(value: str) -> str:
    figure, sign, error = value.partition(" ± ")
    return f"{page.text(figure)} <small>± {page.text(error)}</small>" if sign else page.text(value)


def _remarks(run: Run) -> list[str]:
    remarks = []
    reason = run.status.get("reason")
    if reason and run.outcome != "finished":
        remarks.append(f"Reason: {reason}")
    if not run.result:
        remarks.append("There is no result.json: the run was stopped before its final evaluation, or is still going.")
    if run.went_on:
        remarks.append(f"The figures are those of an earlier end; the run went on to step {run.last['step']}.")
    loss = column(run.points, "loss")
    if len(loss) and not np.isfinite(loss).all():
        bad = np.flatnonzero(~np.isfinite(loss))
        step = run.points[int(bad[0])].get("step")
        remarks.append(f"The training loss was not a finite number at {len(bad)} points, first at step {step}.")
    extended = number(run.result.get("extended_hours"), 0)
    if extended:
        remarks.append(f"The budget was extended by {format_seconds(extended * 3600)} after the start.")
    evaluated = run.part("eval")
    if evaluated.get("tokens"):
        split = evaluated.get("split", "validation")
        remarks.append(f"Evaluated on {format_count(number(evaluated['tokens'], 0))} tokens of the split {split}.")
    return remarks


def _plan_and_outcome(run: Run) -> str:
    plan, spent, speed = run.plan, run.part("spent"), run.part("throughput")
    last = run.last
    rows: list[tuple[str, Any, Any, Callable[[float], str]]] = [
        ("Tokens", plan.get("tokens"), spent.get("tokens", last.get("tokens")), format_count),
        ("Steps", plan.get("steps"), spent.get("steps", last.get("step")), format_count),
        ("Time", plan.get("hours"), spent.get("hours", last.get("hours")), hours),
        ("Tokens/s", plan.get("tokens_per_second"), speed.get("tokens_per_second"), format_count),
        ("FLOPs", plan.get("flops"), spent.get("flops", last.get("flops")), scientific),
        ("MFU", plan.get("mfu"), speed.get("mfu"), percent),
        ("Loss", plan.get("predicted_loss"), run.part("eval").get("loss"), lambda value: f"{value:.4f}"),
    ]
    if not speed and run.points:
        rows[3] = ("Tokens/s", plan.get("tokens_per_second"), median(run.points, "tokens_per_second"), format_count)
        rows[5] = ("MFU", plan.get("mfu"), median(run.points, "mfu"), percent)
    if not any(is_number(value) for row in rows for value in row[1:3]):
        return ""
    body = [(label, show(planned, f), show(got, f), difference(planned, got)) for label, planned, got, f in rows]
    table = page.table(("", "Planned", "Reached", "Difference"), body)
    return page.section("Plan and outcome", f"{_shape_line(run)}{table}{_off_plan(run)}{_budget_line(run)}")


def _off_plan(run: Run) -> str:
    """Why the tokens were off plan."""
    lines = [f"Off plan: {reason}." for reason in listing(run.part("plan").get("why_off"))]
    return "".join(f"<p>{page.text(line)}</p>" for line in lines)


def _shape_line(run: Run) -> str:
    shape = run.part("model") or run.plan
    if "n_layer" not in shape:
        return ""
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    parts = [f"{name} {shape[name]}" for name in names if name in shape]
    if is_number(shape.get("parameters")):
        parts.insert(0, f"{format_count(shape['parameters'])} parameters")
    if is_number(shape.get("parameters_law")):
        parts.insert(1, f"{format_count(shape['parameters_law'])} as scaling laws count them")
    return f"<p>{page.text('Model: ' + ', '.join(parts) + '.' + _law_line(run.plan))}</p>"


def _law_line(plan: Mapping[str, Any]) -> str:
    best = mapping(plan.get("optimum"))
    sizes = [f"{format_count(best[key])} {key}" for key in ("parameters", "tokens") if is_number(best.get(key))]
    optimum = f", whose own optimum is {' and '.join(sizes)}" if sizes else ""
    return f" Law: {plan['law']}{optimum}." if plan.get("law") else ""


def _budget_line(run: Run) -> str:
    budget, spent = run.part("budget"), run.part("spent")
    limits = [f"{key} {value:g}" for key, value in budget.items() if is_number(value) and value]
    parts = [f"Budget: {', '.join(limits)}"] if limits else []
    if budget.get("counts"):
        parts.append(f"counting {budget['counts']}")
    if is_number(spent.get("overshoot_s")):
        over = spent["overshoot_s"]
        parts.append(f"{format_seconds(abs(over))} {'past the limit' if over > 0 else 'left over'}")
    if is_number(spent.get("training_hours")):
        parts.append(f"{hours(spent['training_hours'])} of it training")
    if is_number(spent.get("flops_6nd")):
        parts.append(f"{scientific(spent['flops_6nd'])} FLOPs by 6ND")
    if is_number(run.result.get("prepare_s")):
        parts.append(f"{format_seconds(run.result['prepare_s'])} of data preparation before the clock")
    return f"<p>{page.text('; '.join(parts))}.</p>" if parts else ""


def _loss_section(run: Run) -> str:
    if not run.points and not run.validation:
        return page.section("Loss", "<p>No training point was logged.</p>")
    pictures = [
        curves.picture(
            "Loss against tokens", "tokens", lambda axes: _draw_loss(axes, run, "tokens"), curves.axis(format_count)
        ),
        curves.picture(
            "Loss against budget time", "time spent", lambda axes: _draw_loss(axes, run, "hours"), curves.time_axis
        ),
    ]
    return page.section("Loss", page.gallery(pictures))


def _draw_loss(axes: Axes, run: Run, key: str) -> None:
    x, loss = finite(column(run.points, key), column(run.points, "loss"))
    if len(x):
        axes.plot(*curves.thin(x, loss), color=curves.BLUE, alpha=0.3, linewidth=0.8)
        axes.plot(*curves.thin(x, curves.smooth(loss)), color=curves.BLUE, linewidth=1.6, label="training, smoothed")
    val_x, val = finite(column(run.validation, key), column(run.validation, "val_loss"))
    if len(val_x):
        style = {"marker": "o", "markersize": 3.5} if len(val_x) <= 100 else {}
        axes.plot(*curves.thin(val_x, val), color=curves.ORANGE, linewidth=1.2, label="validation", **style)  # type: ignore[arg-type]
    if len(x) or len(val_x):
        axes.legend()
        axes.set_ylim(*_loss_limits(np.concatenate([loss, val])))
    axes.set_ylabel("nats/token")


def _loss_limits(values: np.ndarray) -> tuple[float, float]:
    # One spike to 1e9 must not flatten the rest: nothing above twice the first losses is of interest.
    low = float(values.min())
    high = min(float(values.max()), 2 * float(np.median(values[:10])))
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _schedule_section(run: Run) -> str:
    rate = column(run.points, "learning_rate")
    if not np.isfinite(rate).any():
        return ""

    def draw(key: str) -> Callable[[Axes], None]:
        def on(axes: Axes) -> None:
            axes.plot(*curves.thin(*finite(column(run.points, key), rate)), color=curves.GREEN, linewidth=1.6)
            axes.set_ylim(0, 1.08 * float(np.nanmax(rate)) or 1)

        return on

    pictures = [
        curves.picture(
            "Learning rate against progress", "share of the budget spent", draw("progress"), curves.axis(percent)
        ),
        curves.picture("Learning rate against step", "step", draw("step"), curves.axis(format_count)),
    ]
    return page.section("Schedule that was run", page.gallery(pictures))


def _ledger_section(run: Run) -> str:
    total = sum(run.ledger.values())
    if not total:
        return ""
    bar: list[str] = []
    rows: list[tuple[str, str, str]] = []
    for account, seconds in run.ledger.items():
        colour = ACCOUNT_COLOURS.get(account, "#64748b")
        share = seconds / total
        label = page.text(f"{account}: {format_seconds(seconds)}, {share:.1%}")
        bar.append(f'<span style="width:{share:.4%};background:{colour}" title="{label}"></span>')
        name = f'<i class="key" style="background:{colour}"></i>{page.text(account)}'
        rows.append((page.Html(name), format_seconds(seconds), f"{share:.1%}"))
    rows.append(("total", format_seconds(total), "100 %"))
    table = page.table(("Account", "Time", "Share"), rows)
    return page.section("Where each second went", f'<div class="bar" role="img">{"".join(bar)}</div>{table}')


def _throughput_section(run: Run) -> str:
    hours, rate = finite(column(run.points, "hours"), column(run.points, "tokens_per_second"))
    if not len(hours):
        return ""

    def draw(axes: Axes) -> None:
        axes.plot(*curves.thin(hours, rate), color=curves.BLUE, alpha=0.3, linewidth=0.8)
        axes.plot(*curves.thin(hours, curves.smooth(rate)), color=curves.BLUE, linewidth=1.6)
        axes.set_ylim(0, 1.15 * float(np.percentile(rate, 99)) or 1)
        axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
        axes.set_ylabel("tokens/s")

    speed, peak = run.part("throughput"), ""
    if is_number(speed.get("peak_flops")):
        source = speed.get("peak_flops_source", "unknown source")
        sentence = f"Peak of the device: {format_count(speed['peak_flops'])} FLOP/s ({source})."
        peak = f"<p>{page.text(sentence)}</p>"
    picture = curves.picture("Throughput over time", "time spent", draw, curves.time_axis)
    return page.section("Throughput", f"{page.gallery([picture])}{peak}")


def _source_section(run: Run) -> str:
    sources = mapping(run.part("eval").get("by_source"))
    if not sources:
        return ""
    figures = {name: mapping(value) or {"loss": value} for name, value in sources.items()}
    columns = list(dict.fromkeys(key for value in figures.values() for key in value))
    rows = [(name, *(_figure(key, value.get(key)) for key in columns)) for name, value in figures.items()]
    return page.section("Evaluation by source", page.table(("Source", *(_title(c) for c in columns)), rows))


def _alternatives_section(run: Run) -> str:
    alternatives = [a for a in listing(run.plan.get("alternatives")) if isinstance(a, dict)]
    if not alternatives:
        return ""
    rows = [_alternative({**run.plan, "reason": "chosen"}), *map(_alternative, alternatives)]
    heads = ("Layers", "Heads", "Width", "Parameters", "Tokens", "Tokens/s", "Loss", "Why")
    source = mapping(run.plan.get("source"))
    basis = "; ".join(f"{key}: {_value(value)}" for key, value in source.items())
    notes = [f"The plan rests on: {basis}."] * bool(basis) + [str(note) for note in listing(run.plan.get("notes"))]
    below = "".join(f'<p class="note">{page.text(note)}</p>' for note in notes)
    if run.plan.get("curve"):
        title = "Expected loss against size for this budget"
        picture = curves.picture(title, "parameters", lambda axes: draw_plan(axes, run.plan), lambda _: None)
        below = page.gallery([picture]) + below
    return page.section("Alternatives of the plan", page.table(heads, rows, "shapes") + below)


def _alternative(shape: Mapping[str, Any]) -> tuple[str, ...]:
    counts = ("n_layer", "n_head", "n_embd", "parameters", "tokens", "tokens_per_second")
    worse = f"+{shape['worse']:.2%}" if is_number(shape.get("worse")) else "–"
    return (*(show(shape.get(key), format_count) for key in counts), worse, str(shape.get("reason", "")))


def _samples_section(run: Run) -> str:
    samples = [s for s in listing(run.result.get("samples")) if isinstance(s, dict)]
    quotes = [
        f"<blockquote><b>{page.text(s.get('prompt', ''))}</b>{page.text(_continuation(s))}</blockquote>"
        for s in samples
    ]
    return page.section("Samples", f"<p>The prompt is bold.</p>{''.join(quotes)}") if quotes else ""


def _continuation(sample: Mapping[str, Any]) -> str:
    text, prompt = str(sample.get("text", "")), str(sample.get("prompt", ""))
    return text.removeprefix(prompt)


def _events_section(run: Run) -> str:
    items = []
    # Every run opens with a resume at step 0; only those that took something back or went on are news.
    for event in run.events[1:] if run.events and run.events[0].get("step") == 0 else run.events:
        said = f"resumed at step {event.get('step')}" if event["event"] == "resume" else event.get("text")
        items.append(f"<li>{page.text(said or json.dumps(event))}</li>")
    return page.section("Events", f"<ul>{''.join(items)}</ul>") if items else ""


def _config_section(run: Run) -> str:
    if not run.config:
        return ""
    return page.section(
        "Config", f"<details><summary>config.yaml</summary><pre>{page.text(run.config)}</pre></details>"
    )


def _environment_section(run: Run) -> str:
    rows = [(key, _value(value)) for part in ("data", "environment") for key, value in run.part(part).items()]
    return page.section("Data and environment", page.table(("", ""), rows, "facts")) if rows else ""


# Figures.


def _figure(key: str, value: Any) -> str:
    if not is_number(value):
        return "–" if value is None else _value(value)
    if key.startswith("accuracy"):
        return f"{value:.2%}"
    return format_count(value) if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def main(arguments: Sequence[str]) -> int:
    """Write the report of each folder named on the command line."""
    folders = [Path(argument) for argument in arguments]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing or not folders:
        for folder in missing:
            print(f"no run in {folder}: there is no such folder", file=sys.stderr)
        print("usage: python -m run.report outputs/NAME [outputs/OTHER ...]", file=sys.stderr)
        return 2
    for folder in folders:
        print(write_report(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
