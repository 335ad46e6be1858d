"""The coarse map of body and lung."""

from pathlib import Path

import numpy as np
import pytest

from transforms.body_grid import BODY, LUNG, OUTSIDE, body_grid
from transforms.dicom.load import read_series


def chest(size: int) -> np.ndarray:
    """A round body with two round lungs and a table below it, (1, size, size) HU."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    hu = np.full((size, size), -1000, dtype=np.int16)
    hu[np.hypot(y - 0.5, x - 0.5) < 0.42] = 30
    for center in (0.32, 0.68):
        hu[np.hypot(y - 0.5, x - center) < 0.13] = -850
    hu[(y > 0.96) & (y < 0.97)] = 200
    return hu[None]


@pytest.mark.parametrize("size", [512, 500, 100, 32, 20])
def test_lungs_body_and_outside_are_told_apart_at_any_size(size: int) -> None:
    (grid,) = body_grid(chest(size))
    assert grid.shape == (32, 32)
    assert grid.dtype == np.uint8
    assert (grid[16, 10], grid[16, 21], grid[16, 16]) == (LUNG, LUNG, BODY)
    assert (grid[4, 16], grid[0, 0], grid[16, 0]) == (BODY, OUTSIDE, OUTSIDE)
    assert np.mean(grid == LUNG) == pytest.approx(2 * np.pi * 0.13**2, abs=0.04)
    assert np.mean(grid != OUTSIDE) == pytest.approx(np.pi * 0.42**2, abs=0.06)


def test_the_table_is_no_body() -> None:
    (grid,) = body_grid(chest(512))
    assert np.all(grid[30:] == OUTSIDE)


def test_air_alone_is_outside() -> None:
    assert np.all(body_grid(np.full((2, 64, 64), -1000, dtype=np.int16)) == OUTSIDE)


def test_nothing_of_a_patch_lies_outside() -> None:
    hu = np.full((3, 48, 48), -850, dtype=np.int16)
    hu[:, 16:32, 16:32] = 40
    grid = body_grid(hu, is_patch=True)
    assert set(np.unique(grid)) == {BODY, LUNG}
    assert grid[1, 16, 16] == BODY


@pytest.mark.lidc
def test_lidc_0001_has_lungs_where_lungs_are(dinox_data: Path) -> None:
    series = read_series(sorted((dinox_data / "lidc").rglob("*.dcm")))
    grid = body_grid(series.volume_hu)
    lung_share = (grid == LUNG).mean(axis=(1, 2))
    assert lung_share[100] > 0.1  # through both lungs
    assert lung_share[5] < 0.02  # through the belly
    assert 0.3 < (grid != OUTSIDE).mean() < 0.6
