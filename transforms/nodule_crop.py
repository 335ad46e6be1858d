"""Crops around a nodule: a stated size in mm at a stated number of pixels, the same for every nodule.

A nodule is never resized to fill its crop, so its size stays visible. Only the image may carry information on the
label: the number of slices follows from a range in mm that is the same for every nodule, and on patches that were cut
to the nodule's own length only the one triplet that every patch has is given; all else is refused there.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transforms.geometry import VolumeGeometry, triplet_indices
from transforms.nodule_sampling import Placement, Volume, place, sample_box, sample_windows
from transforms.refusal import NoCropError, TransformError, number_of

CropForm = Literal["triplet", "slices", "cube", "planes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CropSpec:
    """What to cut around a nodule.

    Attributes:
        form: `triplet`: the center slice with its neighbors, (3, P, P). `slices`: a triplet at every slice
            within `z_range_mm` of the center slice, (S, 3, P, P). `cube`: (1, P, P, P), cubic voxels.
            `planes`: triplets across the axial, the coronal and the sagittal plane, (3, 3, P, P), cubic
            voxels, neighbors one slice spacing away.
        size_mm: Side of the crop.
        out_px: Side of the crop in pixels, P.
        z_range_mm: Reach of `slices` below and above the center slice.
        size_in_diameters: Control arm: the side as a multiple of the nodule's own diameter, which hides its
            size.
    """

    form: CropForm = "triplet"
    size_mm: float = 50.0
    out_px: int = 50
    z_range_mm: float = 0.0
    size_in_diameters: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.form not in get_args(CropForm):
            raise TransformError(
                f"crop form {self.form!r} does not exist; choose one of {', '.join(get_args(CropForm))}"
            )
        if not self.size_mm > 0 or self.out_px < 1:
            raise TransformError(f"a crop needs a positive size, got {self.size_mm} mm at {self.out_px} px")
        if self.z_range_mm < 0 or (self.z_range_mm > 0) != (self.form == "slices"):
            raise TransformError(
                f"form {self.form!r} with z_range_mm {self.z_range_mm}: "
                "the form slices needs a positive range, the others none"
            )
        if self.size_in_diameters is not None and not self.size_in_diameters > 0:
            raise TransformError(f"size_in_diameters must be positive, got {self.size_in_diameters}")

    @property
    def mm_per_px(self) -> float:
        """Pixel size of the crop, mm."""
        return self.size_mm / self.out_px


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop and how it came about.

    Attributes:
        hu: HU, shaped as `CropSpec.form` says.
        is_replicated: Whether a slice was repeated for a neighbor that does not exist (volume edge, gap).
    """

    hu: NDArray[np.float32]
    is_replicated: bool


def crop_nodule(
    volume_hu: Volume,
    geometry: VolumeGeometry,
    center_lps_mm: ArrayLike,
    spec: CropSpec,
    *,
    is_patch: bool = False,
    diameter_mm: float | None = None,
) -> Crop:
    """Crop a volume around a nodule as `spec` says.

    Args:
        volume_hu: (Z, Y, X) HU; a memory map is read only where the crop lies.
        geometry: Of the volume.
        center_lps_mm: Center of the crop, LPS mm.
        spec: Form and size.
        is_patch: Whether the volume was cut to the length of its nodule.
        diameter_mm: Of the nodule; read by the control arm `size_in_diameters` alone.

    Returns:
        The crop.

    Raises:
        NoCropError: If the center lies outside the volume, the crop would reach across a gap or outside a
            patch, or the control arm has no diameter.
    """
    at = place(geometry, center_lps_mm)
    size_mm = _size_mm(spec, diameter_mm)
    if is_patch and spec.form in ("cube", "planes"):
        raise NoCropError(
            "crop reaches outside a patch",
            f"the form {spec.form} reaches outside a patch in z, which is only as long as its nodule: "
            "the border would reveal the label; use the form triplet",
        )
    match spec.form:
        case "triplet":
            return _triplets(volume_hu, at, [at.slice_index], size_mm, spec.out_px, geometry.gaps)[0]
        case "slices":
            middles, is_clipped = _slices_in_range(geometry, at, spec.z_range_mm)
            crops = _triplets(volume_hu, at, middles, size_mm, spec.out_px, geometry.gaps)
            is_replicated = is_clipped or any(crop.is_replicated for crop in crops)
            if is_patch and is_replicated:
                raise NoCropError(
                    "crop reaches outside a patch",
                    f"slices within {spec.z_range_mm} mm reach outside this patch of"
                    f" {number_of(len(volume_hu), 'slice')}, which is as long as its nodule: the"
                    " repeats would reveal the label; use the form triplet",
                )
            return Crop(np.stack([crop.hu for crop in crops]), is_replicated)
        case "cube":
            refuse_gap(at, geometry.gaps, size_mm)
            return Crop(sample_box(volume_hu, at, size_mm / spec.out_px, (spec.out_px,) * 3)[None], False)
        case "planes":
            refuse_gap(at, geometry.gaps, size_mm)
            axial = _triplets(volume_hu, at, [at.slice_index], size_mm, spec.out_px, geometry.gaps)[0]
            upright = [_upright_plane(volume_hu, at, axis, size_mm, spec.out_px) for axis in (1, 2)]
            return Crop(np.stack([axial.hu, *upright]), axial.is_replicated)


def _size_mm(spec: CropSpec, diameter_mm: float | None) -> float:
    if spec.size_in_diameters is None:
        return spec.size_mm
    if diameter_mm is None or not diameter_mm > 0:
        raise NoCropError(
            "diameter not known", f"a crop sized by the nodule needs its diameter in mm, got {diameter_mm}"
        )
    return spec.size_in_diameters * diameter_mm


def _triplets(
    volume_hu: Volume,
    at: Placement,
    middles: Sequence[int],
    size_mm: float,
    out_px: int,
    gaps: Collection[int],
) -> list[Crop]:
    """A triplet of windows at each of the slices."""
    found = [triplet_indices(len(volume_hu), k, None, gaps) for k in middles]
    windows = sample_windows(volume_hu, at, [k for three, _ in found for k in three], size_mm, out_px)
    return [Crop(windows[3 * n : 3 * n + 3], replicated) for n, (_, replicated) in enumerate(found)]


def _slices_in_range(geometry: VolumeGeometry, at: Placement, z_range_mm: float) -> tuple[list[int], bool]:
    """The slices within a range of the center slice, and whether the volume's end or a gap cuts it short.

    Their number depends on the range and the slice spacing alone: beyond an end or a gap the last slice is
    repeated.
    """
    middle = at.slice_index
    reach = int(np.floor(z_range_mm / at.spacing_mm[0] + 1e-6))
    low, high = geometry.unbroken_run(middle)
    wanted = range(middle - reach, middle + reach + 1)
    return [min(max(k, low), high) for k in wanted], wanted[0] < low or wanted[-1] > high


def refuse_gap(at: Placement, gaps: Collection[int], size_mm: float) -> None:
    """Nothing is interpolated over slices that are missing."""
    reach = size_mm / 2 / at.spacing_mm[0]
    low, high = at.index_zyx[0] - reach, at.index_zyx[0] + reach
    crossed = [gap for gap in gaps if gap + 1 > low and gap < high]
    if crossed:
        raise NoCropError(
            "slices are missing inside the crop",
            f"slices are missing after slice {crossed[0]}, inside the {size_mm:.0f} mm of the crop; "
            "use the form triplet",
        )


def _upright_plane(
    volume_hu: Volume, at: Placement, axis: int, size_mm: float, out_px: int
) -> NDArray[np.float32]:
    """The coronal (axis 1) or sagittal (axis 2) plane, head up, its neighbors one slice spacing away: (3, P, P)."""
    shape = [out_px, out_px, out_px]
    shape[axis] = 1
    three = []
    for side in (-1, 0, 1):
        index = at.index_zyx.copy()
        index[axis] += side * at.steps_zyx[axis] * at.spacing_mm[0] / at.spacing_mm[axis]
        moved = Placement(index, at.spacing_mm, at.steps_zyx)
        three.append(sample_box(volume_hu, moved, size_mm / out_px, shape).squeeze(axis)[::-1])
    return np.stack(three)
