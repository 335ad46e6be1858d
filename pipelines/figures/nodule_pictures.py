"""Pictures of nodules: the most confident errors of a probe, nearest nodules of other patients, predicted masks.

All are crops, which `transforms.nodule_crop` lays as radiologists see them: the patient's right is on the left.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.runtime.ct_marks import RADIOLOGICAL, mark_ct
from pipelines.runtime.image_axes import image_axes
from pipelines.runtime.plot_style import BENIGN, MALIGNANT, new_figure
from transforms.refusal import number_of
from transforms.window_policy import CLINICAL_LUNG_HU

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Slices = NDArray[np.float32]

_PER_LINE = 6
_REFERENCE_COLOR, _PREDICTED_COLOR = "#E69F00", "#56B4E9"


def draw_crop(axis: Axes, crop_hu: Slices, size_mm: float, title: str = "") -> None:
    """Draw one axial crop (P, P) in HU with its sides, scale and window; the axes count mm from its center."""
    half = size_mm / 2
    low, high = CLINICAL_LUNG_HU
    axis.imshow(crop_hu, cmap="gray", vmin=low, vmax=high, extent=(-half, half, half, -half))
    mark_ct(axis, RADIOLOGICAL, 1.0, CLINICAL_LUNG_HU)
    axis.set_title(title, fontsize=6.5)


def said_of(nodule: Any) -> str:
    """Return diameter and readers' ratings of a row of the table of nodules."""
    diameter, ratings = nodule["diameter_mm"], nodule.get("malignancy_ratings")
    size = f"{diameter:.1f} mm" if np.isfinite(diameter) and diameter > 0 else "size unknown"
    known = "" if ratings is None else ",".join(f"{rating:.0f}" for rating in ratings)
    return f"{size}, rated {known}" if known else size


def errors_figure(
    table: pd.DataFrame, slices_hu: Slices, size_mm: float, scores: Floats, count: int = _PER_LINE
) -> Figure:
    """Show the most confident errors: malignant nodules with the lowest scores, benign ones with the highest.

    Args:
        table: Of the tested nodules, n rows with `is_malignant`, `diameter_mm` and `malignancy_ratings`.
        slices_hu: Their center slices, (n, P, P).
        size_mm: Side of these.
        scores: Out-of-fold probabilities, (n,).
        count: Nodules of each class at most.
    """
    is_malignant, order = table["is_malignant"].to_numpy(bool), np.argsort(scores, kind="stable")
    lowest = order[is_malignant[order]][:count]
    highest = order[~is_malignant[order]][::-1][:count]
    columns = max(len(lowest), len(highest), 3)
    n = f"{number_of(len(table), 'nodule')} ({int(is_malignant.sum())} malignant)"
    title = f"Most confident errors of {n}: score, diameter, readers' ratings"
    figure = new_figure(1.25 * columns + 0.2, 3.7, title)
    axes = image_axes(figure, 2, columns)
    lines = (("malignant", MALIGNANT, lowest), ("benign", BENIGN, highest))
    for line, (name, color, rows) in zip(axes, lines, strict=True):
        for axis, row in zip(line, rows.tolist(), strict=False):
            nodule = table.iloc[row]
            draw_crop(axis, slices_hu[row], size_mm, f"{name}, score {scores[row]:.2f}\n{said_of(nodule)}")
            _frame(axis, color)
    return figure


def nearest_figure(
    table: pd.DataFrame, slices_hu: Slices, size_mm: float, queries: Ints, nearest: Ints, cosine: Floats
) -> Figure:
    """Show nodules beside the nearest nodules of other patients, with diameter and readers' ratings.

    Args:
        table: Of the nodules, n rows.
        slices_hu: Their center slices, (n, P, P).
        size_mm: Side of these.
        queries: Rows to show, (q,).
        nearest: Rows of their nearest nodules, nearest first, (q, k).
        cosine: Of these with the query, (q, k).
    """
    columns = 1 + nearest.shape[1]
    title = (
        f"Nearest of {number_of(len(table), 'nodule')}, by cosine of the features, other patients' alone"
        "\nframe: orange malignant, blue benign"
    )
    figure = new_figure(1.35 * columns, 1.65 * max(len(queries), 1) + 0.4, title)
    axes = image_axes(figure, max(len(queries), 1), columns)
    for line, query, found, alike in zip(axes, queries.tolist(), nearest, cosine, strict=False):
        texts = ["query", *(f"cosine {one:.3f}" for one in alike)]
        for axis, row, text in zip(line, [query, *found.tolist()], texts, strict=True):
            nodule = table.iloc[row]
            draw_crop(axis, slices_hu[row], size_mm, f"{text}\n{said_of(nodule)}")
            _frame(axis, MALIGNANT if nodule["is_malignant"] else BENIGN, "-" if row == query else ":")
    return figure


def masks_figure(
    slices_hu: Slices,
    size_mm: float,
    masks: Sequence[NDArray[np.bool_]],
    predicted: Sequence[NDArray[np.bool_]],
    dice: Floats,
    title: str,
) -> Figure:
    """Show predicted masks (dashed) over reference masks (solid), with the Dice of each nodule.

    Args:
        slices_hu: (n, P, P).
        size_mm: Side of these.
        masks: Reference, (P, P) each.
        predicted: By a probe that never saw the patient, (P, P) each.
        dice: Of each nodule, (n,), in the whole cube where masks are of cubes.
        title: What is shown.
    """
    columns = min(len(slices_hu), 4)
    n_rows = -(-len(slices_hu) // max(columns, 1))
    figure = new_figure(1.8 * max(columns, 2), 1.95 * n_rows + 0.5, title)
    axes = image_axes(figure, n_rows, columns)
    on_tissue = [effects.withStroke(linewidth=2.2, foreground="black")]
    at = (np.arange(slices_hu.shape[-1]) + 0.5) / slices_hu.shape[-1] * size_mm - size_mm / 2
    for axis, hu, mask, found, value in zip(axes.flat, slices_hu, masks, predicted, dice, strict=False):
        draw_crop(axis, hu, size_mm, f"Dice {value:.2f}")
        axis.contour(at, at, mask, levels=[0.5], colors=_REFERENCE_COLOR, linewidths=1.2).set(
            path_effects=on_tissue
        )
        if found.any() and not found.all():
            lines: Any = {"linestyles": "dashed", "linewidths": 1.2}
            axis.contour(at, at, found, levels=[0.5], colors=_PREDICTED_COLOR, **lines).set(
                path_effects=on_tissue
            )
        axis.set(xlim=(-size_mm / 2, size_mm / 2), ylim=(size_mm / 2, -size_mm / 2))
    return figure


def _frame(axis: Axes, color: str, linestyle: str = "-") -> None:
    axis.set_axis_on()
    for spine in axis.spines.values():
        spine.set(visible=True, edgecolor=color, linewidth=2, linestyle=linestyle)
