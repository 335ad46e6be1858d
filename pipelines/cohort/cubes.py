"""Which volumes of a cohort a cube fits, and the raw boxes that drawn cubes read, from the page cache."""

import numpy as np
import pandas as pd

from pipelines.cohort.tables import CohortError
from transforms.views.config import ViewConfig
from transforms.views.cubes import holds_a_cube, in_mm, smallest_cube_mm


def fitting_volumes(series: pd.DataFrame, views: ViewConfig) -> tuple[pd.DataFrame, list[str]]:
    """Leave out the volumes that are smaller than the smallest global cube.

    Args:
        series: Rows of series.parquet.
        views: Settings of cubes.

    Returns:
        The rows that stay, and what is to be said: how many were left out, and how many are coarser than the cubes.

    Raises:
        CohortError: If a volume is a patch around a nodule.
    """
    n_patches = int((series["kind"] == "patch").sum())
    if n_patches:
        raise CohortError(
            f"{n_patches} of {len(series)} volumes are patches that were cut to the length of a nodule, which tells its"
            " label: cubes (views.depth_px) need whole series, and patches give slice triplets alone"
        )
    shape = np.array([tuple(one) for one in series["shape"]], dtype=np.float64).reshape(-1, 3)
    spacing_mm = np.array([tuple(one) for one in series["spacing_mm"]], dtype=np.float64).reshape(-1, 3)
    sides_mm, depth_mm = shape * spacing_mm, smallest_cube_mm(views)[0]
    fits = holds_a_cube(views, sides_mm)
    size = in_mm(smallest_cube_mm(views))
    said = []
    if not fits.all():
        largest = in_mm(sides_mm[~fits][sides_mm[~fits].prod(axis=1).argmax()])
        said.append(
            f"{(~fits).sum()} of {len(fits)} volumes hold no cube of {size}, the smallest, and are left out; the"
            f" largest of them is {largest}"
        )
    finest_mm = depth_mm / views.depth_px
    coarse_mm = spacing_mm[fits, 0][spacing_mm[fits, 0] > 2 * finest_mm]
    if len(coarse_mm):
        said.append(
            f"{len(coarse_mm)} of {fits.sum()} volumes have slices more than twice as far apart as the cubes' voxels of"
            f" {finest_mm:.2g} mm (up to {coarse_mm.max():g} mm): between slices cubes are interpolated"
        )
    return series.loc[fits], said
