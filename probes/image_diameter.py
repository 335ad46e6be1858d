"""A nodule's diameter measured in the image: no reader's contour, no network."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from probes.statistics.checks import Floats

LUNG_HU = -850.0
_N_RAYS, _STEP_MM, _CORE_MM = 64, 0.25, 1.5
_DARKEST_EDGE_HU = -750.0


def image_diameter_mm(slices_hu: npt.NDArray[Any], mm_per_px: float) -> Floats:
    """Twice the median distance from the center to the edge, over rays in all directions.

    The edge is where HU first fall half-way from the nodule's core to lung. The median over the rays passes over
    vessels and pleura that touch the nodule on less than half of its outline.

    Args:
        slices_hu: (N, P, P) HU, each with a nodule in the middle.
        mm_per_px: Pixel size.

    Returns:
        Diameter in mm, (N,); at most the side of the crop less one pixel.
    """
    n_px = slices_hu.shape[-1]
    middle = (n_px - 1) / 2
    rows, columns = np.mgrid[:n_px, :n_px] - middle
    core = np.hypot(rows, columns) * mm_per_px <= max(_CORE_MM, 0.75 * mm_per_px)
    angles = np.arange(_N_RAYS) * (2 * np.pi / _N_RAYS)
    radii_mm = np.arange(0.0, middle * mm_per_px, _STEP_MM)
    along = middle + np.stack([np.sin(angles), np.cos(angles)])[:, :, None] * (radii_mm / mm_per_px)
    diameters = np.empty(len(slices_hu))
    for number, slice_hu in enumerate(slices_hu):
        core_hu = np.percentile(slice_hu[core], 90)
        edge_hu = max((core_hu + LUNG_HU) / 2, _DARKEST_EDGE_HU)
        is_outside = map_coordinates(np.asarray(slice_hu, dtype=np.float64), along, order=1) < edge_hu
        reached = np.where(is_outside.any(axis=1), radii_mm[is_outside.argmax(axis=1)], radii_mm[-1])
        diameters[number] = 2 * np.median(reached)
    return diameters
