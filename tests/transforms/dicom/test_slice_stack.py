"""Where a stack of slices stops being one: each threshold from both sides."""

import numpy as np
import pytest

from transforms.dicom.slice_stack import SliceStack, stack_slices
from transforms.refusal import SeriesRefusedError

AXIAL = np.array([1.0, 0, 0, 0, 1, 0])


def stack(steps_mm: list[float], sideways_mm: list[float] | None = None) -> SliceStack:
    """Axial slices with these distances between them, moved sideways by so much."""
    z = np.concatenate([[0.0], np.cumsum(steps_mm)])
    x = np.zeros(len(z)) if sideways_mm is None else np.array(sideways_mm)
    return stack_slices(np.column_stack([x, np.zeros(len(z)), z]), AXIAL, np.array([0.7, 0.7]))


def test_a_step_is_a_gap_from_half_a_slice_too_long() -> None:
    assert stack([1.0] * 5 + [1.51] + [1.0] * 5).gaps == (5,)
    assert stack([1.0] * 5 + [1.9] + [1.0] * 5).gaps == (5,)
    assert stack([1.0] * 5 + [3.0] + [1.0] * 5).slice_offsets_mm == (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)
    with pytest.raises(SeriesRefusedError, match=r"varies from 1\.00 to 1\.49 mm"):
        stack([1.0] * 5 + [1.49] + [1.0] * 5)


def test_the_spacing_is_the_mean_of_the_regular_steps() -> None:
    assert stack([1.0, 1.02, 0.98, 5.0, 1.0, 1.04]).spacing_mm[0] == pytest.approx(1.008)


def test_a_third_of_the_steps_may_be_gaps_and_no_more() -> None:
    assert stack([1.0, 1, 5] * 3).gaps == (2, 5, 8)
    with pytest.raises(SeriesRefusedError, match="no one spacing"):
        stack([1.0, 1, 5, 1, 5, 1, 5, 1, 5])


def test_a_slice_may_lie_a_tenth_of_the_spacing_off_its_place() -> None:
    for spacing, allowed in ((2.0, 0.2), (0.5, 0.1)):  # and never less than 0.1 mm
        for off, is_read in ((0.95 * allowed, True), (1.05 * allowed, False)):
            steps = [spacing] * 4 + [spacing + off, spacing - off] + [spacing] * 4
            if is_read:
                assert stack(steps).spacing_mm[0] == pytest.approx(spacing)
            else:
                with pytest.raises(SeriesRefusedError, match="no one spacing"):
                    stack(steps)


@pytest.mark.parametrize(("degrees", "is_read"), [(0.9, True), (1.1, False)])
def test_a_stack_may_lean_by_a_degree(degrees: float, is_read: bool) -> None:
    lean = (np.tan(np.radians(degrees)) * np.arange(11)).tolist()
    if is_read:
        assert stack([1.0] * 10, lean).gaps == ()
    else:
        with pytest.raises(SeriesRefusedError, match="gantry tilt"):
            stack([1.0] * 10, lean)


@pytest.mark.parametrize(("off_mm", "is_read"), [(0.09, True), (0.11, False)])
def test_a_slice_may_lie_a_tenth_of_a_millimeter_sideways(off_mm: float, is_read: bool) -> None:
    sideways = [0.0] * 5 + [off_mm] + [0.0] * 5
    if is_read:
        assert stack([1.0] * 10, sideways).gaps == ()
    else:
        with pytest.raises(SeriesRefusedError, match="sideways of a straight line"):
            stack([1.0] * 10, sideways)


@pytest.mark.parametrize(("degrees", "is_read"), [(29.5, True), (30.5, False)])
def test_slices_may_be_oblique_by_30_degrees(degrees: float, is_read: bool) -> None:
    angle = np.radians(degrees)
    orientation = np.array([1.0, 0, 0, 0, np.cos(angle), np.sin(angle)])
    normal = np.cross(orientation[:3], orientation[3:])
    positions = np.outer(np.arange(5), normal)
    if is_read:
        found = stack_slices(positions, orientation, np.array([0.7, 0.7]))
        assert found.oblique_degrees == pytest.approx(degrees)
    else:
        with pytest.raises(SeriesRefusedError, match="not axial"):
            stack_slices(positions, orientation, np.array([0.7, 0.7]))
