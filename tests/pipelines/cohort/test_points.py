"""What views are centered on: nodules or blobs, and the slices that show them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.cohort.points import Point, annotated_places, blob_places, first_then, slice_points
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import CohortError
from pipelines.training.config import PretrainConfig
from pipelines.training.indexing import indexed
from transforms.views.config import ViewConfig


def test_a_place_touches_the_slices_within_its_radius_and_the_later_one_wins() -> None:
    places = {"b": np.array([[3.2, 5.0, 6.0, 0.0], [5.0, 1.0, 2.0, 8.0]])}
    points = slice_points(places, ["a", "b"], [9, 9], [2.5, 2.5])
    assert points[1, 3] == Point(5.0, 6.0, 0.0)  # of unknown size: the slice of its center
    assert {z for number, z in points if number == 1} == {3, 4, 5, 6}  # 8 mm: within 1.6 slices of 5
    assert points[1, 5] == Point(1.0, 2.0, 8.0)
    assert not any(number == 0 for number, _ in points)
    edge = slice_points({"a": np.array([[0.0, 1.0, 1.0, 50.0]])}, ["a"], [4], [1.0])
    assert sorted(edge) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_blobs_of_the_phantom_are_its_nodules_and_are_found_once(
    small_cohort: Cohort, tmp_path: Path
) -> None:
    volume_ids = [str(one) for one in small_cohort.series["volume_id"]]
    blobs = blob_places(small_cohort, volume_ids, tmp_path / "blobs")
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "blobs").iterdir()}
    assert len(files) == len(volume_ids)
    again = blob_places(small_cohort, volume_ids, tmp_path / "blobs")
    assert {file: file.stat().st_mtime_ns for file in files} == files
    spacing = {str(row["volume_id"]): row["spacing_mm"] for row in small_cohort.series.to_dict("records")}
    near = []
    for volume_id, nodules in annotated_places(small_cohort, volume_ids).items():
        np.testing.assert_array_equal(blobs[volume_id], again[volume_id])
        off = (nodules[:, None, :3] - blobs[volume_id][None, :, :3]) * np.array(spacing[volume_id])
        near += np.linalg.norm(off, axis=-1).min(axis=1).tolist()
    assert np.mean(np.array(near) <= 3.0) >= 0.6

    everyone = set(small_cohort.series["patient_id"])
    annotated = SliceIndex(small_cohort, everyone)
    both = SliceIndex(
        small_cohort, everyone, places=first_then(annotated_places(small_cohort, volume_ids), blobs)
    )
    assert {place: both.points[place] for place in annotated.points} == annotated.points
    assert len(both.points) > len(annotated.points)
    shown = np.isfinite(annotated.diameter_mm)
    annotated.leave_out_pointless()
    assert len(annotated) == shown.sum() == len(annotated.points)


def test_a_recipe_may_train_on_slices_that_show_something(small_cohort: Cohort, tmp_path: Path) -> None:
    views, everyone = ViewConfig(center="point"), sorted(set(small_cohort.series["patient_id"]))
    config = PretrainConfig(points="both", slices="points", views=views, runs_dir=str(tmp_path))
    shown = indexed(config, small_cohort, everyone, is_training=True)
    assert np.isfinite(shown.diameter_mm).all()
    assert len(shown) == len(shown.points) > len(SliceIndex(small_cohort, everyone).points)
    without = Cohort(small_cohort.root)
    without.nodules = without.nodules.iloc[:0]
    nodules_alone = replace(config, points="nodules")
    assert len(indexed(nodules_alone, without, everyone)) == 0  # held out: nothing to evaluate
    with pytest.raises(CohortError, match="show nodules, and none of the 6 training patients has one"):
        indexed(nodules_alone, without, everyone, is_training=True)
    with pytest.raises(ValueError, match=r"slices 'points' .* go with views\.center 'point', got 'body'"):
        PretrainConfig(slices="points")
