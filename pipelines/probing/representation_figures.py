"""Figures of a representation: its spectrum, and a map in four colorings."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")

_MOST_NAMED = 8  # more names than this are colored without a legend


def spectrum_figure(spectra: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw the share of the variance along each principal direction, by network."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, shares in spectra.items():
        drawn = shares[shares > 1e-8]
        axis.plot(np.arange(1, len(drawn) + 1), drawn, label=name.replace("_", " "))
    axis.set_yscale("log")
    axis.set_xlabel("principal direction")
    axis.set_ylabel("share of variance")
    axis.legend(fontsize=8)
    return figure


def map_figure(places: NDArray[np.float64], colorings: Mapping[str, NDArray[np.generic]]) -> Figure:
    """Draw the map once for each coloring: numbers on a color scale, names in distinct colors."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for axis, (title, values) in zip(axes, colorings.items(), strict=False):
        if np.issubdtype(values.dtype, np.floating):
            drawn = axis.scatter(places[:, 0], places[:, 1], c=values, s=10, cmap="viridis")
            figure.colorbar(drawn, ax=axis)
        else:
            _scatter_names(axis, places, values.astype(str))
        axis.set_title(title)
        axis.set_xlabel("principal component 1")
        axis.set_ylabel("principal component 2")
    return figure


def _scatter_names(axis: Axes, places: NDArray[np.float64], names: NDArray[np.str_]) -> None:
    distinct = np.unique(names)
    if len(distinct) > _MOST_NAMED:
        code = np.searchsorted(distinct, names) * 7 % 20  # neighbors in the alphabet get different colors
        axis.scatter(places[:, 0], places[:, 1], c=code, s=10, cmap="tab20")
        return
    for name in distinct:
        own = places[names == name]
        axis.scatter(own[:, 0], own[:, 1], s=10, label=name or "unknown")
    axis.legend(fontsize=8)
