"""From the positions of slices to one stack: order, spacing, gaps, affine; or the reason for a refusal."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.plausible import MAX_STEP_MM
from transforms.refusal import SeriesRefusedError, refuse_if

SAME_POSITION_MM = 0.01
MAX_SHEAR_DEGREES = 1.0
MAX_OBLIQUE_DEGREES = 30.0
MAX_GAP_SHARE = 1 / 3
"""With a larger share of gaps among the steps no regular spacing is defined."""
MAX_STEP_PER_THICKNESS = 3.0
"""Steps longer than this many slice thicknesses leave most of the patient out: each is a gap."""

Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SliceStack:
    """Geometry of slices that lie along one line.

    `order` holds the indices of the given slices, from feet to head. `gaps` holds i where slices are missing between
    slice i and i + 1; `slice_offsets_mm` is then the distance of each slice from the first, else empty. Where slices
    are so thin for their distance that the tissue between them is not sampled (HRCT), `is_sparse` is true and
    every step is a gap.
    """

    order: NDArray[np.intp]
    spacing_mm: tuple[float, float, float]
    affine_ras: Vectors
    gaps: tuple[int, ...]
    slice_offsets_mm: tuple[float, ...]
    oblique_degrees: float
    is_sparse: bool


def slice_normal(orientation: Vectors) -> Vectors:
    """Unit normal of the slices, (3,) in LPS, turned so that it points to the head.

    Args:
        orientation: ImageOrientationPatient, (6,): direction of a row, then of a column. Source: PS3.3 C.7.6.2.1.1.

    Raises:
        SeriesRefusedError: If the two directions are not orthogonal unit vectors, or the slices are not axial.
    """
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm([row, column], axis=1)
    refuse_if(
        np.abs(lengths - 1).max() > 1e-3 or abs(row @ column) > 1e-3,
        "ImageOrientationPatient is not a pair of orthogonal unit vectors, so the slices have no direction",
    )
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    angle = _oblique_degrees(normal)
    refuse_if(
        angle > MAX_OBLIQUE_DEGREES,
        f"the slices are not axial: their normal lies {angle:.0f} degrees from the head-foot axis "
        f"(at most {MAX_OBLIQUE_DEGREES:.0f} is read)",
    )
    return np.asarray(normal if normal[2] > 0 else -normal)


def is_axial(orientation: Vectors) -> bool:
    """Whether slices of this ImageOrientationPatient, (6,), have a direction and are axial; see `slice_normal`."""
    try:
        slice_normal(orientation)
    except SeriesRefusedError:
        return False
    return True


def has_rows_along_y(orientation: Vectors) -> bool:
    """Whether rows run between front and back and columns from side to side, so that a slice is (X, Y)."""
    return bool(abs(orientation[1]) > abs(orientation[0]))


def stack_slices(
    positions_lps_mm: Vectors,
    orientation: Vectors,
    pixel_spacing_mm: Vectors,
    slice_thickness_mm: float = math.nan,
) -> SliceStack:
    """Order slices along their normal and measure the stack that they make, along (z, y, x).

    Where `has_rows_along_y`, each slice has to be transposed for that.

    Args:
        positions_lps_mm: ImagePositionPatient of each slice, (Z, 3), all different.
        orientation: ImageOrientationPatient, (6,).
        pixel_spacing_mm: PixelSpacing, (2,): between rows (y), then between columns (x).
        slice_thickness_mm: NaN where it is not known; it only says whether tissue between the slices is left out.

    Raises:
        SeriesRefusedError: For one slice alone, slices far apart, uneven spacing, sheared stacks (gantry tilt), or
            slices that move sideways.
    """
    normal = slice_normal(orientation)
    along = positions_lps_mm @ normal
    order = np.argsort(along, kind="stable")
    positions, along = positions_lps_mm[order], along[order]
    refuse_if(
        len(order) < 2, "the series is one slice: spacing along z comes from positions, which needs two"
    )

    step_lps = _step_between_slices(positions, along, normal)
    spacing_z, gaps = _regular_spacing(along)
    is_sparse = slice_thickness_mm > 0 and spacing_z > MAX_STEP_PER_THICKNESS * slice_thickness_mm
    if is_sparse:
        gaps = tuple(range(len(along) - 1))
    _check_distance(spacing_z, len(order), len(gaps))
    affine_lps = np.eye(4)
    affine_lps[:3, 0] = step_lps * spacing_z
    down, right = (axis / np.linalg.norm(axis) for axis in (orientation[3:], orientation[:3]))
    steps_lps = [down * pixel_spacing_mm[0], right * pixel_spacing_mm[1]]
    spacing_y, spacing_x = (float(spacing) for spacing in pixel_spacing_mm)
    if has_rows_along_y(orientation):
        steps_lps.reverse()
        spacing_y, spacing_x = spacing_x, spacing_y
    affine_lps[:3, 1:3] = np.stack(steps_lps, axis=1)
    affine_lps[:3, 3] = positions[0]
    offsets = tuple(float(v) for v in along - along[0]) if gaps else ()
    return SliceStack(
        order=order,
        spacing_mm=(spacing_z, spacing_y, spacing_x),
        affine_ras=np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps,
        gaps=gaps,
        slice_offsets_mm=offsets,
        oblique_degrees=_oblique_degrees(normal),
        is_sparse=is_sparse,
    )


def _check_distance(spacing_z_mm: float, n_slices: int, n_gaps: int) -> None:
    refuse_if(
        spacing_z_mm > MAX_STEP_MM or (n_slices == 2 and n_gaps),
        f"the slices lie {spacing_z_mm:.1f} mm apart: single images and no series (at most {MAX_STEP_MM:.0f} mm is "
        f"read, between two slices {MAX_STEP_PER_THICKNESS:.0f} times their thickness)",
    )


def _oblique_degrees(normal: Vectors) -> float:
    return float(np.degrees(np.arccos(min(1.0, abs(normal[2])))))


def _regular_spacing(along: Vectors) -> tuple[float, tuple[int, ...]]:
    """Regular distance between slices in mm, and the steps that are gaps.

    The median step tells regular steps from gaps (more than half a slice too long); the mean of the regular ones is
    the spacing, since single positions are often rounded to 0.1 mm.
    """
    steps = np.diff(along)
    is_gap = steps > 1.5 * np.median(steps)
    spacing = float(steps[~is_gap].mean())
    # Drift counts: within a run without gaps every slice must lie where the spacing places it.
    index = np.arange(len(along))
    run_start = np.maximum.accumulate(np.where(np.concatenate([[True], is_gap]), index, 0))
    misplaced = np.abs(along - along[run_start] - spacing * (index - run_start)).max()
    refuse_if(
        is_gap.sum() > MAX_GAP_SHARE * len(steps) or misplaced > max(0.1 * spacing, 0.1) + 1e-6,
        f"the distance between slices varies from {steps.min():.2f} to {steps.max():.2f} mm "
        f"(median {np.median(steps):.2f} mm over {len(steps)} steps): no one spacing is right",
    )
    return spacing, tuple(int(i) for i in np.flatnonzero(is_gap))


def _step_between_slices(positions: Vectors, along: Vectors, normal: Vectors) -> Vectors:
    """Direction in which the slices follow each other, scaled to 1 mm along the normal, (3,) LPS."""
    span = along[-1] - along[0]
    step = (positions[-1] - positions[0]) / span
    shear_mm = float(np.linalg.norm(step - normal))
    angle = float(np.degrees(np.arctan(shear_mm)))
    refuse_if(
        angle > MAX_SHEAR_DEGREES,
        f"gantry tilt: each slice is shifted sideways by {shear_mm:.2f} mm per mm of travel ({angle:.1f} degrees), "
        "so neighboring slices do not lie above each other; correct the tilt before reading",
    )
    sideways = np.linalg.norm(positions - positions[0] - np.outer(along - along[0], step), axis=1).max()
    refuse_if(
        sideways > 0.1,
        f"slices lie up to {sideways:.2f} mm sideways of a straight line: the field of view moves within the series",
    )
    return np.asarray(step)
