"""The filter that crops are resampled with: what is finer than a pixel of the result is averaged, never skipped."""

import numpy as np
import pytest

from transforms.nodule_sampling import BORDER_HU, Placement, axis_weights, sample_box, sample_windows

STRIPES_HU = np.where(np.arange(64) % 2 == 0, 1000, -1000)
# On a voxel, where a filter as narrow as the voxels would see stripes of one sign alone.
AT = Placement(np.array([32.0, 32.0, 32.0]), (1.0, 1.0, 1.0), (1, 1, 1))


def striped(axis: int) -> np.ndarray:
    """Voxels that alternate between 1000 and -1000 HU along one axis."""
    shape = [1, 1, 1]
    shape[axis] = 64
    return np.broadcast_to(STRIPES_HU.reshape(shape), (64, 64, 64)).astype(np.int16)


@pytest.mark.parametrize("axis", [1, 2])
def test_windows_coarser_than_the_voxels_average_along_rows_and_columns(axis: int) -> None:
    window = sample_windows(striped(axis), AT, [32], 48.0, 12)[0]
    assert np.abs(window).max() < 1
    fine = sample_windows(striped(axis), AT, [32], 12.0, 12)[0]
    assert np.abs(fine).max() < 1  # half-way between voxels: the mean of two
    on_voxels = sample_windows(striped(axis), AT, [32], 11.0, 11)[0]
    assert np.abs(on_voxels).min() == 1000


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_boxes_coarser_than_the_voxels_average_along_every_axis(axis: int) -> None:
    assert np.abs(sample_box(striped(axis), AT, 4.0, (11, 11, 11))).max() < 1
    assert np.abs(sample_box(striped(axis), AT, 1.0, (11, 11, 11))).min() == 1000


@pytest.mark.parametrize(("step", "reach"), [(0.5, 1.0), (1.0, 1.0), (1.5, 1.5), (-3.0, 3.0)])
def test_the_triangle_is_as_wide_as_the_wider_of_voxel_and_pixel(step: float, reach: float) -> None:
    read, weights = axis_weights(64, 31.25, step, 5)
    places = 31.25 + (np.arange(5) - 2) * step
    expected = np.maximum(1 - np.abs(np.arange(64) - places[:, None]) / reach, 0)
    expected /= expected.sum(axis=1, keepdims=True)
    found = np.zeros((5, 64))
    found[:, read] = weights
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_pixel_that_lies_half_outside_is_half_border() -> None:
    bright = np.full((3, 8, 8), 1000, dtype=np.int16)
    at = Placement(np.array([1.0, 4.0, 0.0]), (1.0, 1.0, 1.0), (1, 1, 1))
    window = sample_windows(bright, at, [1], 2.0, 2)[0]
    assert window[:, 0] == pytest.approx([(1000 + BORDER_HU) / 2] * 2)
    assert window[:, 1] == pytest.approx([1000, 1000])
