"""Figures of features: their spectrum, and a map of nodules in several colorings."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.figures.scores import row_name
from pipelines.runtime.plot_style import STROKES, new_figure, stroke
from transforms.refusal import number_of

Floats = NDArray[np.float64]

_MOST_NAMED = len(STROKES)
"""Of more names the most frequent are told apart, and the rest are one."""


def spectrum_figure(spectra: Mapping[str, Floats], n_nodules: int) -> Figure:
    """Draw the share of the variance along each principal direction, by network."""
    figure = new_figure(5.2, 3.6, f"Spectrum of the features of {number_of(n_nodules, 'nodule')}")
    axis = figure.subplots()
    for number, (name, shares) in enumerate(spectra.items()):
        drawn = shares[shares > 1e-8]
        axis.plot(np.arange(1, len(drawn) + 1), drawn, **stroke(number).line, label=row_name(name))
    axis.set(yscale="log", xlabel="principal direction, by variance", ylabel="share of variance")
    axis.set_xlim(left=1)
    axis.grid()
    axis.legend()
    return figure


def map_figure(places: Floats, colorings: Mapping[str, NDArray[np.generic]], title: str) -> Figure:
    """Draw the map of nodules once for each coloring: numbers on a color scale, names in colors and markers.

    Args:
        places: (n, 2), as `probes.representation.principal_map` returns them.
        colorings: By title, (n,) numbers, of which NaN is drawn as a gray cross, or names. A title that ends with
            "mm" has a logarithmic scale.
        title: What the map is of.
    """
    n_rows = -(-len(colorings) // 2)
    figure = new_figure(7.2, 3.2 * n_rows + 0.4, f"{title}, {number_of(len(places), 'nodule')}")
    axes = figure.subplots(n_rows, 2, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, (name, values) in zip(axes, colorings.items(), strict=False):
        if np.issubdtype(values.dtype, np.floating):
            _scatter_numbers(figure, axis, places, values.astype(np.float64), name)
        else:
            _scatter_names(axis, places, values.astype(str))
        axis.set(xlabel="principal component 1", ylabel="principal component 2")
        if axis.get_legend_handles_labels()[0]:  # Above its axes: no corner of a cloud is empty.
            axis.legend(title=name, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1)
        else:
            axis.set_title(name)
        axis.label_outer()
    for axis in axes[len(colorings) :]:
        axis.set_axis_off()
    return figure


def _scatter_numbers(figure: Figure, axis: Axes, places: Floats, values: Floats, name: str) -> None:
    is_known = np.isfinite(values)
    if not is_known.all():
        axis.scatter(
            places[~is_known, 0], places[~is_known, 1], s=8, marker="x", color="#999999", label="unknown"
        )
    if is_known.any():
        is_log = name.endswith("mm") and values[is_known].min() > 0
        drawn = axis.scatter(
            places[is_known, 0],
            places[is_known, 1],
            c=values[is_known],
            s=8,
            cmap="cividis",
            norm=LogNorm() if is_log else None,
        )
        bar = figure.colorbar(drawn, ax=axis)
        if is_log:
            low, high = values[is_known].min(), values[is_known].max()
            ticks = [one for one in (0.5, 1, 2, 3, 5, 10, 20, 40, 80) if low <= one <= high]
            bar.set_ticks(ticks, labels=[f"{one:g}" for one in ticks])
            bar.minorticks_off()


def _scatter_names(axis: Axes, places: Floats, names: NDArray[np.str_]) -> None:
    distinct, counts = np.unique(names, return_counts=True)
    ranked = distinct[np.argsort(-counts, kind="stable")].tolist()
    shown = ranked if len(ranked) <= _MOST_NAMED else ranked[: _MOST_NAMED - 1]
    for number, name in enumerate(shown):
        own, style = places[names == name], stroke(number)
        text = f"{name or 'unknown'} ({len(own)})"
        axis.scatter(
            own[:, 0],
            own[:, 1],
            s=9,
            color=style.color,
            marker=style.marker,
            linewidth=0,
            alpha=0.8,
            label=text,
        )
    if len(shown) < len(ranked):
        own, style = places[~np.isin(names, shown)], stroke(_MOST_NAMED - 1)
        text = f"{len(ranked) - len(shown)} others ({len(own)})"
        axis.scatter(
            own[:, 0], own[:, 1], s=9, color=style.color, marker=style.marker, linewidth=0, label=text
        )
