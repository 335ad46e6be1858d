"""SimpleITK as an independent witness: every voxel of a series must be what GDCM reads from the same files."""

import numpy as np
from numpy.typing import NDArray

from transforms.dicom.header import SliceHeader
from transforms.dicom.series import CtSeries
from transforms.dicom.slice_stack import has_rows_along_y
from transforms.plausible import PADDING_HU, outer_fill
from transforms.refusal import SeriesRefusedError, TransformError

LOSSY_TOLERANCE_HU = 2
"""Lossy decoders may round differently; lossless ones may not differ at all."""


def compare_with_simpleitk(series: CtSeries) -> float:
    """Compare a series with SimpleITK's reading, slice by slice; the largest difference in HU, 0 but for lossy data.

    Raises:
        SeriesRefusedError: If SimpleITK cannot read a file, or reads other values.
        TransformError: If SimpleITK is not installed.
    """
    tolerance = LOSSY_TOLERANCE_HU if series.is_lossy else 0
    worst = 0.0
    frames: NDArray[np.float64] = np.empty(0)
    opened = None
    for header, slice_hu in zip(series.slices, series.volume_hu, strict=True):
        if header.path != opened:
            frames, opened = _read(header), header.path
        if has_rows_along_y(np.array(header.orientation)):
            slice_hu = slice_hu.T  # as the file holds it
        if header.frame >= len(frames) or frames[header.frame].shape != slice_hu.shape:
            raise SeriesRefusedError("the witness SimpleITK reads a matrix of another size")
        difference = np.abs(_with_padding(frames[header.frame], header) - slice_hu)
        if difference.max() > tolerance:
            raise SeriesRefusedError(
                f"the witness SimpleITK differs in {np.count_nonzero(difference > tolerance)} voxels of a slice, "
                f"by up to {difference.max():.0f} HU"
            )
        worst = max(worst, float(difference.max()))
    return worst


def _read(header: SliceHeader) -> NDArray[np.float64]:
    """All frames of a file as SimpleITK reads them, (frames, Y, X) HU."""
    try:
        import SimpleITK
    except ImportError:
        raise TransformError("witness=simpleitk needs SimpleITK; install it or take witness=none") from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # they quote header text
    try:
        image = SimpleITK.ReadImage(str(header.path), imageIO="GDCMImageIO")
    except RuntimeError:
        raise SeriesRefusedError("the witness SimpleITK cannot read a file of this series") from None
    frames = SimpleITK.GetArrayFromImage(image)
    return np.asarray(frames, dtype=np.float64).reshape(-1, *frames.shape[-2:])


def _with_padding(witness_hu: NDArray[np.float64], header: SliceHeader) -> NDArray[np.float64]:
    """The witness's values, rounded, with padding and outer fill set to -1024 HU as we do."""
    pixels = header.pixels
    rounded = np.rint(witness_hu)
    if pixels.padding is not None:
        low, high = (stored * pixels.slope + pixels.intercept for stored in pixels.padding)
        rounded[(witness_hu >= low) & (witness_hu <= high)] = PADDING_HU
    fill = outer_fill(witness_hu, 1.0, 0.0)
    if fill is not None:
        rounded[witness_hu == fill] = PADDING_HU
    return rounded
