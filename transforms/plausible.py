"""Plausible values of a CT of a patient, for all formats: HU, padding, spacing."""

from typing import Any

from numpy.typing import NDArray

PLAUSIBLE_HU = (-8192, 32767)
"""Scanners store -3024 at the lowest, 30710 (extended scale) at the highest; HU x 10 and other offsets lie outside."""
PADDING_HU = -1024
PIXEL_SPACING_MM = (0.02, 20.0)
MAX_STEP_MM = 25.0
"""Slices farther apart than this are single images of a patient and no series."""


def outer_fill(stored: NDArray[Any], slope: float, intercept: float) -> float | None:
    """The one value around the circle of reconstruction, where scanners fill and declare another value, or none.

    It is the lowest value of the slice, held by all four corners, and below -1024 HU, which no tissue or air has:
    LIDC's GE series declare -2000 and hold -1024 stored, -2048 HU.
    """
    corner = stored[0, 0]
    others = (stored[0, -1], stored[-1, 0], stored[-1, -1])
    is_fill = slope > 0 and float(corner) * slope + intercept < PADDING_HU
    if not is_fill or any(other != corner for other in others):
        return None
    return float(corner) if stored.min() == corner else None
