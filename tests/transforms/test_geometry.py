"""Voxel index, LPS and RAS millimeters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.geometry import index_to_lps, lps_to_index, lps_to_ras, ras_to_lps, spacing_of
from transforms.refusal import TransformError

AFFINE = np.array([[0, 0, -0.6, 50.0], [0, -0.7, 0, 40.0], [2.5, 0, 0, -300.0], [0, 0, 0, 1]])
coordinate = st.floats(-400, 400)


def test_first_voxel_lies_at_image_position_patient() -> None:
    np.testing.assert_allclose(index_to_lps(AFFINE, (0, 0, 0)), (-50, -40, -300))
    np.testing.assert_allclose(index_to_lps(AFFINE, (2, 3, 4)), (-50 + 4 * 0.6, -40 + 3 * 0.7, -300 + 5))


def test_lps_and_ras_differ_in_the_first_two_signs() -> None:
    np.testing.assert_array_equal(lps_to_ras([1, 2, 3]), [-1, -2, 3])
    np.testing.assert_array_equal(ras_to_lps(lps_to_ras([[1, 2, 3]])), [[1, 2, 3]])


@given(st.tuples(coordinate, coordinate, coordinate))
def test_millimeters_to_index_and_back_returns(point: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(index_to_lps(AFFINE, lps_to_index(AFFINE, point)), point, atol=1e-9)
    np.testing.assert_allclose(lps_to_index(AFFINE.ravel(), index_to_lps(AFFINE, point)), point, atol=1e-9)


def test_a_gap_moves_points_beyond_it_to_the_slice_that_lies_there() -> None:
    offsets = (0.0, 2.5, 12.5, 15.0)  # three slices missing after the second
    np.testing.assert_allclose(index_to_lps(AFFINE, [(2, 0, 0), (1, 0, 0)], offsets)[:, 2], (-287.5, -297.5))
    index = lps_to_index(
        AFFINE, [(-50, -40, -287.5), (-50, -40, -292.5), (-50, -40, -302.5), (-50, -40, -280)], offsets
    )
    np.testing.assert_allclose(index[:, 0], (2, 1.5, -1, 5))


def test_spacing_is_the_length_of_the_columns() -> None:
    assert spacing_of(AFFINE) == pytest.approx((2.5, 0.7, 0.6))


@pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_an_affine_that_cannot_be_inverted_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(TransformError, match="affine"):
        lps_to_index(affine, (0, 0, 0))
