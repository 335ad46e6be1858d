"""Axes for figures that hold images alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


def image_axes(figure: FigureBase, rows: int, columns: int) -> NDArray[Any]:
    """Add axes (rows, columns) without frames; ticks that nobody sees would take longer to lay out than the images."""
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for axis in axes.flat:
        axis.set_axis_off()
    return np.asarray(axes)
