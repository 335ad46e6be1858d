"""Voxel index, LPS and RAS millimeters."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, strategies as st

from transforms.geometry import VolumeGeometry, index_to_lps, lps_to_index, lps_to_ras, ras_to_lps, spacing_of
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


OFFSETS_MM = (0.0, 2.5, 12.5, 15.0)
GEOMETRY = VolumeGeometry((4, 20, 24), AFFINE, (1,), OFFSETS_MM)


def test_a_row_and_a_tensors_meta_give_back_the_geometry_that_was_put_in() -> None:
    row = {"shape": [4, 20, 24], **GEOMETRY.as_row()}
    for found in (
        VolumeGeometry.from_row(row),
        VolumeGeometry.from_row({name: np.array(value) for name, value in row.items()}),
        VolumeGeometry.from_meta((1, 4, 20, 24), AFFINE, GEOMETRY.as_meta()),
        VolumeGeometry.from_meta((4, 20, 24), AFFINE, {"gaps": (1,), "slice_offsets_mm": list(OFFSETS_MM)}),
    ):
        assert (found.shape, found.gaps, found.slice_offsets_mm) == ((4, 20, 24), (1,), OFFSETS_MM)
        np.testing.assert_array_equal(found.affine_ras, AFFINE)


def test_a_geometry_places_points_as_nibabel_and_the_slices_do() -> None:
    index = [(0, 3, 4), (1, 3, 4), (2, 0, 0)]
    expected = lps_to_ras(nibabel.affines.apply_affine(AFFINE, [(0, 3, 4), (1, 3, 4), (5, 0, 0)]))
    np.testing.assert_allclose(GEOMETRY.to_lps(index), expected)
    np.testing.assert_allclose(GEOMETRY.to_index(GEOMETRY.to_lps(index)), index, atol=1e-9)
    assert GEOMETRY.spacing_mm == pytest.approx((2.5, 0.7, 0.6))
    assert GEOMETRY.steps_zyx == (1, 1, 1)


def test_a_run_of_slices_ends_at_gaps_and_at_the_ends() -> None:
    geometry = VolumeGeometry((10, 4, 4), AFFINE, (2, 5))
    assert [geometry.unbroken_run(z) for z in (0, 2, 3, 5, 6, 9)] == [
        *[(0, 2)] * 2, *[(3, 5)] * 2, *[(6, 9)] * 2
    ]  # fmt: skip


def test_a_geometry_without_a_right_affine_is_refused() -> None:
    with pytest.raises(TransformError, match="cannot be inverted"):
        VolumeGeometry((4, 4, 4), np.zeros((4, 4)))
