"""Image baselines of nodules without a network: pixels and a measured diameter; a contact sheet."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import Cohort, NoNodulesError
from pipelines.figures.nodule_pictures import draw_crop, said_of
from pipelines.nodule.baselines import folds_of, labels_of, score_baseline
from pipelines.nodule.config import NodulesConfig
from pipelines.nodule.labeled import nodule_set, warn_of_doubtful_places
from pipelines.nodule.lidc_masks import read_mask
from pipelines.runtime.image_axes import image_axes
from pipelines.runtime.plot_style import BENIGN, MALIGNANT, new_figure
from probes.labels import Labeled
from probes.nodule_rays import image_diameter_mm
from probes.pixels import PIXEL_OUT_PX, PIXEL_SIZE_MM, pixel_scores
from probes.splits import Splits
from transforms.geometry import VolumeGeometry
from transforms.nodule_crop import CropSpec
from transforms.nodule_sampling import place
from transforms.refusal import number_of

PIXEL_SPEC = CropSpec(size_mm=PIXEL_SIZE_MM, out_px=PIXEL_OUT_PX)
WIDE_SPEC = CropSpec(size_mm=50.0, out_px=100)
"""Holds every nodule; image diameters and the contact sheet are made from it."""

_SHEET_ROWS, _SHEET_COLUMNS = 5, 8


@dataclass(frozen=True)
class ImagedNodules:
    """Labeled nodules with their crops.

    Attributes:
        table: One row per nodule.
        wide_hu: (n, 3, P, P) HU, crops under `WIDE_SPEC`.
        dropped: nodule_id and reason of each nodule without a label or a crop.
        splits: Patient folds over the rows of `table`; None where a class has too few patients.
        baselines: Rows of `score_by_stratum` for each baseline.
    """

    table: pd.DataFrame
    wide_hu: NDArray[np.float32]
    dropped: pd.DataFrame
    splits: Splits | None
    baselines: pd.DataFrame


def measure_images(cohort: Cohort, labeled: Labeled, settings: NodulesConfig) -> ImagedNodules | None:
    """Crop the nodules and measure the baselines that read images.

    Args:
        cohort: A cohort with volumes.
        labeled: Its nodules under one rule.
        settings: Folds and draws.

    Returns:
        The nodules that can be cropped; None, and a printed reason, where none can.
    """
    rule = labeled.counts.rule
    try:
        small = nodule_set(cohort, rule, PIXEL_SPEC)
    except NoNodulesError as reason:
        print(f"pixels: not measured: {reason}")
        return None
    print(
        Accounting.of(
            "nodules", small.labeled.counts.n_given, "cropped", len(small.labels), small.dropped["kind"]
        )
    )
    warn_of_doubtful_places(small)
    wide = nodule_set(cohort, rule, WIDE_SPEC)
    nodules = small.table
    diameters = image_diameter_mm(wide.crops_hu[:, 1], WIDE_SPEC.mm_per_px)
    tables = [score_baseline("image_diameter", nodules, diameters, settings)]
    if len(nodules) < labeled.counts.n_labeled:
        tables.append(score_baseline("diameter_where_imaged", nodules, nodules["diameter_mm"], settings))
    splits = folds_of("pixels", nodules, settings)
    if splits is not None:
        scores = pixel_scores(small.crops_hu, labels_of(nodules), splits)
        tables.append(score_baseline("pixels", nodules, scores, settings))
        if small.is_replicated.any():
            whole = ~small.is_replicated
            tables.append(score_baseline("pixels_without_repeats", nodules[whole], scores[whole], settings))
    baselines = pd.concat(tables, ignore_index=True)
    return ImagedNodules(nodules, wide.crops_hu, small.dropped, splits, baselines)


def contact_sheet(cohort: Cohort, nodules: ImagedNodules) -> Figure:
    """Show crops from the smallest nodule to the largest: consensus outline, or a ring of the readers' diameter."""
    table = nodules.table
    order = np.argsort(table["diameter_mm"].to_numpy())
    n_shown = min(_SHEET_ROWS * _SHEET_COLUMNS, len(order))
    shown = order[np.linspace(0, len(order) - 1, n_shown).astype(np.int64)]
    n_columns = min(_SHEET_COLUMNS, n_shown)
    n_rows = -(-n_shown // n_columns)
    n = f"{n_shown} of {number_of(len(table), 'nodule')}, from the smallest to the largest: diameter, readers' ratings"
    meaning = "orange: malignant, blue: benign; outline: at least half of the readers; dotted ring: readers' diameter"
    figure = new_figure(1.35 * max(n_columns, 4), 1.5 * n_rows + 0.6, f"{n}\n{meaning}")
    axes = image_axes(figure, n_rows, n_columns)
    series = cohort.series.set_index("volume_id")
    half = WIDE_SPEC.size_mm / 2
    for axis, number in zip(axes.flat, shown.tolist(), strict=False):
        nodule = table.iloc[number]
        draw_crop(axis, nodules.wide_hu[number, 1], WIDE_SPEC.size_mm, said_of(nodule))
        color = MALIGNANT if nodule["is_malignant"] else BENIGN
        outline = _outline(cohort, nodule, series.loc[nodule["volume_id"]])
        if outline is None and nodule["diameter_mm"] > 0:
            ring = Circle(
                (0, 0), nodule["diameter_mm"] / 2, fill=False, color=color, linewidth=1.2, linestyle=":"
            )
            axis.add_patch(ring)
        elif outline is not None:
            axis.contour(*outline, levels=[0.5], colors=[color], linewidths=0.9)
        axis.set(xlim=(-half, half), ylim=(half, -half))  # the ring and the outline would move it
    return figure


def _outline(
    cohort: Cohort, nodule: Any, series: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]] | None:
    """The mask on the center slice with the mm from the center of its columns and rows; None without a mask."""
    found = read_mask(cohort.root, nodule["nodule_id"])
    if found is None:
        return None
    center = [nodule["x_lps_mm"], nodule["y_lps_mm"], nodule["z_lps_mm"]]
    at = place(VolumeGeometry.from_row(series), center)
    number = at.slice_index - int(found.start_zyx[0])
    if not 0 <= number < len(found.mask):
        return None
    # One voxel of margin closes the outline where the mask touches its box.
    mask = np.pad(found.mask[number], 1)
    rows, columns = (
        (np.arange(length) + start - 1 - middle) * step * spacing
        for length, start, middle, step, spacing in zip(
            mask.shape,
            found.start_zyx[1:],
            at.index_zyx[1:],
            at.steps_zyx[1:],
            at.spacing_mm[1:],
            strict=True,
        )
    )
    return columns, rows, mask
