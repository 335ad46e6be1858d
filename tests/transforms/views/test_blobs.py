"""Blobs in lung: planted balls are found where they are, rods and what lies outside lung are not; real nodules."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from transforms.body_grid import BODY, GRID, LUNG
from transforms.geometry import VolumeGeometry
from transforms.views.blobs import find_blobs

SPACING = (2.0, 0.8, 0.8)
SHAPE = (40, 128, 128)


def lung(noise_hu: float = 20.0) -> np.ndarray:
    return np.random.default_rng(0).normal(-850, noise_hu, SHAPE)


def distance_mm(center: tuple[float, float, float], *axes: int) -> np.ndarray:
    """Distance of each voxel from a point, along some axes."""
    index = np.indices(SHAPE).astype(float)
    return np.sqrt(sum(((index[i] - center[i]) * SPACING[i]) ** 2 for i in axes or (0, 1, 2)))


def found(volume: np.ndarray, body: np.ndarray | None = None) -> np.ndarray:
    grid = np.full((SHAPE[0], GRID, GRID), LUNG, np.uint8) if body is None else body
    return find_blobs(volume.astype(np.int16), SPACING, grid)


@pytest.mark.parametrize("diameter_mm", [5.0, 8.0, 14.0])
def test_a_ball_is_found_where_it_is_in_its_size_and_first(diameter_mm: float) -> None:
    center = (18.3, 70.4, 40.7)
    blobs = found(np.where(distance_mm(center) <= diameter_mm / 2, 30, lung()))
    off_mm = np.abs(blobs[0, :3] - center) * SPACING
    assert (off_mm <= 1.3).all()
    assert diameter_mm / 1.6 <= blobs[0, 3] <= diameter_mm * 1.6


def test_a_vessel_answers_less_than_a_ball_of_its_width_and_a_calm_lung_not_at_all() -> None:
    along_z = np.where(distance_mm((0, 40.0, 40.0), 1, 2) <= 3, 30, lung())
    both = np.where(distance_mm((20.0, 90.0, 90.0)) <= 3, 30, along_z)
    first = found(both)[0]
    np.testing.assert_allclose(first[:3], (20, 90, 90), atol=1.0)
    assert len(found(lung(0.0))) == 0


def test_only_lung_is_searched_and_a_ball_that_fills_cells_counts_as_lung() -> None:
    center = (20.0, 64.0, 64.0)
    volume = np.where(distance_mm(center) <= 4, 30, lung())
    body = np.full((SHAPE[0], GRID, GRID), LUNG, np.uint8)
    body[:, 15:17, 15:17] = BODY  # as a nodule that fills cells looks there
    assert np.linalg.norm((found(volume, body)[0, :3] - center) * SPACING) < 1.5
    assert len(found(volume, np.full_like(body, BODY))) == 0


def test_two_blobs_never_overlap_and_there_are_at_most_64() -> None:
    noisy = np.random.default_rng(1).normal(-700, 250, SHAPE)
    blobs = found(noisy)
    assert len(blobs) == 64
    place = blobs[:, :3] * SPACING
    apart = np.linalg.norm(place[:, None] - place, axis=-1) + np.where(np.eye(64), np.inf, 0)
    assert (apart > np.maximum.outer(blobs[:, 3], blobs[:, 3]) / 2 - 1e-6).all()


@pytest.mark.slow
@pytest.mark.lidc
def test_most_real_nodules_are_among_the_blobs(dinox_data: Path, tmp_path: Path) -> None:
    """16 annotated nodules of two patients: 13 were found within 2.2 mm; three lie against wall or vessels."""
    if not (dinox_data / "chest").is_dir():
        pytest.skip("DINOX_DATA has no folder `chest`")
    config = PrepareConfig(source=str(dinox_data / "chest"), cohort=str(tmp_path / "c"), workers=1)
    cohort = prepare_cohort(config).cohort
    near = []
    for row in cohort.series.to_dict("records"):
        nodules = cohort.nodules[cohort.nodules["volume_id"] == row["volume_id"]]
        if not len(nodules):
            continue
        geometry, spacing = VolumeGeometry.from_row(row), tuple(float(side) for side in row["spacing_mm"])
        volume_id = str(row["volume_id"])
        blobs = find_blobs(cohort.volume(volume_id), spacing, cohort.body(volume_id))
        index = geometry.to_index(nodules[["x_lps_mm", "y_lps_mm", "z_lps_mm"]].to_numpy())
        off = np.linalg.norm((index[:, None] - blobs[None, :, :3]) * spacing, axis=-1)
        near += off.min(axis=1).tolist()
    assert len(near) == 16
    assert sum(one <= 3.0 for one in near) >= 12
