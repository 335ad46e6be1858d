"""A volume of a cohort as the MetaTensor that MONAI's transforms take, mapped and not read; a crop out of it."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike

from pipelines.cohort.folder import Cohort
from transforms.geometry import VolumeGeometry
from transforms.meta_volume import meta_volume
from transforms.nodule import NoduleCrop
from transforms.nodule_crop import Crop, CropSpec


def mapped_volume(cohort: Cohort, row: Mapping[Any, Any]) -> MetaTensor:
    """Return a volume as `LoadDicomSeries` would, without reading it: pages are read from disk at first use.

    Args:
        cohort: Where it lies.
        row: Its row of series.parquet.

    Returns:
        (1, Z, Y, X) int16 HU; `meta` has its `kind` and `series_uid`.
    """
    mapped = cohort.volume(str(row["volume_id"]))
    # torch has no read-only memory and would warn: mapped copy-on-write, the file is as safe and nothing is copied.
    private = np.memmap(str(mapped.filename), mapped.dtype, "c", mapped.offset, mapped.shape)
    meta = {"kind": str(row["kind"]), "series_uid": str(row["series_uid"])}
    return meta_volume(private, VolumeGeometry.from_row(row), meta)


def crop_at(
    cohort: Cohort,
    row: Mapping[Hashable, Any],
    center_lps_mm: ArrayLike,
    spec: CropSpec,
    diameter_mm: float | None = None,
) -> Crop:
    """Crop a volume around a point.

    Args:
        cohort: Where the volume lies.
        row: Of series.parquet.
        center_lps_mm: Center of the crop, LPS mm.
        spec: Form and size.
        diameter_mm: Of the nodule; read by the control arm `size_in_diameters` alone.

    Raises:
        NoCropError: If there is no such crop; see `transforms.nodule_crop.crop_nodule`.
    """
    crop = NoduleCrop(spec)
    hu = crop(mapped_volume(cohort, row), center_lps_mm, diameter_mm)
    return Crop(hu.numpy(), crop.is_replicated)
