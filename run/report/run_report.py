"""Writes report.html: the plan of a run, its result, its curves and its time ledger, as one self-contained page.

    python -m run.report.run_report outputs/NAME

The page loads nothing from elsewhere. A run that was stopped or killed lacks some of its files; the page then shows the rest.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budget.extension import recorded_extension
from common.errors import reported
from common.format import format_count, format_seconds
from common.json_io import is_number, listing, mapping, number, write_text
from common.paths import user_path
from run.history import Records, Run, column, finite, median, read_metrics, read_run
from run.report import html as page
from run.report import plots as curves
from run.report.format_figures import difference, formatted, hours, percent, scientific, with_error
from run.report.plan_report import draw_plan

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
    "running": "not finished",
}


def write_report(folder: Path, records: Records | None = None) -> Path:
    """Write folder/report.html and return its path.

    records: the result of read_metrics(folder), if the caller already has it. The file is written atomically. Raises OSError
    if it cannot be written.
    """
    page = render(read_run(folder, read_metrics(folder) if records is None else records))
    path = folder / "report.html"
    write_text(path, page, several_writers=True)
    return path


def render(run: Run) -> str:
    """The page as HTML. templates/run.html arranges it and leaves out sections without data."""
    return page.render(
        "run.html",
        title=run.name,
        outcome=run.outcome if run.outcome in STATUS_WORDS else "unknown",
        tiles=_tiles(run),
        remarks=_remarks(run),
        shape=_shape(run),
        comparison=_comparison(run),
        off_plan=[f"Reason for the difference: {reason}." for reason in listing(run.part("plan").get("why_off"))],
        budget=_budget(run),
        loss_pictures=_loss_pictures(run),
        schedule_pictures=_schedule_pictures(run),
        ledger=_ledger(run),
        ledger_total=format_seconds(sum(run.ledger.values())),
        throughput_pictures=_throughput_pictures(run),
        peak=_peak(run),
        plan_pictures=_plan_pictures(run),
        alternatives=_alternatives(run),
        plan_notes=_plan_notes(run),
        samples=_samples(run),
        events=_events(run),
        config=run.config,
        facts=_facts(run),
        mix=_mix(run),
        task_pictures=_task_pictures(run),
        tasks=_tasks(run),
        task_notes=_task_notes(run),
        **_sources(run),
    )


# The content of the template from top to bottom: rows, paragraphs and charts. Each is empty if the run has no data for it.


def _tiles(run: Run) -> list[tuple[str, str]]:
    evaluation = run.part("eval")
    tiles = [("Status", STATUS_WORDS.get(run.outcome, run.outcome))]
    if run.result.get("stopped_by"):
        tiles.append(("Stopped by", str(run.result["stopped_by"])))
    tiles += [(label, with_error(evaluation, key, digits)) for key, label, digits in METRICS if key in evaluation]
    if "accuracy" in evaluation:
        tiles.append(("Next-token accuracy", with_error(evaluation, "accuracy", 2, percent=True)))
    if not evaluation and run.validation:
        tiles.append(("Last validation loss", with_error(run.validation[-1], "val_loss", 4)))
    return tiles


def _remarks(run: Run) -> list[str]:
    remarks = []
    reason = run.status.get("reason")
    if reason and run.outcome != "finished":
        remarks.append(f"Reason: {reason}")
    if not run.result:
        remarks.append("There is no result.json: the run is still going, or ended before its final evaluation.")
    if run.continued_after_result:
        remarks.append(
            f"The results are from before the budget was extended; the run has continued to step {run.last['step']}."
        )
    loss = column(run.points, "loss")
    if len(loss) and not np.isfinite(loss).all():
        bad = np.flatnonzero(~np.isfinite(loss))
        step = run.points[int(bad[0])].get("step")
        remarks.append(f"The training loss was NaN or infinite at {len(bad)} logged steps, first at step {step}.")
    if added := str(recorded_extension(run.result)):
        remarks.append(f"The budget was extended by {added} after the start.")
    if init := run.part("init"):
        had = f" ({format_count(init['tokens'])} tokens)" if is_number(init.get("tokens")) else ""
        remarks.append(f"The run started from the weights of {init.get('checkpoint')}{had}.")
    evaluated = run.part("eval")
    if evaluated.get("tokens"):
        remarks.append(f"Evaluated on {format_count(number(evaluated['tokens'], 0))} tokens of the validation split.")
    return remarks


def _comparison(run: Run) -> list[tuple[str, str, str, str]]:
    """The rows of the table that compares the plan with the result."""
    plan, spent, last = run.plan, run.part("spent"), run.last
    speed = run.part("throughput") or {key: median(run.points, key) for key in ("tokens_per_second", "mfu")}
    rows: list[tuple[str, Any, Any, Callable[[float], str]]] = [
        ("Tokens", plan.get("tokens"), spent.get("tokens", last.get("tokens")), format_count),
        ("Steps", plan.get("steps"), spent.get("steps", last.get("step")), format_count),
        ("Training time", plan.get("hours"), spent.get("training_hours"), hours),
        ("Tokens/s", plan.get("tokens_per_second"), speed.get("tokens_per_second"), format_count),
        ("FLOPs", plan.get("flops"), spent.get("flops", last.get("flops")), scientific),
        ("MFU", plan.get("mfu"), speed.get("mfu"), percent),
        ("Loss", plan.get("predicted_loss"), run.part("eval").get("loss"), lambda value: f"{value:.4f}"),
    ]
    if not any(is_number(value) for row in rows for value in row[1:3]):
        return []
    return [
        (label, formatted(planned, f), formatted(got, f), difference(planned, got)) for label, planned, got, f in rows
    ]


def _shape(run: Run) -> list[str]:
    shape = run.part("model") or run.plan
    if "n_layer" not in shape:
        return []
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    parts = [f"{name} {shape[name]}" for name in names if name in shape]
    if is_number(shape.get("parameters")):
        parts.insert(0, f"{format_count(shape['parameters'])} parameters")
    if is_number(shape.get("parameters_law")):
        parts.insert(1, f"{format_count(shape['parameters_law'])} as scaling laws count them")
    return [f"Model: {', '.join(parts)}.{_law_line(run.plan)}"]


def _law_line(plan: Mapping[str, Any]) -> str:
    best = mapping(plan.get("optimum"))
    sizes = [f"{format_count(best[key])} {key}" for key in ("parameters", "tokens") if is_number(best.get(key))]
    optimum = f", whose optimum is {' and '.join(sizes)}" if sizes else ""
    return f" Law: {plan['law']}{optimum}." if plan.get("law") else ""


def _budget(run: Run) -> list[str]:
    budget, spent = run.part("budget"), run.part("spent")
    limits = [f"{key} {value:g}" for key, value in budget.items() if is_number(value) and value]
    parts = [f"Budget: {', '.join(limits)}"] if limits else []
    if budget.get("counts"):
        parts.append("counting training time only" if budget["counts"] == "training" else "counting all time")
    if is_number(spent.get("overshoot_s")):
        over = spent["overshoot_s"]
        parts.append(f"{format_seconds(abs(over))} {'over the limit' if over > 0 else 'unused'}")
    if is_number(spent.get("training_hours")):
        parts.append(f"{hours(spent['training_hours'])} of training")
    if is_number(spent.get("flops_6nd")):
        parts.append(f"{scientific(spent['flops_6nd'])} FLOPs as 6ND")
    if is_number(run.result.get("prepare_s")):
        parts.append(f"{format_seconds(run.result['prepare_s'])} of data preparation, outside the budget")
    return [f"{'; '.join(parts)}."] if parts else []


def _loss_pictures(run: Run) -> list[curves.Picture]:
    if not run.points and not run.validation:
        return []
    by_tokens, by_time = (partial(_draw_loss, run=run, key=key) for key in ("tokens", "hours"))
    return [
        curves.picture("Loss against tokens", "tokens", by_tokens, curves.axis(format_count)),
        curves.picture("Loss against time", "time spent", by_time, curves.time_axis),
    ]


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
    # A spike to 1e9 must not flatten the curve, so the axis ends at twice the first losses.
    low = float(values.min())
    high = min(float(values.max()), 2 * float(np.median(values[:10])))
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _schedule_pictures(run: Run) -> list[curves.Picture]:
    rate = column(run.points, "learning_rate")
    if not np.isfinite(rate).any():
        return []

    def draw(axes: Axes, key: str) -> None:
        axes.plot(*curves.thin(*finite(column(run.points, key), rate)), color=curves.GREEN, linewidth=1.6)
        axes.set_ylim(0, 1.08 * float(np.nanmax(rate)) or 1)

    title, by_progress, by_step = "Learning rate against", partial(draw, key="progress"), partial(draw, key="step")
    return [
        curves.picture(f"{title} progress", "share of the budget spent", by_progress, curves.axis(percent)),
        curves.picture(f"{title} step", "step", by_step, curves.axis(format_count)),
    ]


def _ledger(run: Run) -> list[tuple[str, str, str, str]]:
    """The rows of the time ledger: account, time, share and colour."""
    total = sum(run.ledger.values())
    return [
        (account, format_seconds(seconds), f"{seconds / total:.1%}", ACCOUNT_COLOURS.get(account, "#64748b"))
        for account, seconds in run.ledger.items()
        if total
    ]


def _throughput_pictures(run: Run) -> list[curves.Picture]:
    hours, rate = finite(column(run.points, "hours"), column(run.points, "tokens_per_second"))
    if not len(hours):
        return []

    def draw(axes: Axes) -> None:
        axes.plot(*curves.thin(hours, rate), color=curves.BLUE, alpha=0.3, linewidth=0.8)
        axes.plot(*curves.thin(hours, curves.smooth(rate)), color=curves.BLUE, linewidth=1.6)
        axes.set_ylim(0, 1.15 * float(np.percentile(rate, 99)) or 1)
        axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
        axes.set_ylabel("tokens/s")

    return [curves.picture("Throughput over time", "time spent", draw, curves.time_axis)]


def _peak(run: Run) -> list[str]:
    speed = run.part("throughput")
    if not is_number(speed.get("peak_flops")):
        return []
    source = speed.get("peak_flops_source", "unknown source")
    return [f"Peak of the device: {format_count(speed['peak_flops'])} FLOP/s ({source})."]


def _sources(run: Run) -> dict[str, Any]:
    """The table of the evaluation by source, with a column for each figure that was measured."""
    by_source = mapping(run.part("eval").get("by_source"))
    figures = {name: mapping(value) or {"loss": value} for name, value in by_source.items()}
    columns = list(dict.fromkeys(key for value in figures.values() for key in value))
    return {
        "source_heads": ["Source", *(key.replace("_", " ").capitalize() for key in columns)],
        "sources": [(name, *(_figure(key, value.get(key)) for key in columns)) for name, value in figures.items()],
    }


def _mix(run: Run) -> list[tuple[str, ...]]:
    """The rows of the table of a mix: source, weight, tokens drawn, epochs and loss."""
    scores = mapping(run.part("eval").get("by_source"))
    mix = {name: mapping(value) for name, value in mapping(run.part("data").get("mix")).items()}
    return [
        (
            name,
            formatted(source.get("weight"), percent),
            formatted(source.get("tokens"), format_count),
            formatted(source.get("epochs"), "{:.2f}".format),
            formatted(mapping(scores.get(name)).get("loss"), "{:.4f}".format),
        )
        for name, source in mix.items()
    ]


def _task_names(run: Run) -> list[str]:
    """The tasks of a run, by the interim evaluations and the result."""
    keys = dict.fromkeys(key for point in run.validation for key in point if key.startswith("task_"))
    curves_of = [key.removeprefix("task_") for key in keys if not (key.endswith("_se") and key[:-3] in keys)]
    return list(dict.fromkeys([*run.part("tasks"), *curves_of]))


def _task_pictures(run: Run) -> list[curves.Picture]:
    """The score of each task against the share of the budget that was spent."""
    return [
        curves.picture(
            f"Score of {name}",
            "share of the budget spent",
            partial(_draw_task, run=run, name=name),
            curves.axis(percent),
        )
        for name in _task_names(run)
        if np.isfinite(column(run.validation, f"task_{name}")).any()
    ]


def _draw_task(axes: Axes, run: Run, name: str) -> None:
    figures = mapping(run.part("tasks").get(name))
    scores, progress = column(run.validation, f"task_{name}"), column(run.validation, "progress")
    errors = np.abs(np.nan_to_num(column(run.validation, f"task_{name}_se"), posinf=0.0, neginf=0.0))
    label = "interim evaluation, ± standard error"
    axes.errorbar(
        progress, scores, errors, color=curves.ORANGE, marker="o", markersize=3.5, elinewidth=0.8, label=label
    )
    score = number(figures.get("score"), math.nan)
    if math.isfinite(score) and not run.continued_after_result:
        low, high = (number(end, score) for end in _interval(figures))
        spans, label = [[max(0.0, score - low)], [max(0.0, high - score)]], "final evaluation, 95 % interval"
        axes.errorbar([1.0], [score], spans, color=curves.BLUE, marker="s", markersize=5, linestyle="", label=label)
    chance = number(mapping(run.tasks.get(name)).get("chance"), math.nan)
    if math.isfinite(chance):
        axes.axhline(chance, color=curves.INK, alpha=0.5, linestyle="--", linewidth=1, label="chance")
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
    axes.set_xlim(0, 1.02)
    axes.legend(loc="upper right")


def _tasks(run: Run) -> list[tuple[str, ...]]:
    """The rows of the table of tasks: name, items, score, interval and chance."""
    return [_task_row(name, mapping(figures)) for name, figures in run.part("tasks").items()]


def _task_row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    score, count = "{:.2%}".format, "{:,.0f}".format
    items, total = (formatted(figures.get(key), count) for key in ("items", "available"))
    low, high = (formatted(end, score) for end in _interval(figures))
    return (
        name,
        items if items == total else f"{items} of {total}",
        formatted(figures.get("score"), score),
        f"{low} to {high}",
        formatted(figures.get("chance"), score),
    )


def _interval(figures: Mapping[str, Any]) -> tuple[Any, Any]:
    """The ends of the interval of a score; None for one that is unknown."""
    ends = listing(figures.get("interval"))
    return (ends[0], ends[1]) if len(ends) == 2 else (None, None)


def _task_notes(run: Run) -> list[str]:
    figures = {name: mapping(task) for name, task in run.part("tasks").items()}
    cut = [name for name, task in figures.items() if task.get("items") != task.get("available")]
    return (
        [
            f"Of {', '.join(cut)}, only a part was scored, to stay within eval.max_fraction of the hours and the deadline."
        ]
        if cut
        else []
    )


def _alternatives(run: Run) -> list[tuple[str, ...]]:
    alternatives = [a for a in listing(run.plan.get("alternatives")) if isinstance(a, dict)]
    return [_alternative(shape) for shape in ({**run.plan, "reason": "chosen"}, *alternatives)] if alternatives else []


def _plan_pictures(run: Run) -> list[curves.Picture]:
    if not run.plan.get("curve"):
        return []
    title = "Expected loss against size for this budget"
    return [curves.picture(title, "parameters", lambda axes: draw_plan(axes, run.plan), lambda _: None)]


def _plan_notes(run: Run) -> list[str]:
    basis = "; ".join(f"{key}: {_value(value)}" for key, value in mapping(run.plan.get("source")).items())
    return [f"Sources of the plan: {basis}."] * bool(basis) + [str(note) for note in listing(run.plan.get("notes"))]


def _alternative(shape: Mapping[str, Any]) -> tuple[str, ...]:
    counts = ("n_layer", "n_head", "n_embd", "parameters", "tokens", "tokens_per_second")
    worse = f"+{shape['worse']:.2%}" if is_number(shape.get("worse")) else "–"
    return (*(formatted(shape.get(key), format_count) for key in counts), worse, str(shape.get("reason", "")))


def _samples(run: Run) -> list[tuple[str, str]]:
    """Pairs of prompt and continuation."""
    samples = [s for s in listing(run.result.get("samples")) if isinstance(s, dict)]
    pairs = [(str(s.get("prompt", "")), str(s.get("text", ""))) for s in samples]
    return [(prompt, text.removeprefix(prompt)) for prompt, text in pairs]


def _events(run: Run) -> list[str]:
    # Every run starts with a resume at step 0, which is not worth listing.
    events = run.events[1:] if run.events and run.events[0].get("step") == 0 else run.events
    return [
        f"resumed at step {event.get('step')}"
        if event["event"] == "resume"
        else str(event.get("text") or json.dumps(event))
        for event in events
    ]


READ_IN_WORDS = {"validation_from": "validation split from", "files": "files read", "files_not_read": "files not read"}


def _facts(run: Run) -> list[tuple[str, str]]:
    """The rows about data and environment."""
    data = run.part("data")
    facts = _data_facts(data)
    for name, source in mapping(data.get("sources")).items():
        facts += [(f"{name}: {key}", value) for key, value in _data_facts(mapping(source))]
    return facts + [(key, _value(value)) for key, value in run.part("environment").items()]


def _data_facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was read, in words; the tables show the mix and its sources."""
    facts = []
    for key, value in data.items():
        if key == "splits":
            facts += [(f"{name} split", _counts(mapping(split))) for name, split in mapping(value).items()]
        elif key == "left_out":
            counts = ", ".join(f"{formatted(n, '{:,.0f}'.format)} {reason}" for reason, n in mapping(value).items())
            facts.append(("documents left out", counts or "none"))
        elif key == "not_read":
            facts.append(("not read", ", ".join(map(str, listing(value))) or "none"))
        elif key == "files_not_read":
            if number(value, 0) > len(listing(data.get("not_read"))):  # the list is cut
                facts.append(("files not read", _value(value)))
        elif key not in ("mix", "sources"):
            facts.append((READ_IN_WORDS.get(key, key), _value(value)))
    return facts


def _counts(split: Mapping[str, Any]) -> str:
    return ", ".join(f"{formatted(n, format_count)} {unit}" for unit, n in split.items())


def _figure(key: str, value: Any) -> str:
    if not is_number(value):
        return "–" if value is None else _value(value)
    if key.startswith("accuracy"):
        return f"{value:.2%}"
    return format_count(value) if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def main(arguments: Sequence[str]) -> int:
    """Write the report of each folder named on the command line."""
    folders = [user_path(argument) for argument in arguments]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing or not folders:
        for folder in missing:
            print(f"{folder} does not exist; give the folder of a run", file=sys.stderr)
        print("usage: python -m run.report.run_report outputs/NAME [outputs/OTHER ...]", file=sys.stderr)
        return 2
    for folder in folders:
        print(write_report(folder))
    return 0


if __name__ == "__main__":
    with reported():
        sys.exit(main(sys.argv[1:]))
