"""Draws scores as dots with their intervals, one row for each, with the label of a row above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from run.report.format_figures import percent
from run.report.plots import BLUE, ORANGE, Picture, axis, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#94a3b8"
ROW_INCHES, FRAME_INCHES = 0.36, 0.75  # the height of a row, and of the axis and the legend
LABEL_LENGTH = 56  # characters that fit above a row


@dataclass(frozen=True)
class Dot:
    """A row: a score from 0 to 1, its interval, the score of guessing and that of the baseline, where they are known."""

    label: str
    score: float
    ends: tuple[float, float] | None = None
    chance: float | None = None
    baseline: float | None = None


def dot_plot(title: str, dots: Sequence[Dot]) -> Picture:
    """Draw the dots in the order given, the first on top."""

    def draw(axes: Axes) -> None:
        axes.figure.subplots_adjust(left=0.03, right=0.97)
        axes.spines["left"].set_visible(False)
        axes.grid(False, axis="y")
        places = [-float(row) for row in range(len(dots))]
        for place, dot in zip(places, dots, strict=True):
            label = dot.label if len(dot.label) <= LABEL_LENGTH else f"{dot.label[: LABEL_LENGTH - 1]}…"
            # A label is text of a file: $ in it must not start a formula.
            axes.text(
                0, place + 0.34, label, transform=axes.get_yaxis_transform(), size=8, va="center", parse_math=False
            )
            if dot.ends:
                axes.plot(dot.ends, (place, place), color=BLUE, linewidth=2, alpha=0.55, solid_capstyle="round")
        for marker, colour, name, values in (
            ("|", GREY, "chance", [dot.chance for dot in dots]),
            ("D", ORANGE, "baseline", [dot.baseline for dot in dots]),
            ("o", BLUE, "score, 95 %" if any(dot.ends for dot in dots) else "score", [dot.score for dot in dots]),
        ):
            known = [(value, place) for value, place in zip(values, places, strict=True) if value is not None]
            if known:
                size = {"|": 11, "D": 4}.get(marker, 5.5)
                axes.plot(
                    *zip(*known, strict=True),
                    marker,
                    color=colour,
                    ms=size,
                    label=name,
                    mew=1.6 if marker == "|" else 0,
                )
        axes.set_yticks([])
        axes.set_ylim(places[-1] - 0.5, 0.6)
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8, borderaxespad=0, handletextpad=0.2
        )
        axes.figure.subplots_adjust(top=1 - 0.24 / height)

    height = FRAME_INCHES + ROW_INCHES * len(dots)
    return picture(title, "", draw, axis(percent), height)
