"""The synthetic slices of the wall study as a cohort, so that `pretrain` and campaigns run on them as on any other.

One volume is a stack of unrelated slices with their neighbors, three by three, and a gap after each three. With
`slices=inner` a training sees exactly the middle slices, each with its own neighbors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.cohort.folder import CohortWriter
from pipelines.cohort.kind import SYNTHETIC
from pipelines.cohort.tables import ANNOTATIONS, NODULES, REFUSED, empty_table
from pipelines.phantom.wall_slices import Growth, chest_slices

_VOLUMES, _SLICES_EACH, _SIZE_PX = 20, 128, 40
_SPACING_MM = (1.0, 9.0, 9.0)


def make_wall_cohort(
    root: Path, volumes: int = _VOLUMES, slices_each: int = _SLICES_EACH, growth: Growth | None = None
) -> None:
    """Write the cohort; by default a hold-out of 0.2 leaves 16 volumes with 2048 slices to train on.

    Args:
        root: Folder of the cohort.
        volumes: How many.
        slices_each: Unrelated slices in each, every one with its two neighbors.
        growth: As in `chest_slices`.

    Raises:
        ValueError: If the folder holds something else.
    """
    writer = CohortWriter(root)
    slices = chest_slices(volumes * slices_each, _SIZE_PX, growth=growth)
    for number in range(volumes):
        own = slices[number * slices_each : (number + 1) * slices_each]
        writer.add_volume(_row(f"wall-{number:03d}", slices_each), own.reshape(-1, _SIZE_PX, _SIZE_PX))
    writer.write_tables(empty_table(ANNOTATIONS), empty_table(NODULES), empty_table(REFUSED), SYNTHETIC)
    writer.close()


def _row(name: str, slices: int) -> dict[str, object]:
    affine = np.diag([*_SPACING_MM, 1.0])[[2, 1, 0, 3]]
    return {
        "volume_id": name,
        "patient_id": name,
        "study_uid": name,
        "series_uid": name,
        "spacing_mm": list(_SPACING_MM),
        "affine_ras": affine.ravel().tolist(),
        "gaps": [3 * i + 2 for i in range(slices - 1)],
        "slice_offsets_mm": [],
        "manufacturer": SYNTHETIC,
        "kernel": "",
        "slice_thickness_mm": _SPACING_MM[0],
        "transfer_syntax": "",
        "is_lossy": False,
        "n_padding_voxels": 0,
        "kind": "series",
        "notes": "unrelated synthetic slices, three by three",
    }
