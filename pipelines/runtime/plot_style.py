"""The one style of all figures: told apart without color vision and in a gray print, legible at a journal's width.

Importing it draws without a display, and sets matplotlib's sizes for this process: ticks are made only when a figure is
saved, so that a style which holds while a figure is built would not reach them.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRINT_DPI = 300
"""Of figures that a run logs once."""
STEP_DPI = 150
"""Of pictures that a run logs at every evaluation: a hundred of them."""

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "figure.titlesize": 8,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "legend.handlelength": 3.2,
    }
)


class Stroke(NamedTuple):
    """How one line is drawn: no two share a dash pattern or a marker, so that color is never needed to tell them."""

    color: str
    linestyle: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of `plot` for a line without markers."""
        return {"color": self.color, "linestyle": self.linestyle}


STROKES = (
    Stroke("#0072B2", "-", "o"),
    Stroke("#D55E00", "--", "s"),
    Stroke("#009E73", "-.", "^"),
    Stroke("#CC79A7", (0, (1, 1)), "D"),
    Stroke("#E69F00", (0, (7, 1.5)), "v"),
    Stroke("#56B4E9", (0, (3, 1, 1, 1, 1, 1)), "P"),
    Stroke("#000000", (0, (5, 4)), "X"),
    Stroke("#6F6F6F", (0, (1, 3)), "*"),
)
"""Okabe and Ito's palette (2008), with a darker gray: its light gray is lost on white paper."""
BENIGN, MALIGNANT = "#56B4E9", "#D55E00"
"""Light and dark, also in gray."""
REFERENCE: dict[str, Any] = {"color": "#555555", "linewidth": 0.9, "linestyle": (0, (2, 2))}
"""Lines that belong to no run: chance, ln K, zero."""
BAND_ALPHA = 0.18


def stroke(number: int) -> Stroke:
    """Return the stroke of the line with this number; after eight they begin again."""
    return STROKES[number % len(STROKES)]


def new_figure(width_in: float, height_in: float, title: str = "") -> Figure:
    """Make a figure without a display; the title says what of, with n."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    if title:
        figure.suptitle(_wrapped(title, width_in))
    return figure


def sign(figure: Figure, *parts: str) -> None:
    """Put a line with the run's name and cohort above the title; empty parts are left out."""
    text = " · ".join(filter(None, parts))
    if text:
        width_in, own = float(figure.get_size_inches()[0]), figure.get_suptitle()
        figure.suptitle("\n".join(filter(None, [_wrapped(text, width_in), own])))


def band(axis: Axes, x: Any, low: Any, high: Any, color: str, label: str = "") -> None:
    """Shade an interval."""
    axis.fill_between(x, low, high, color=color, alpha=BAND_ALPHA, linewidth=0, label=label or "_nolegend_")


def _wrapped(text: str, width_in: float) -> str:
    characters = int(width_in * 72 / (0.55 * 8))  # a letter is about half as wide as it is high
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, characters))
