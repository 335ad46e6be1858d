"""The files of one CT series -> one HU volume with its geometry, or a refusal with its reason."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transforms.dicom.header import SliceHeader, read_slice_headers
from transforms.dicom.parts import SlicePlace, part
from transforms.dicom.pixels import Decoded, SliceDecoder
from transforms.dicom.slice_stack import (
    SAME_POSITION_MM,
    SliceStack,
    has_rows_along_y,
    slice_normal,
    stack_slices,
)
from transforms.geometry import VolumeGeometry
from transforms.inflate import check_growth
from transforms.plausible import PADDING_HU
from transforms.refusal import NO_AIR_ABOVE_HU, SeriesRefusedError, refuse_if


@dataclass(frozen=True, slots=True)
class CtSeries:
    """One CT series as a volume.

    `volume_hu` is (Z, Y, X) int16: z toward the head, y between front and back, x from side to side, either way.
    `affine_ras` takes (z, y, x, 1) to RAS mm and `spacing_mm` is (z, y, x). `gaps` holds i where slices are missing
    between slice i and i + 1; then `slice_offsets_mm` is the distance of each slice from the first, else empty.
    `slice_thickness_mm` (NaN where not stated) is only reported.
    """

    volume_hu: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    affine_ras: NDArray[np.float64]
    gaps: tuple[int, ...]
    slice_offsets_mm: tuple[float, ...]
    series_uid: str
    study_uid: str
    patient_id: str
    manufacturer: str
    kernel: str
    slice_thickness_mm: float
    transfer_syntax: str
    is_lossy: bool
    n_padding_voxels: int
    notes: tuple[str, ...]
    slices: tuple[SliceHeader, ...]

    @property
    def geometry(self) -> VolumeGeometry:
        """Where its voxels lie."""
        z, y, x = self.volume_hu.shape
        return VolumeGeometry((z, y, x), self.affine_ras, self.gaps, self.slice_offsets_mm)


def read_series(files: Sequence[Path]) -> CtSeries:
    """Read one CT series from its files, in any order.

    Slices are ordered by their position along the slice normal, and spacing comes from positions alone. Padding
    becomes -1024 HU. Two files at one position are kept as one if their pixels are identical.

    Raises:
        SeriesRefusedError: If anything that HU or geometry need is missing, contradicts itself or is not axial CT.
        OSError: If a file cannot be opened.
    """
    headers = [header for path in files for header in read_slice_headers(Path(path))]
    refuse_if(not headers, "no files were given")
    headers.sort(key=lambda header: (header.instance_number, header.sop_uid, str(header.path), header.frame))
    _check_one_series(headers)
    _check_one_volume(headers)
    _check_one_grid(headers)
    decoder = SliceDecoder()
    headers, n_duplicates = _without_duplicates(headers, decoder)
    _check_frame_of_reference(headers)
    first = headers[0]
    thicknesses = {
        header.slice_thickness_mm for header in headers if not math.isnan(header.slice_thickness_mm)
    }
    stack = stack_slices(
        np.array([header.position_lps_mm for header in headers]),
        np.array(first.orientation),
        np.array(first.pixel_spacing_mm),
        max(thicknesses, default=math.nan),
    )
    ordered = tuple(headers[i] for i in stack.order)
    shape = (len(ordered), first.pixels.rows, first.pixels.columns)
    check_growth(2 * math.prod(shape), (header.path for header in ordered))
    _refuse_one_value(ordered, decoder)
    volume_hu = np.empty(shape, dtype=np.int16)
    decoded = [decoder.decode_into(header, out) for header, out in zip(ordered, volume_hu, strict=True)]
    _check_air(decoded)
    if has_rows_along_y(np.array(first.orientation)):
        volume_hu = np.ascontiguousarray(volume_hu.swapaxes(1, 2))
    return CtSeries(
        volume_hu=volume_hu,
        spacing_mm=stack.spacing_mm,
        affine_ras=stack.affine_ras,
        gaps=stack.gaps,
        slice_offsets_mm=stack.slice_offsets_mm,
        series_uid=first.series_uid,
        study_uid=first.study_uid,
        patient_id=first.patient_id,
        manufacturer=first.manufacturer,
        kernel=first.kernel,
        slice_thickness_mm=thicknesses.pop() if len(thicknesses) == 1 else math.nan,
        transfer_syntax=first.transfer_syntax,
        is_lossy=any(header.is_lossy for header in ordered),
        n_padding_voxels=sum(one.n_padding for one in decoded),
        notes=_notes(ordered, decoded, stack, n_duplicates),
        slices=ordered,
    )


def _refuse_one_value(headers: Sequence[SliceHeader], decoder: SliceDecoder) -> None:
    """Refuse a series of one value before its volume is held; of almost any other the middle slice shows two.

    Padding may be all that some slices hold.
    """
    slice_hu = np.empty((headers[0].pixels.rows, headers[0].pixels.columns), dtype=np.int16)
    values = set()
    for header in (headers[len(headers) // 2], *headers):
        n_padding = decoder.decode_into(header, slice_hu).n_padding
        values |= {int(slice_hu.min()), int(slice_hu.max())}
        if n_padding or len(values) > 1:
            return
    raise SeriesRefusedError("all voxels hold one value, as where files were reserved and never written")


def _check_one_series(headers: Sequence[SliceHeader]) -> None:
    """Refuse slices of several series, studies or patients."""
    for name, values in {
        "SeriesInstanceUID": {header.series_uid for header in headers},
        "StudyInstanceUID": {header.study_uid for header in headers},
        "PatientID": {header.patient_id for header in headers},
    }.items():
        refuse_if(len(values) > 1, f"{name} takes {len(values)} values within what should be one series")


def _check_one_volume(headers: Sequence[SliceHeader]) -> None:
    parting = part([SlicePlace.of(header) for header in headers])
    if len(parting.groups) > 1:
        sizes = ", ".join(str(len(group)) for group in parting.groups[:8])
        raise SeriesRefusedError(
            f"one SeriesInstanceUID holds {len(parting.groups)} volumes (of {sizes} slices), distinguished by "
            f"{', '.join(parting.distinguished_by)}: read the files of one of them; find_series sorts the files of a "
            "folder, but not the frames of one file"
        )


def _check_frame_of_reference(headers: Sequence[SliceHeader]) -> None:
    """Refuse slices of several frames of reference, unless every slice has one of its own.

    Then it was generated for each file during de-identification (LIDC-IDRI has such patients) and carries no
    information.
    """
    n_values = len({header.frame_of_reference_uid for header in headers})
    refuse_if(
        n_values > 1 and (n_values < len(headers) or n_values < 3),
        f"FrameOfReferenceUID takes {n_values} values within what should be one series",
    )


def _check_one_grid(headers: Sequence[SliceHeader]) -> None:
    """Refuse slices that do not share one grid."""
    first = headers[0]
    sizes = sorted({(header.pixels.rows, header.pixels.columns) for header in headers})
    if len(sizes) > 1:
        shown = ", ".join(f"{rows} x {columns}" for rows, columns in sizes[:4])
        raise SeriesRefusedError(f"the matrix changes within the series: {shown}")
    orientations = np.array([header.orientation for header in headers])
    refuse_if(
        np.abs(orientations - orientations[0]).max() > 1e-3,
        "ImageOrientationPatient changes within the series",
    )
    spacings = np.array([header.pixel_spacing_mm for header in headers])
    refuse_if(
        np.abs(spacings / first.pixel_spacing_mm - 1).max() > 1e-4,
        f"PixelSpacing changes within the series, from {spacings.min():g} to {spacings.max():g} mm",
    )


def _without_duplicates(headers: list[SliceHeader], decoder: SliceDecoder) -> tuple[list[SliceHeader], int]:
    """Keep one of the slices that share a position, if their voxels are identical; else refuse."""
    along = np.array([header.position_lps_mm for header in headers]) @ slice_normal(
        np.array(headers[0].orientation)
    )
    order = np.argsort(along, kind="stable")
    kept: list[int] = []
    for i in order:
        if not kept or along[i] - along[kept[-1]] > SAME_POSITION_MM:
            kept.append(int(i))
        elif not _same_pixels(headers[kept[-1]], headers[i], decoder):
            n_shared = int((np.diff(np.sort(along)) <= SAME_POSITION_MM).sum())
            raise SeriesRefusedError(
                f"two slices with different pixels lie at one position ({along[i]:.2f} mm along the slice normal), "
                f"{n_shared} of {len(headers)} images in all: phases or reconstructions that nothing in their headers "
                "tells apart; name a folder that holds one of them as the source"
            )
    return [headers[i] for i in sorted(kept)], len(headers) - len(kept)


def _same_pixels(one: SliceHeader, other: SliceHeader, decoder: SliceDecoder) -> bool:
    if np.abs(np.subtract(one.position_lps_mm, other.position_lps_mm)).max() > SAME_POSITION_MM:
        return False
    pair = np.empty((2, one.pixels.rows, one.pixels.columns), dtype=np.int16)
    decoder.decode_into(one, pair[0])
    decoder.decode_into(other, pair[1])
    return np.array_equal(pair[0], pair[1])


def _check_air(decoded: Sequence[Decoded]) -> None:
    lowest_hu = min(one.lowest_hu for one in decoded)
    refuse_if(
        lowest_hu >= NO_AIR_ABOVE_HU,
        f"no value lies below {NO_AIR_ABOVE_HU} HU (the lowest is {lowest_hu:.0f}): no chest, or RescaleIntercept "
        "is not that of the scanner",
    )


def _notes(
    headers: Sequence[SliceHeader], decoded: Sequence[Decoded], stack: SliceStack, n_duplicates: int
) -> tuple[str, ...]:
    """Notes for users of the cohort on a series that was read."""
    n_frames_of_reference = len({header.frame_of_reference_uid for header in headers})
    notes = (
        (n_duplicates, f"{n_duplicates} duplicate slice(s) with identical pixels left out"),
        (
            stack.is_sparse,
            f"thin slices lie {stack.spacing_mm[0]:g} mm apart: what lies between them is missing, at every step",
        ),
        (stack.gaps and not stack.is_sparse, f"slices are missing at {len(stack.gaps)} place(s)"),
        (stack.oblique_degrees > 1, f"slices are oblique by {stack.oblique_degrees:.1f} degrees"),
        (any(one.is_rounded for one in decoded), "HU were not integers as stored and are rounded"),
        (
            any(one.has_unused_bits for one in decoded),
            "bits beyond BitsStored were set and are masked off",
        ),
        (
            min(one.lowest_hu for one in decoded) < PADDING_HU,
            "values below -1024 HU that PixelPaddingValue does not declare are kept",
        ),
        (
            any(header.is_lossy for header in headers),
            "lossy compression: HU differ from the scanner's",
        ),
        # It concerns display, after the rescale. Source: PS3.3 C.7.6.3.1.2. ITK inverts the values.
        (
            any(header.is_monochrome1 for header in headers),
            "PhotometricInterpretation is MONOCHROME1: HU are as stored, which other readers may invert",
        ),
        (
            len({(header.pixels.slope, header.pixels.intercept) for header in headers}) > 1,
            "RescaleSlope or RescaleIntercept changes within the volume",
        ),
        (
            len({header.kernel for header in headers}) > 1,
            "ConvolutionKernel changes within the volume",
        ),
        (
            len({header.slice_thickness_mm for header in headers}) > 1,
            "SliceThickness changes or is missing in part",
        ),
        (
            n_frames_of_reference > 1,
            "every slice has a FrameOfReferenceUID of its own: it is not used, all else agrees",
        ),
        (
            n_frames_of_reference == 1 and not headers[0].frame_of_reference_uid,
            "no FrameOfReferenceUID",
        ),
    )
    return tuple(note for holds, note in notes if holds)
