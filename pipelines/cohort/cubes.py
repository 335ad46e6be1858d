"""Which volumes of a cohort a cube fits, and the raw boxes that drawn cubes read, from the page cache."""

import numpy as np
import pandas as pd

from pipelines.cohort.tables import CohortError
from transforms.views.config import ViewConfig


def smallest_cube_mm(views: ViewConfig) -> tuple[float, float]:
    """Extent along z and side in the plane, in mm, of the smallest global cube."""
    side_mm = views.fov_mm[0]
    return views.depth_mm[0] if views.depth_mm else side_mm / views.size_px * views.depth_px, side_mm


def longest_cube_mm(views: ViewConfig) -> float:
    """Extent along z, in mm, of the longest global cube."""
    return views.depth_mm[1] if views.depth_mm else views.fov_mm[1] / views.size_px * views.depth_px


def fitting_volumes(series: pd.DataFrame, views: ViewConfig) -> tuple[pd.DataFrame, list[str]]:
    """Leave out the volumes that are smaller than the smallest global cube.

    Args:
        series: Rows of series.parquet.
        views: Settings of cubes.

    Returns:
        The rows that stay, and what is to be said: how many were left out, and how many are coarser than the cubes.

    Raises:
        CohortError: If a volume is a patch around a nodule, or none is left.
    """
    n_patches = int((series["kind"] == "patch").sum())
    if n_patches:
        raise CohortError(
            f"{n_patches} of {len(series)} volumes are patches that were cut to the length of a nodule, which tells its"
            " label: cubes (views.depth_px) need whole series, and patches give slice triplets alone"
        )
    shape = np.array([tuple(one) for one in series["shape"]], dtype=np.float64).reshape(-1, 3)
    spacing_mm = np.array([tuple(one) for one in series["spacing_mm"]], dtype=np.float64).reshape(-1, 3)
    sides_mm = shape * spacing_mm
    depth_mm, side_mm = smallest_cube_mm(views)
    # A box is in mm and lengths are products of rounded numbers: one that fits exactly fits.
    fits = np.all(sides_mm >= np.array([depth_mm, side_mm, side_mm]) * (1 - 1e-6), axis=1)
    size = f"{depth_mm:g} x {side_mm:g} x {side_mm:g} mm (z, y, x)"
    if len(series) and not fits.any():
        largest = " x ".join(f"{side:.0f}" for side in sides_mm[sides_mm.min(axis=1).argmax()])
        raise CohortError(
            f"none of {len(series)} volumes holds the smallest cube of {size}, the largest is {largest} mm;"
            " lower views.fov_mm and views.depth_mm"
        )
    said = [f"{(~fits).sum()} of {len(fits)} volumes are smaller than the smallest cube of {size}: left out"]
    finest_mm = depth_mm / views.depth_px
    coarse_mm = spacing_mm[fits, 0][spacing_mm[fits, 0] > 2 * finest_mm]
    if len(coarse_mm):
        said.append(
            f"{len(coarse_mm)} of {fits.sum()} volumes have slices more than twice as far apart as the cubes' voxels of"
            f" {finest_mm:.2g} mm (up to {coarse_mm.max():g} mm): between slices cubes are interpolated"
        )
    return series.loc[fits], said[int(fits.all()) :]
