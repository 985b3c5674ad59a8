"""Curves as inline SVG pictures, in the colours of the page around them."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.format import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 1000  # of one curve; more cannot be told apart on a screen and cost 20 bytes each
SMOOTHING = 0.01  # half width of the moving average, as a share of the run
INK = "#010203"  # drawn in this colour, then turned into currentColor: black by day, white by night
BLUE, ORANGE, GREEN = "#3b82f6", "#f97316", "#16a34a"  # legible on white and on black
FIGURE_INCHES = (5.0, 2.9)  # on the 390 pixels of a phone a letter of 10 pt stays 10 pixels high
TIME_STEPS_S = (1, 2, 5, 10, 15, 30, *(60 * m for m in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440)))
_SVG_METADATA = ("Date", "Creator", "Format", "Type")
_RC: Any = {
    "svg.fonttype": "none",
    # Fixed margins: fitting them to the labels would draw each picture twice.
    "figure.subplot.left": 0.135,
    "figure.subplot.right": 0.95,
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


class Picture(NamedTuple):
    """A chart for a page."""

    title: str
    svg: str  # markup


def picture(title: str, xlabel: str, draw: Callable[[Axes], None], ticks: Callable[[Axes], None]) -> Picture:
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
    return Picture(title, _inline(buffer.getvalue()))


def _inline(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows the names; the page shall name no other host
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in each picture, and nothing refers to them
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" ?', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*" ?', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor")


def axis(format_value: Callable[[float], str]) -> Callable[[Axes], None]:
    """Ticks whose labels `format_value` writes."""

    def set_up(axes: Axes) -> None:
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda value, _: format_value(value))

    return set_up


def time_axis(axes: Axes) -> None:
    """Hours as a clock counts them: ticks at whole seconds, minutes or hours."""
    from matplotlib.ticker import MultipleLocator

    low, high = axes.get_xlim()
    step = next((step for step in TIME_STEPS_S if (high - low) * 3600 / step <= 6), 24 * 3600 * math.ceil(high / 144))
    axes.xaxis.set_major_locator(MultipleLocator(step / 3600))
    axes.xaxis.set_major_formatter(lambda hours, _: _tick_time(hours))


def _tick_time(hours: float) -> str:
    return re.sub(r"(?<=[mhd])00[smh]$|\.0(?= s)", "", format_seconds(round(hours * 3600, 3) + 0.0))
