"""A crop out of a volume of a cohort, by MONAI's transform."""

from collections.abc import Hashable, Mapping
from typing import Any

from numpy.typing import ArrayLike

from pipelines.cohort.folder import Cohort
from pipelines.cohort.meta_volume import mapped_volume
from transforms.nodule import NoduleCrop
from transforms.nodule_crop import Crop, CropSpec


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
