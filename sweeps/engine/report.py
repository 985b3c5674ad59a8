"""The answer of a sweep: a table, a CSV and one self-contained page.

    python -m sweeps.engine.report outputs/sweeps/NAME

Written at the end of every sweep, whatever it ended with, and again by this command, e.g. while jobs still run elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError, reported
from common.format import format_count, format_seconds
from common.json_io import write_text
from run.history import column, evaluations, finite, read_metrics
from run.report import html as page
from run.report import plots as curves
from run.report.console import Console
from sweeps.engine.job import GOOD
from sweeps.engine.table import Row, Sweep, as_csv, cells_of, columns_of, hours_of, ranked, read_sweep, short, verdict

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
    """The end of a sweep: its table, its verdict, its report; what cannot be made costs a warning."""
    console = Console()
    try:
        sweep = read_sweep(folder)
        if sweep.rows:
            show_sweep(sweep, console)
    except Exception as error:  # whatever a plotting library thinks of: the runs are worth more than their picture
        console.warn(f"no report of the sweep: {type(error).__name__}: {error}")


def show_sweep(sweep: Sweep, console: Console, force: bool = False) -> None:
    """Print the table and the verdict, and write the files."""
    console.table(f"Sweep {sweep.name}", columns_of(sweep), [cells_of(sweep, row) for row in sweep.rows])
    for line in verdict(sweep, force):
        console.say(line)
    if best := ranked(sweep, force):
        console.say(f"again   {sweep.command_of(best[0].rows[0])}")
    if any(row.status not in GOOD or row.status == "not started" for row in sweep.rows):
        console.say("the same command tries again what did not finish")
    for path in write(sweep, force):
        console.say(f"wrote   {os.path.relpath(path)}")


def write(sweep: Sweep, force: bool = False) -> list[Path]:
    """sweep.csv and report.html in the sweep's folder."""
    table, report = sweep.folder / "sweep.csv", sweep.folder / "report.html"
    for path, content in ((table, as_csv(sweep)), (report, render(sweep, force))):
        write_text(path, content, several_writers=True)
    return [table, report]


def render(sweep: Sweep, force: bool = False) -> str:
    """The page. run/report/templates/sweep.html says what is shown where, and leaves out the sections without data."""
    asked_for = [row for row in sweep.rows if not row.longer]
    done = sum(row.finished for row in asked_for)
    hours = sum(row.hours_spent for row in sweep.rows)
    tiles = [("Jobs finished", f"{done} of {len(asked_for)}"), ("Hours spent", f"{hours:.3g}")]
    best = ranked(sweep, force)
    if best:
        tiles.append((f"Best {sweep.metric}", f"{best[0].mean:.4f}"))
    if sweep.noise is not None:
        tiles.append(("Noise of one run", f"{sweep.noise:.4f}"))
    with_result = [row for row in sweep.rows if row.result]
    return page.render(
        "sweep.html",
        title=f"Sweep {sweep.name}",
        outcome="finished" if done == len(asked_for) else "stopped",
        tiles=tiles,
        verdict=verdict(sweep, force),
        best_command=sweep.command_of(best[0].rows[0]) if best else "",
        metric=sweep.metric,
        knob_pictures=_knob_pictures(sweep),
        curve_pictures=_curve_pictures(with_result[:MOST_CURVES]),
        legend=[(colour, row.short) for colour, row in zip(COLOURS, with_result, strict=False)],
        jobs_with_result=len(with_result),
        parallel_pictures=_parallel_pictures(sweep),
        job_heads=columns_of(sweep),
        jobs=[(_link(sweep, row), row.number, cells_of(sweep, row)[1:]) for row in sweep.rows],
        hours=[(kind, f"{hours:.3g}", format_seconds(3600 * hours)) for kind, hours in hours_of(sweep)],
        failed=[(row.number, row.label, row.status, row.why) for row in sweep.rows if row.status not in GOOD],
    )


def _link(sweep: Sweep, row: Row) -> str:
    return os.path.relpath(row.run / "report.html", sweep.folder)


# -- the metric against what was varied --------------------------------------------------------------------------------


def _knob_pictures(sweep: Sweep) -> list[curves.Picture]:
    keys = [key for key in sweep.keys if key != "seed"] or sweep.keys
    return [_against(sweep, key) for key in keys] if sweep.groups else []


def _places(sweep: Sweep, key: str) -> tuple[dict[str, float], bool]:
    """Where each value of a knob stands on the axis, and whether that axis is one of numbers."""
    values = list(dict.fromkeys(row.settings[key] for row in sweep.rows))
    try:
        numbers = {value: float(value) for value in values}
        if all(math.isfinite(number) for number in numbers.values()):
            return numbers, True
    except ValueError:
        pass
    return {value: float(place) for place, value in enumerate(values)}, False


def _against(sweep: Sweep, key: str) -> curves.Picture:
    """Every run as a point; lines join the means of runs that differ in this knob (and the seed) alone."""
    places, numeric = _places(sweep, key)
    noise = sweep.noise

    def draw(axes: Axes) -> None:
        lines: dict[tuple[tuple[str, str], ...], list[tuple[float, float, int]]] = {}
        for group in sweep.groups:
            if key in group.settings:
                others = tuple((k, v) for k, v in group.settings.items() if k != key)
                lines.setdefault(others, []).append((places[group.settings[key]], group.mean, len(group.rows)))
        for row in sweep.rows:
            if row.finished:
                axes.plot(places[row.settings[key]], float(row.value or 0.0), "o", color=curves.BLUE, alpha=0.35, ms=4)
        for colour, (others, points) in zip(itertools.cycle(COLOURS), sorted(lines.items()), strict=False):
            points.sort()
            label = short(dict(others))
            x, y = [p[0] for p in points], [p[1] for p in points]
            bars = [noise / math.sqrt(p[2]) for p in points] if noise is not None else None
            axes.errorbar(x, y, yerr=bars, marker="o", ms=5, lw=1.4, capsize=3, color=colour, label=label or None)
        if 1 < len(lines) <= len(COLOURS):
            axes.legend(fontsize=8)

    def ticks(axes: Axes) -> None:
        if numeric:
            positive = [place for place in places.values() if place > 0]
            if len(positive) == len(places) and max(positive) / min(positive) >= 8:
                axes.set_xscale("log")
            axes.set_xticks(sorted(places.values()))
            axes.xaxis.set_minor_locator(_no_ticks())
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        else:
            axes.set_xticks(list(places.values()), [value.rsplit("/", 1)[-1] for value in places])

    return curves.picture(f"{sweep.metric} against {key}", key, draw, ticks)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


# -- curves ------------------------------------------------------------------------------------------------------------


def _curve_pictures(rows: list[Row]) -> list[curves.Picture]:
    found = {row.name: points for row in rows if len(points := evaluations(read_metrics(row.run))) > 1}
    if not found:
        return []

    def drawing(axis: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for colour, row in zip(COLOURS, rows, strict=False):
                points = found.get(row.name, [])
                x, y = finite(column(points, axis), column(points, "val_loss"))
                if len(x):
                    axes.plot(x, y, color=colour, lw=1.3)
            axes.set_ylabel("validation loss")
            every = np.concatenate([column(points, "val_loss") for points in found.values()])
            _focus(axes, every[np.isfinite(every)])

        return draw

    return [
        curves.picture(
            f"Validation loss against {label}", label, drawing(axis), curves.axis(form) if form else curves.time_axis
        )
        for axis, label, form in AXES
    ]


def _focus(axes: Axes, losses: np.ndarray) -> None:
    """Leave the first steep fall to the upper edge, so that the ends can be told apart."""
    low, high = float(losses.min()), float(np.quantile(losses, 0.9))
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _parallel_pictures(sweep: Sweep) -> list[curves.Picture]:
    """Parallel coordinates, where more than two knobs vary."""
    keys = [key for key in sweep.keys if key != "seed"]
    rows = [row for row in sweep.rows if row.finished]
    if len(keys) < 3 or len(rows) < 2:
        return []
    scales = [_places(sweep, key)[0] for key in keys]
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
        axes.set_xticks(range(len(keys) + 1), [*(key.split(".")[-1] for key in keys), sweep.metric])

    return [curves.picture(f"Every run through its options to its {sweep.metric}", "", draw, ticks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="outputs/sweeps/NAME")
    parser.add_argument("--force", action="store_true", help="rank jobs of different devices by hours all the same")
    options = parser.parse_args()
    for folder in options.folder:
        sweep = read_sweep(folder)
        if not sweep.rows:
            raise UserError(f"{folder} holds no job that has ended")
        show_sweep(sweep, Console(), options.force)


if __name__ == "__main__":
    with reported():
        main()
