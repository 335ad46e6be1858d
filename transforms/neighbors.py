"""Which slices are the neighbors of a slice: the rule behind `SliceTriplet`, without torch or MONAI."""

from collections.abc import Collection

from transforms.refusal import TransformError


def triplet_indices(
    n_slices: int,
    z: int,
    spacing_z_mm: float | None,
    gaps: Collection[int],
    stride: int = 1,
    distance_mm: float | None = None,
) -> tuple[tuple[int, int, int], bool]:
    """Find the slices below and above z.

    Args:
        n_slices: Number of slices of the volume.
        z: Index of the middle slice.
        spacing_z_mm: Distance between slice centers; needed only with `distance_mm`.
        gaps: Indices i where a gap lies between slice i and slice i + 1; no triplet reaches across one.
        stride: Distance of the neighbors in slices; used when `distance_mm` is None.
        distance_mm: Distance of the neighbors in mm; the nearest slices are taken, at least one slice away.

    Returns:
        The indices (below, z, above), and whether one of them is a repetition of z.

    Raises:
        TransformError: If z is not a slice of the volume, or a distance is not positive.
    """
    if not 0 <= z < n_slices:
        raise TransformError(f"slice {z} is not in a volume of {n_slices} slices; the last is {n_slices - 1}")
    if distance_mm is not None:
        if spacing_z_mm is None or not spacing_z_mm > 0:
            raise TransformError(
                f"a triplet at {distance_mm} mm needs the slice spacing in mm, got {spacing_z_mm}; "
                "give spacing_z_mm, or choose neighbors by stride"
            )
        if not distance_mm > 0:
            raise TransformError(f"the distance of a triplet's slices must be positive, got {distance_mm} mm")
        stride = max(1, round(distance_mm / spacing_z_mm))
    elif stride < 1:
        raise TransformError(f"the stride of a triplet must be at least 1 slice, got {stride}")
    below, above = z - stride, z + stride
    if below < 0 or any(below <= gap < z for gap in gaps):
        below = z
    if above >= n_slices or any(z <= gap < above for gap in gaps):
        above = z
    return (below, z, above), below == z or above == z
