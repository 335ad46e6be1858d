"""A volume of a cohort as the MetaTensor that MONAI's transforms take, mapped and not read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.data.meta_tensor import MetaTensor

from pipelines.cohort.folder import Cohort
from transforms.geometry import VolumeGeometry
from transforms.meta_volume import meta_volume


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
