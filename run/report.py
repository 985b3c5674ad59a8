"""One self-contained HTML page about a run: what was planned, what came out, and where each second went.

    python -m run.report outputs/NAME

The page needs nothing but itself (no script, no font, no picture from elsewhere) and reads the run's own files. A
run that was stopped, killed or diverged has fewer of them; the page then says so and shows what there is.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from run.console import format_count, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 1000  # of one curve; more cannot be told apart on a screen and cost 20 bytes each
SMOOTHING = 0.01  # half width of the moving average, as a share of the run
INK = "#010203"  # drawn in this colour, then turned into currentColor: black by day, white by night
BLUE, ORANGE, GREEN = "#3b82f6", "#f97316", "#16a34a"  # legible on white and on black
FIGURE_INCHES = (5.0, 2.9)  # on the 390 pixels of a phone a letter of 10 pt stays 10 pixels high
ACCOUNT_COLOURS = {
    "setup": "#8b5cf6",
    "compile": "#ec4899",
    "data": "#eab308",
    "train": "#3b82f6",
    "eval": "#16a34a",
    "checkpoint": "#f97316",
    "idle": "#94a3b8",
}
TIME_STEPS_S = (1, 2, 5, 10, 15, 30, *(60 * m for m in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440)))
METRICS = (("loss", "Loss, nats/token", 4), ("perplexity", "Perplexity", 2), ("bits_per_byte", "Bits per byte", 4))
STATUS_WORDS = {
    "finished": "finished",
    "stopped": "stopped early",
    "diverged": "diverged",
    "failed": "failed",
    "running": "not ended",
}

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class _Run:
    """All that a run's folder says; what is missing is empty."""

    name: str
    plan: dict[str, Any]
    result: dict[str, Any]
    status: dict[str, Any]
    ledger: dict[str, float]
    config: str
    points: Records  # one for each training step that was logged
    validation: Records
    events: Records

    def part(self, name: str) -> dict[str, Any]:
        """A section of result.json."""
        return _mapping(self.result.get(name))

    @property
    def last(self) -> dict[str, Any]:
        return self.points[-1] if self.points else {}

    @property
    def outcome(self) -> str:
        # status.json still says "running" while a run that has its result writes this page.
        status = self.status.get("status")
        return str(status if status not in (None, "running") else self.result.get("status") or status or "unknown")

    @property
    def went_on(self) -> bool:
        """Whether the run was given more budget after it wrote its result, and has used some of it."""
        return _number(self.last.get("step"), 0) > _number(self.part("spent").get("steps"), math.inf)


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


def read_metrics(folder: Path) -> Records:
    """The lines of folder/metrics.jsonl in order, without the points that a resume rolled back.

    A killed run goes on from its last checkpoint: {"event": "resume", "step": S} says that what came before it with
    a later step than S was done again. Events are all kept. Lines that cannot be read (a kill cuts the last one
    short) are left out; a missing file has none.
    """
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    kept: Records = []
    limit = math.inf
    for record in reversed(_json_objects(lines)):
        if "event" in record:
            kept.append(record)
            if record["event"] == "resume":
                limit = min(limit, _number(record.get("step"), math.inf))
        elif _number(record.get("step"), 0) <= limit:
            kept.append(record)
    kept.reverse()
    return kept


def read_run(folder: Path, records: Records) -> _Run:
    """Everything else that the folder holds."""
    result = _read_json(folder / "result.json")
    ledger = _mapping(result.get("ledger_s")) or _mapping(_read_json(folder / "ledger.json").get("ledger_s"))
    return _Run(
        name=folder.absolute().name,
        plan=_read_json(folder / "plan.json"),
        result=result,
        status=_read_json(folder / "status.json"),
        ledger={str(k): float(v) for k, v in ledger.items() if _is_number(v) and v >= 0},
        config=_read_text(folder / "config.yaml"),
        points=[r for r in records if "event" not in r and "loss" in r],
        validation=[r for r in records if "event" not in r and "val_loss" in r],
        events=[r for r in records if "event" in r],
    )


def render(run: _Run) -> str:
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
    return _PAGE.format(title=_text(run.name), style=_STYLE, body="\n".join(filter(None, sections)))


# The sections, from top to bottom. Each returns "" where the run has nothing to show.


def _headline(run: _Run) -> str:
    evaluation = run.part("eval")
    tiles = [("Status", STATUS_WORDS.get(run.outcome, run.outcome))]
    if run.result.get("stopped_by"):
        tiles.append(("Stopped by", str(run.result["stopped_by"])))
    tiles += [(label, _with_error(evaluation, key, digits)) for key, label, digits in METRICS if key in evaluation]
    if "accuracy" in evaluation:
        tiles.append(("Next-token accuracy", _with_error(evaluation, "accuracy", 2, percent=True)))
    if not evaluation and run.validation:
        tiles.append(("Last validation loss", _with_error(run.validation[-1], "val_loss", 4)))
    boxes = "".join(f"<div><dt>{_text(label)}</dt><dd>{_tile(value)}</dd></div>" for label, value in tiles)
    kind = run.outcome if run.outcome in STATUS_WORDS else "unknown"
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in _remarks(run))
    return f'<header class="{kind}"><h1>{_text(run.name)}</h1><dl class="tiles">{boxes}</dl>{notes}</header>'


def _tile(value: str) -> str:
    figure, sign, error = value.partition(" ± ")
    return f"{_text(figure)} <small>± {_text(error)}</small>" if sign else _text(value)


def _remarks(run: _Run) -> list[str]:
    remarks = []
    reason = run.status.get("reason")
    if reason and run.outcome != "finished":
        remarks.append(f"Reason: {reason}")
    if not run.result:
        remarks.append("There is no result.json: the run was stopped before its final evaluation, or is still going.")
    if run.went_on:
        remarks.append(f"The figures are those of an earlier end; the run went on to step {run.last['step']}.")
    loss = _column(run.points, "loss")
    if len(loss) and not np.isfinite(loss).all():
        bad = np.flatnonzero(~np.isfinite(loss))
        step = run.points[int(bad[0])].get("step")
        remarks.append(f"The training loss was not a finite number at {len(bad)} points, first at step {step}.")
    extended = _number(run.result.get("extended_hours"), 0)
    if extended:
        remarks.append(f"The budget was extended by {format_seconds(extended * 3600)} after the start.")
    evaluated = run.part("eval")
    if evaluated.get("tokens"):
        split = evaluated.get("split", "validation")
        remarks.append(f"Evaluated on {format_count(_number(evaluated['tokens'], 0))} tokens of the split {split}.")
    return remarks


def _plan_and_outcome(run: _Run) -> str:
    plan, spent, speed = run.plan, run.part("spent"), run.part("throughput")
    last = run.last
    rows: list[tuple[str, Any, Any, Callable[[float], str]]] = [
        ("Tokens", plan.get("tokens"), spent.get("tokens", last.get("tokens")), format_count),
        ("Steps", plan.get("steps"), spent.get("steps", last.get("step")), format_count),
        ("Time", plan.get("hours"), spent.get("hours", last.get("hours")), _hours),
        ("Tokens/s", plan.get("tokens_per_second"), speed.get("tokens_per_second"), format_count),
        ("FLOPs", plan.get("flops"), spent.get("flops", last.get("flops")), format_count),
        ("MFU", plan.get("mfu"), speed.get("mfu"), _percent),
        ("Loss", plan.get("predicted_loss"), run.part("eval").get("loss"), lambda value: f"{value:.4f}"),
    ]
    if not speed and run.points:
        rows[3] = ("Tokens/s", plan.get("tokens_per_second"), _median(run.points, "tokens_per_second"), format_count)
        rows[5] = ("MFU", plan.get("mfu"), _median(run.points, "mfu"), _percent)
    if not any(_is_number(value) for row in rows for value in row[1:3]):
        return ""
    body = [(label, _show(planned, f), _show(got, f), _difference(planned, got)) for label, planned, got, f in rows]
    table = _table(("", "Planned", "Reached", "Difference"), body)
    return _section("Plan and outcome", f"{_shape_line(run)}{table}{_budget_line(run)}")


def _shape_line(run: _Run) -> str:
    shape = run.part("model") or run.plan
    if "n_layer" not in shape:
        return ""
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    parts = [f"{name} {shape[name]}" for name in names if name in shape]
    if _is_number(shape.get("parameters")):
        parts.insert(0, f"{format_count(shape['parameters'])} parameters")
    if _is_number(shape.get("parameters_law")):
        parts.insert(1, f"{format_count(shape['parameters_law'])} as scaling laws count them")
    return f"<p>{_text('Model: ' + ', '.join(parts) + '.' + _law_line(run.plan))}</p>"


def _law_line(plan: Mapping[str, Any]) -> str:
    best = _mapping(plan.get("optimum"))
    sizes = [f"{format_count(best[key])} {key}" for key in ("parameters", "tokens") if _is_number(best.get(key))]
    optimum = f", whose own optimum is {' and '.join(sizes)}" if sizes else ""
    return f" Law: {plan['law']}{optimum}." if plan.get("law") else ""


def _budget_line(run: _Run) -> str:
    budget, spent = run.part("budget"), run.part("spent")
    limits = [f"{key} {value:g}" for key, value in budget.items() if _is_number(value) and value]
    parts = [f"Budget: {', '.join(limits)}"] if limits else []
    if budget.get("counts"):
        parts.append(f"counting {budget['counts']}")
    if _is_number(spent.get("overshoot_s")):
        over = spent["overshoot_s"]
        parts.append(f"{format_seconds(abs(over))} {'past the limit' if over > 0 else 'left over'}")
    if _is_number(spent.get("training_hours")):
        parts.append(f"{_hours(spent['training_hours'])} of it training")
    if _is_number(spent.get("flops_6nd")):
        parts.append(f"{format_count(spent['flops_6nd'])} FLOPs by 6ND")
    if _is_number(run.result.get("prepare_s")):
        parts.append(f"{format_seconds(run.result['prepare_s'])} of data preparation before the clock")
    return f"<p>{_text('; '.join(parts))}.</p>" if parts else ""


def _loss_section(run: _Run) -> str:
    if not run.points and not run.validation:
        return _section("Loss", "<p>No training point was logged.</p>")
    pictures = [
        _picture("Loss against tokens", "tokens", lambda axes: _draw_loss(axes, run, "tokens"), _axis(format_count)),
        _picture("Loss against budget time", "time spent", lambda axes: _draw_loss(axes, run, "hours"), _time_axis),
    ]
    return _section("Loss", _gallery(pictures))


def _draw_loss(axes: Axes, run: _Run, key: str) -> None:
    x, loss = _finite(_column(run.points, key), _column(run.points, "loss"))
    if len(x):
        axes.plot(*thin(x, loss), color=BLUE, alpha=0.3, linewidth=0.8)
        axes.plot(*thin(x, smooth(loss)), color=BLUE, linewidth=1.6, label="training, smoothed")
    val_x, val = _finite(_column(run.validation, key), _column(run.validation, "val_loss"))
    if len(val_x):
        style = {"marker": "o", "markersize": 3.5} if len(val_x) <= 100 else {}
        axes.plot(*thin(val_x, val), color=ORANGE, linewidth=1.2, label="validation", **style)  # type: ignore[arg-type]
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


def _schedule_section(run: _Run) -> str:
    rate = _column(run.points, "learning_rate")
    if not np.isfinite(rate).any():
        return ""

    def draw(key: str) -> Callable[[Axes], None]:
        def on(axes: Axes) -> None:
            axes.plot(*thin(*_finite(_column(run.points, key), rate)), color=GREEN, linewidth=1.6)
            axes.set_ylim(0, 1.08 * float(np.nanmax(rate)) or 1)

        return on

    pictures = [
        _picture("Learning rate against progress", "share of the budget spent", draw("progress"), _axis(_percent)),
        _picture("Learning rate against step", "step", draw("step"), _axis(format_count)),
    ]
    return _section("Schedule that was run", _gallery(pictures))


def _ledger_section(run: _Run) -> str:
    total = sum(run.ledger.values())
    if not total:
        return ""
    bar: list[str] = []
    rows: list[tuple[str, str, str]] = []
    for account, seconds in run.ledger.items():
        colour = ACCOUNT_COLOURS.get(account, "#64748b")
        share = seconds / total
        label = _text(f"{account}: {format_seconds(seconds)}, {share:.1%}")
        bar.append(f'<span style="width:{share:.4%};background:{colour}" title="{label}"></span>')
        name = f'<i class="key" style="background:{colour}"></i>{_text(account)}'
        rows.append((_Html(name), format_seconds(seconds), f"{share:.1%}"))
    rows.append(("total", format_seconds(total), "100 %"))
    table = _table(("Account", "Time", "Share"), rows)
    return _section("Where each second went", f'<div class="bar" role="img">{"".join(bar)}</div>{table}')


def _throughput_section(run: _Run) -> str:
    hours, rate = _finite(_column(run.points, "hours"), _column(run.points, "tokens_per_second"))
    if not len(hours):
        return ""

    def draw(axes: Axes) -> None:
        axes.plot(*thin(hours, rate), color=BLUE, alpha=0.3, linewidth=0.8)
        axes.plot(*thin(hours, smooth(rate)), color=BLUE, linewidth=1.6)
        axes.set_ylim(0, 1.15 * float(np.percentile(rate, 99)) or 1)
        axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
        axes.set_ylabel("tokens/s")

    speed, peak = run.part("throughput"), ""
    if _is_number(speed.get("peak_flops")):
        source = speed.get("peak_flops_source", "unknown source")
        sentence = f"Peak of the device: {format_count(speed['peak_flops'])} FLOP/s ({source})."
        peak = f"<p>{_text(sentence)}</p>"
    picture = _picture("Throughput over time", "time spent", draw, _time_axis)
    return _section("Throughput", f"{_gallery([picture])}{peak}")


def _source_section(run: _Run) -> str:
    sources = _mapping(run.part("eval").get("by_source"))
    if not sources:
        return ""
    figures = {name: _mapping(value) or {"loss": value} for name, value in sources.items()}
    columns = list(dict.fromkeys(key for value in figures.values() for key in value))
    rows = [(name, *(_figure(key, value.get(key)) for key in columns)) for name, value in figures.items()]
    return _section("Evaluation by source", _table(("Source", *(_title(c) for c in columns)), rows))


def _alternatives_section(run: _Run) -> str:
    alternatives = [a for a in _list(run.plan.get("alternatives")) if isinstance(a, dict)]
    if not alternatives:
        return ""
    rows = [_alternative({**run.plan, "reason": "chosen"}), *map(_alternative, alternatives)]
    heads = ("Layers", "Heads", "Width", "Parameters", "Tokens", "Tokens/s", "Loss", "Why")
    source = _mapping(run.plan.get("source"))
    basis = "; ".join(f"{key}: {_value(value)}" for key, value in source.items())
    notes = [f"The plan rests on: {basis}."] * bool(basis) + [str(note) for note in _list(run.plan.get("notes"))]
    below = "".join(f'<p class="note">{_text(note)}</p>' for note in notes)
    return _section("Alternatives of the plan", _table(heads, rows, "shapes") + below)


def _alternative(shape: Mapping[str, Any]) -> tuple[str, ...]:
    counts = ("n_layer", "n_head", "n_embd", "parameters", "tokens", "tokens_per_second")
    worse = f"+{shape['worse']:.2%}" if _is_number(shape.get("worse")) else "–"
    return (*(_show(shape.get(key), format_count) for key in counts), worse, str(shape.get("reason", "")))


def _samples_section(run: _Run) -> str:
    samples = [s for s in _list(run.result.get("samples")) if isinstance(s, dict)]
    quotes = [f"<blockquote><b>{_text(s.get('prompt', ''))}</b>{_text(_continuation(s))}</blockquote>" for s in samples]
    return _section("Samples", f"<p>The prompt is bold.</p>{''.join(quotes)}") if quotes else ""


def _continuation(sample: Mapping[str, Any]) -> str:
    text, prompt = str(sample.get("text", "")), str(sample.get("prompt", ""))
    return text.removeprefix(prompt)


def _events_section(run: _Run) -> str:
    items = []
    # Every run opens with a resume at step 0; only those that took something back or went on are news.
    for event in run.events[1:] if run.events and run.events[0].get("step") == 0 else run.events:
        known = {"resume": f"resumed at step {event.get('step')}", "note": event.get("text", "")}
        items.append(f"<li>{_text(known.get(str(event['event']), json.dumps(event)))}</li>")
    return _section("Events", f"<ul>{''.join(items)}</ul>") if items else ""


def _config_section(run: _Run) -> str:
    if not run.config:
        return ""
    return _section("Config", f"<details><summary>config.yaml</summary><pre>{_text(run.config)}</pre></details>")


def _environment_section(run: _Run) -> str:
    rows = [(key, _value(value)) for part in ("data", "environment") for key, value in run.part(part).items()]
    return _section("Data and environment", _table(("", ""), rows, "facts")) if rows else ""


# Curves.


def thin(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a curve: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) <= limit:
        return x, y
    edges = np.linspace(0, len(x), limit // 2 + 1).astype(int)
    keep = [start + offset for start, end in itertools.pairwise(edges) for offset in _extremes(y[start:end])]
    return x[keep], y[keep]


def smooth(y: np.ndarray) -> np.ndarray:
    """A moving average over 2 x SMOOTHING of the run.

    The window grows from nothing, so that the steep beginning stays steep, and is cut off at the end, where the loss is
    flat and its last noisy point must not look like a turn.
    """
    index = np.arange(len(y))
    left = np.minimum(index, max(1, int(SMOOTHING * len(y))))
    right = np.minimum(left, index[::-1])
    sums = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)


def _extremes(y: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted((int(y.argmin()), int(y.argmax()))))


def _column(records: Records, key: str) -> np.ndarray:
    values = [record.get(key) for record in records]
    try:
        return np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        return np.array([_number(value, math.nan) for value in values], dtype=np.float64)


def _finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good]


def _median(records: Records, key: str) -> float | None:
    values = _column(records, key)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _picture(title: str, xlabel: str, draw: Callable[[Axes], None], ticks: Callable[[Axes], None]) -> str:
    """One chart as an inline SVG with its text as text, in the colours of the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_RC, "svg.hashsalt": title}):
        figure = Figure(figsize=FIGURE_INCHES)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(alpha=0.18)
        axes.set_xlabel(xlabel)
        draw(axes)
        axes.margins(x=0.02)
        ticks(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_SVG_METADATA))
    return f"<figure><figcaption>{_text(title)}</figcaption>{_inline(buffer.getvalue(), title)}</figure>"


def _inline(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows the names; the page shall name no other host
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in each picture, and nothing refers to them
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" ?', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*" ?', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{_text(title)}" ', 1)
    return svg.replace(INK, "currentColor")


def _axis(format_value: Callable[[float], str]) -> Callable[[Axes], None]:
    def set_up(axes: Axes) -> None:
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda value, _: format_value(value))

    return set_up


def _time_axis(axes: Axes) -> None:
    """Hours as a clock counts them: ticks at whole seconds, minutes or hours."""
    from matplotlib.ticker import MultipleLocator

    low, high = axes.get_xlim()
    step = next((step for step in TIME_STEPS_S if (high - low) * 3600 / step <= 6), 24 * 3600 * math.ceil(high / 144))
    axes.xaxis.set_major_locator(MultipleLocator(step / 3600))
    axes.xaxis.set_major_formatter(lambda hours, _: _tick_time(hours))


def _tick_time(hours: float) -> str:
    return re.sub(r"(?<=[mhd])00[smh]$|\.0(?= s)", "", format_seconds(round(hours * 3600, 3) + 0.0))


_SVG_METADATA = ("Date", "Creator", "Format", "Type")
_RC: Any = {
    "svg.fonttype": "none",
    # Fixed margins: fitting them to the labels would draw each picture twice.
    "figure.subplot.left": 0.135,
    "figure.subplot.right": 0.965,
    "figure.subplot.bottom": 0.175,
    "figure.subplot.top": 0.965,
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


# Figures and text.


def _with_error(evaluation: Mapping[str, Any], key: str, digits: int, percent: bool = False) -> str:
    scale, unit = (100, " %") if percent else (1, "")
    value = evaluation[key]
    if not _is_number(value):
        return "not finite"
    error = _standard_error(evaluation, key)
    shown = f"{value * scale:.{digits}f}"
    return shown + (f" ± {error * scale:.{digits}f}" if error is not None else "") + unit


def _standard_error(evaluation: Mapping[str, Any], key: str) -> float | None:
    """The recorded standard error; those of perplexity (e^loss) and bits per byte (~ loss) follow from the loss's."""
    if _is_number(evaluation.get(f"{key}_se")):
        return float(evaluation[f"{key}_se"])
    loss, error = _number(evaluation.get("loss"), 0), _number(evaluation.get("loss_se"), math.nan)
    slope = {"perplexity": 1.0, "bits_per_byte": 1 / loss if loss else math.nan}.get(key, math.nan)
    derived = evaluation[key] * slope * error
    return derived if math.isfinite(derived) else None


def _figure(key: str, value: Any) -> str:
    if not _is_number(value):
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


def _show(value: Any, form: Callable[[float], str]) -> str:
    return form(value) if _is_number(value) else "–"


def _difference(planned: Any, reached: Any) -> str:
    if not (_is_number(planned) and _is_number(reached) and planned):
        return "–"
    return f"{reached / planned - 1:+.1%}"


def _hours(hours: float) -> str:
    return format_seconds(hours * 3600) if hours else "0"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


class _Html(str):
    """Text that is markup already."""


def _text(value: object) -> str:
    return html.escape(str(value))


def _cell(value: object, tag: str = "td") -> str:
    return f"<{tag}>{value if isinstance(value, _Html) else _text(value)}</{tag}>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "figures") -> str:
    head = f"<thead><tr>{''.join(_cell(h, 'th') for h in heads)}</tr></thead>" if any(heads) else ""
    lines = [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _gallery(pictures: Iterable[str]) -> str:
    return f'<div class="gallery">{"".join(pictures)}</div>'


# Reading, with all that a kill or a full disk can leave behind.


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_json(path: Path) -> dict[str, Any]:
    return _json_object(_read_text(path).encode()) or {}


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _json_objects(lines: list[bytes]) -> Records:
    if lines and not lines[-1].endswith(b"}"):
        lines = lines[:-1]
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")  # twice as fast as line by line
    except ValueError:
        values = [_json_object(line) for line in lines]
    return [value for value in values if isinstance(value, dict)]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any, default: float) -> float:
    return float(value) if _is_number(value) else default


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1e293b; --soft: #64748b; --line: #e2e8f0; --card: #f8fafc; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f172a; --ink: #e2e8f0; --soft: #94a3b8; --line: #334155; --card: #1e293b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 16px; }
h1 { margin: 0 0 12px; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 32px 0 8px; font-size: 1.15rem; border-bottom: 1px solid var(--line); padding-bottom: 4px; }
p { margin: 8px 0; overflow-wrap: anywhere; }
header { border-left: 6px solid #94a3b8; padding-left: 14px; }
header.finished { border-color: #16a34a; }
header.stopped, header.running { border-color: #eab308; }
header.diverged, header.failed { border-color: #dc2626; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 8px; margin: 0 0 8px; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .9rem; margin: 4px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child, .shapes :last-child, .facts td { text-align: left; }
.shapes td:last-child { min-width: 13rem; }
.shapes tbody tr:first-child { font-weight: 600; }
.facts td { overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); overflow-wrap: normal; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 16px; }
figure { margin: 0; max-width: 640px; }
figcaption { color: var(--soft); font-size: .85rem; }
svg, img { width: 100%; max-width: 100%; height: auto; display: block; }
.bar { display: flex; height: 28px; border-radius: 6px; overflow: hidden; margin: 8px 0; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .5em; }
blockquote { margin: 8px 0; padding: 8px 12px; background: var(--card); border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
pre { background: var(--card); padding: 12px; border-radius: 8px; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
small { color: var(--soft); font-weight: 400; font-size: .8rem; white-space: nowrap; }
@media (max-width: 600px) {
  table { font-size: .9rem; }
  th, td { padding-right: 10px; }
}
"""


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
