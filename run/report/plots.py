"""Draws charts as inline SVG that takes on the colours of the page."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.format import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 1000  # per curve; more are indistinguishable on a screen and cost 20 bytes each
SMOOTHING = 0.01  # half width of the moving average, as a share of the points
INK = "#010203"  # placeholder colour, replaced by currentColor to follow the light or dark scheme of the page
BLUE, ORANGE, GREEN = "#3b82f6", "#f97316", "#16a34a"  # legible on white and on black
FIGURE_INCHES = (5.0, 2.9)  # text of 10 pt is then 10 pixels high on a phone that is 390 pixels wide
TIME_STEPS_S = (1, 2, 5, 10, 15, 30, *(60 * m for m in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440)))
_SVG_METADATA = ("Date", "Creator", "Format", "Type")
_RC: Any = {
    "svg.fonttype": "none",
    # Fixed margins: fitting them to the labels would draw each picture twice.
    "figure.subplot.left": 0.135,
    "figure.subplot.right": 0.93,
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


def thin(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a curve: the minimum and maximum of each interval, so that no spike is lost."""
    if len(x) <= limit:
        return x, y
    edges = np.linspace(0, len(x), limit // 2 + 1).astype(int)
    parts = [(start, y[start:end]) for start, end in itertools.pairwise(edges)]
    keep = [start + offset for start, part in parts for offset in sorted((part.argmin(), part.argmax()))]
    return x[keep], y[keep]


def smooth(y: np.ndarray) -> np.ndarray:
    """A moving average over a share of 2 SMOOTHING of the points.

    The window starts at zero width to keep the steep beginning, and shrinks on the right side only towards the end, so that
    the last noisy point does not look like a turn.
    """
    index = np.arange(len(y))
    left = np.minimum(index, max(1, int(SMOOTHING * len(y))))
    right = np.minimum(left, index[::-1])
    sums = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)


class Picture(NamedTuple):
    """A chart: its title and its SVG markup."""

    title: str
    svg: str


def picture(
    title: str,
    xlabel: str,
    draw: Callable[[Axes], None],
    ticks: Callable[[Axes], None],
    height: float = FIGURE_INCHES[1],
) -> Picture:
    """A chart as inline SVG, `height` inches high. `draw` plots into its axes, `ticks` formats the x axis. Text stays text."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    above, below = (
        (edge * FIGURE_INCHES[1]) / height for edge in (1 - _RC["figure.subplot.top"], _RC["figure.subplot.bottom"])
    )
    margins = {"figure.subplot.top": 1 - above, "figure.subplot.bottom": below}
    with matplotlib.rc_context({**_RC, **margins, "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the glyphs that this font lacks
        figure = Figure(figsize=(FIGURE_INCHES[0], height))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(alpha=0.18)
        axes.set_xlabel(xlabel)
        draw(axes)
        axes.margins(x=0.02)
        ticks(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_SVG_METADATA))
    return Picture(title, _inline(buffer.getvalue()))


def _inline(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # not needed in HTML; a page must not name other hosts
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the ids repeat in every chart and are not used
    for size in ("width", "height"):  # the page scales it
        svg = re.sub(rf'(<svg [^>]*?){size}="[^"]*" ?', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor")


def axis(format_value: Callable[[float], str]) -> Callable[[Axes], None]:
    """Returns a function that labels the x axis by `format_value`."""

    def set_up(axes: Axes) -> None:
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda value, _: format_value(value))

    return set_up


def time_axis(axes: Axes) -> None:
    """Label an x axis in hours, with ticks at whole seconds, minutes or hours."""
    from matplotlib.ticker import MultipleLocator

    low, high = axes.get_xlim()
    step = next((step for step in TIME_STEPS_S if (high - low) * 3600 / step <= 6), 24 * 3600 * math.ceil(high / 144))
    axes.xaxis.set_major_locator(MultipleLocator(step / 3600))
    axes.xaxis.set_major_formatter(
        lambda hours, _: re.sub(r"(?<=[mhd])00[smh]$|\.0(?= s)", "", format_seconds(round(hours * 3600, 3) + 0.0))
    )
