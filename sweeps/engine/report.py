"""The report of a sweep: a table on the console, sweep.csv and the self-contained page report.html.

    python -m sweeps.engine.report outputs/sweeps/NAME

The report is written at the end of every sweep, also after a failure. This command writes it again, e.g. while jobs still run
on other machines.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import UserError, reported
from common.format import format_count, format_seconds
from common.json_io import write_text
from common.paths import user_path
from run.history import column, evaluations, finite, read_metrics
from run.report import html as page
from run.report import plots as curves
from run.report.console import Console
from sweeps.engine.job import GOOD
from sweeps.engine.scored_text import BITS_PER_BYTE, changes_text, is_task
from sweeps.engine.table import (
    Row,
    Sweep,
    as_csv,
    hours_by_kind,
    in_words,
    ranked_groups,
    read_sweep,
    short_label,
    table_cells,
    table_columns,
    verdict,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#3b82f6", "#f97316", "#16a34a", "#8b5cf6", "#ec4899", "#eab308", "#14b8a6", "#64748b", "#dc2626", "#84cc16")
AXES: tuple[tuple[str, str, Callable[[float], str] | None], ...] = (
    ("hours", "budget spent", None),
    ("flops", "FLOPs", lambda value: f"{value:.2g}"),
    ("tokens", "tokens", format_count),
)
MOST_CURVES = len(COLOURS)  # more cannot be told apart


def conclude(folder: Path) -> None:
    """Show a sweep at its end and write its report. Any failure is only a warning."""
    console = Console()
    try:
        sweep = read_sweep(folder)
        if sweep.rows:
            show_sweep(sweep, console)
    except Exception as error:  # a plotting library may raise anything, and must not make a finished sweep fail
        console.warn(f"no report of the sweep: {type(error).__name__}: {error}")


def show_sweep(sweep: Sweep, console: Console, force: bool = False) -> None:
    """Print the table and the verdict, and write the files."""
    console.table(f"Sweep {sweep.name}", table_columns(sweep), [table_cells(sweep, row) for row in sweep.rows])
    for line in verdict(sweep, force):
        console.say(line)
    if best := ranked_groups(sweep, force):
        console.say(f"best    {sweep.command_of(best[0].rows[0])}")
    if any(row.status not in GOOD or row.status == "not started" for row in sweep.rows):
        console.say("the same command continues the jobs that did not finish")
    for path in write(sweep, force):
        console.say(f"wrote   {os.path.relpath(path)}")


def write(sweep: Sweep, force: bool = False) -> list[Path]:
    """Write sweep.csv and report.html to the sweep's folder. Returns their paths."""
    table, report = sweep.folder / "sweep.csv", sweep.folder / "report.html"
    for path, content in ((table, as_csv(sweep)), (report, render(sweep, force))):
        write_text(path, content, several_writers=True)
    return [table, report]


def render(sweep: Sweep, force: bool = False) -> str:
    """The page, as HTML. The template run/report/templates/sweep.html leaves out sections without data."""
    planned = [row for row in sweep.rows if not row.longer]
    done = sum(row.finished for row in planned)
    hours = sum(row.hours_spent for row in sweep.rows)
    tiles = [("Jobs finished", f"{done} of {len(planned)}"), ("Hours spent", f"{hours:.3g}")]
    best = ranked_groups(sweep, force)
    if best:
        tiles.append((f"Best {in_words(sweep.metric)}", f"{best[0].mean:.4f}"))
    if sweep.noise is not None:
        tiles.append(("Noise (std between seeds)", f"{sweep.noise:.4f}"))
    with_result = [row for row in sweep.rows if row.result]
    return page.render(
        "sweep.html",
        title=f"Sweep {sweep.name}",
        outcome="finished" if done == len(planned) else "stopped",
        tiles=tiles,
        verdict=verdict(sweep, force),
        best_command=sweep.command_of(best[0].rows[0]) if best else "",
        metric=in_words(sweep.metric),
        knob_pictures=_option_pictures(sweep),
        curve_pictures=_curve_pictures(with_result[:MOST_CURVES], sweep.metric),
        legend=[(colour, row.short) for colour, row in zip(COLOURS, with_result, strict=False)],
        jobs_with_result=len(with_result),
        parallel_pictures=_parallel_pictures(sweep),
        job_heads=table_columns(sweep),
        jobs=[
            (os.path.relpath(row.run / "report.html", sweep.folder), row.number, table_cells(sweep, row)[1:])
            for row in sweep.rows
        ],
        hours=[(kind, f"{hours:.3g}", format_seconds(3600 * hours)) for kind, hours in hours_by_kind(sweep)],
        failed=[(row.number, row.label, row.status, row.why) for row in sweep.rows if row.status not in GOOD],
    )


# -- the metric against what was varied --------------------------------------------------------------------------------


def _option_pictures(sweep: Sweep) -> list[curves.Picture]:
    keys = [key for key in sweep.keys if key != "seed"] or sweep.keys
    if len(sweep.texts) > 1:  # scores on different text are not drawn on one axis
        keys = [key for key in keys if not changes_text(key)]
    return [_against(sweep, key) for key in keys] if sweep.groups else []


def _axis_positions(sweep: Sweep, key: str) -> tuple[dict[str, float], bool]:
    """The position of each value of an option on its axis, and whether the axis is numeric."""
    values = list(dict.fromkeys(row.settings[key] for row in sweep.rows))
    try:
        numbers = {value: float(value) for value in values}
        if all(math.isfinite(number) for number in numbers.values()):
            return numbers, True
    except ValueError:
        pass
    return {value: float(position) for position, value in enumerate(values)}, False


def _against(sweep: Sweep, key: str) -> curves.Picture:
    """The metric against an option. Each run is a point; lines join the means of runs that differ only in this option."""
    positions, numeric = _axis_positions(sweep, key)
    noise = sweep.noise

    def draw(axes: Axes) -> None:
        lines: dict[tuple[tuple[str, str], ...], list[tuple[float, float, int]]] = {}
        for group in sweep.groups:
            if key in group.settings:
                others = tuple((k, v) for k, v in group.settings.items() if k != key)
                lines.setdefault(others, []).append((positions[group.settings[key]], group.mean, len(group.rows)))
        for row in sweep.rows:
            if row.finished:
                x, y = positions[row.settings[key]], float(row.value or 0.0)
                axes.plot(x, y, "o", color=curves.BLUE, alpha=0.35, ms=4)
        for colour, (others, points) in zip(itertools.cycle(COLOURS), sorted(lines.items()), strict=False):
            points.sort()
            label = short_label(dict(others))
            places, means, runs = zip(*points, strict=True)
            bars = None if noise is None else [noise / math.sqrt(count) for count in runs]
            axes.errorbar(
                places, means, yerr=bars, marker="o", ms=5, lw=1.4, capsize=3, color=colour, label=label or None
            )
        if 1 < len(lines) <= len(COLOURS):
            axes.legend(fontsize=8)

    def ticks(axes: Axes) -> None:
        if numeric:
            positive = [position for position in positions.values() if position > 0]
            if len(positive) == len(positions) and max(positive) / min(positive) >= 8:
                axes.set_xscale("log")
            axes.set_xticks(sorted(positions.values()))
            axes.minorticks_off()
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        else:
            axes.set_xticks(list(positions.values()), [value.rsplit("/", 1)[-1] for value in positions])

    return curves.picture(f"{in_words(sweep.metric)} against {key}", key, draw, ticks)


# -- curves ------------------------------------------------------------------------------------------------------------


def _curve_pictures(rows: list[Row], metric: str) -> list[curves.Picture]:
    """Validation loss of the interim evaluations of each run, against hours, FLOPs and tokens.

    If the sweep's metric is bits per byte or a task, that is drawn instead of the loss.
    """
    key, name = curve_of(metric)
    curves_by_run = {row.name: points for row in rows if len(points := evaluations(read_metrics(row.run))) > 1}
    if not curves_by_run:
        return []

    def drawing(axis: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for colour, row in zip(COLOURS, rows, strict=False):
                points = curves_by_run.get(row.name, [])
                x, y = finite(column(points, axis), column(points, key))
                if len(x):
                    axes.plot(x, y, color=colour, lw=1.3)
            axes.set_ylabel(name)
            values = np.concatenate([column(points, key) for points in curves_by_run.values()])
            if np.isfinite(values).any() and not is_task(metric):
                _crop_initial_fall(axes, values[np.isfinite(values)])

        return draw

    return [
        curves.picture(
            f"{name[0].upper()}{name[1:]} against {label}",
            label,
            drawing(axis),
            curves.axis(form) if form else curves.time_axis,
        )
        for axis, label, form in AXES
    ]


def curve_of(metric: str) -> tuple[str, str]:
    """The key in metrics.jsonl of what is drawn over time for a sweep's metric, and its name."""
    if is_task(metric):
        return f"task_{metric}", f"{in_words(metric)} at interim evaluations"
    if metric == BITS_PER_BYTE:
        return "val_bits_per_byte", "validation bits per byte"
    return "val_loss", "validation loss"


def _crop_initial_fall(axes: Axes, losses: np.ndarray) -> None:
    """Cut off the steep fall at the beginning, so that the ends of the curves can be told apart."""
    low, high = float(losses.min()), float(np.quantile(losses, 0.9))
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _parallel_pictures(sweep: Sweep) -> list[curves.Picture]:
    """Parallel coordinates of the options and the metric, if more than two options vary."""
    keys = [key for key in sweep.keys if key != "seed"]
    rows = sweep.finished
    if len(keys) < 3 or len(rows) < 2 or len(sweep.texts) > 1:
        return []
    scales = [_axis_positions(sweep, key)[0] for key in keys]
    values = np.array([float(row.value or 0.0) for row in rows])

    def unit(x: np.ndarray) -> np.ndarray:
        return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else np.full_like(x, 0.5)

    heights = [
        unit(np.array([scale[row.settings[key]] for row in rows])) for scale, key in zip(scales, keys, strict=True)
    ]
    matrix = np.stack([*heights, unit(values)], axis=1)

    def draw(axes: Axes) -> None:
        from matplotlib import colormaps

        for line, share in zip(matrix, unit(values), strict=True):
            axes.plot(range(len(keys) + 1), line, color=colormaps["viridis"](1 - share), alpha=0.8, lw=1.2)
        axes.set_yticks([0, 1], ["low", "high"])

    def ticks(axes: Axes) -> None:
        axes.set_xticks(range(len(keys) + 1), [*(key.split(".")[-1] for key in keys), in_words(sweep.metric)])

    return [curves.picture(f"The options of every run and its {in_words(sweep.metric)}", "", draw, ticks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=user_path, nargs="+", help="outputs/sweeps/NAME")
    parser.add_argument(
        "--force",
        action="store_true",
        help="rank jobs although they ran on different devices or were scored on different text",
    )
    options = parser.parse_args()
    for folder in options.folder:
        sweep = read_sweep(folder)
        if not sweep.rows:
            raise UserError(f"{folder} has no job that has ended; wait for the first one")
        show_sweep(sweep, Console(required=True), options.force)


if __name__ == "__main__":
    with reported():
        main()
