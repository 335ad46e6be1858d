"""What the MONAI transforms wrap is equal where entry points call it; `test_entry_points` counts the transforms."""

from pathlib import Path

import numpy as np
import torch

from pipelines.cohort.folder import Cohort
from pipelines.cohort.meta_volume import mapped_volume
from pipelines.cohort.slices import SliceIndex
from transforms import LoadDicomSeries, SliceTriplet, read_series


def test_prepare_stores_what_the_transform_loads(small_phantom_source: Path, small_cohort: Cohort) -> None:
    rows = {row["series_uid"]: row for row in small_cohort.series.to_dict("records")}
    folders = sorted({path.parent for path in small_phantom_source.rglob("*.dcm")})[:2]
    for folder in folders:
        loaded, series = LoadDicomSeries(allow_gaps=True)(folder), read_series(sorted(folder.glob("*.dcm")))
        np.testing.assert_array_equal(loaded[0], series.volume_hu)
        stored = mapped_volume(small_cohort, rows[series.series_uid])
        torch.testing.assert_close(stored.as_tensor(), loaded.as_tensor(), rtol=0, atol=0)
        np.testing.assert_array_equal(stored.affine, loaded.affine)
        assert {name: stored.meta[name] for name in ("gaps", "slice_offsets_mm")} == {
            name: loaded.meta[name] for name in ("gaps", "slice_offsets_mm")
        }


def test_the_loader_reads_the_triplets_that_the_transform_cuts(small_cohort: Cohort) -> None:
    index = SliceIndex(small_cohort, set(small_cohort.series["patient_id"]))
    rows = {row["volume_id"]: row for row in small_cohort.series.to_dict("records")}
    cut = SliceTriplet()
    for volume_id in index.volume_ids[:3]:
        number = index.volume_ids.index(volume_id)
        own = np.flatnonzero(index.volume == number)
        volume = mapped_volume(small_cohort, rows[volume_id])
        expected = torch.stack([cut(volume, int(index.z[row])).as_tensor() for row in own])
        torch.testing.assert_close(index.read(own).triplets_hu, expected, rtol=0, atol=0)
