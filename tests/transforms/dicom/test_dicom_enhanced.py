"""Enhanced CT, many frames in one file: read frame by frame, or refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from transforms.dicom.load import SeriesRefusedError, read_series

Writer = Callable[..., list[Path]]


def enhanced_ct(files: list[Path], path: Path) -> Path:
    """The slices of a series as one Enhanced CT file, frames in the order of the files."""
    slices = [dcmread(file) for file in files]
    enhanced = dcmread(files[0])
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    shared = Dataset()
    for keyword, names in {
        "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    }.items():
        item = Dataset()
        for name in names:
            setattr(item, name, getattr(slices[0], name))
        setattr(shared, keyword, [item])
    enhanced.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for one in slices:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = one.ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    enhanced.PerFrameFunctionalGroupsSequence = frames
    for name in (
        "PixelSpacing",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(enhanced, name)
    enhanced.NumberOfFrames = len(slices)
    enhanced.PixelData = b"".join(one.PixelData for one in slices)
    enhanced.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [None, RLELossless, DeflatedExplicitVRLittleEndian])
def test_enhanced_ct_is_read_frame_by_frame(
    syntax: str | None, write_ct_series: Writer, tmp_path: Path
) -> None:
    files = write_ct_series(tmp_path / "classic")
    path = enhanced_ct([files[i] for i in (3, 0, 4, 1, 2)], tmp_path / "enhanced.dcm")
    if syntax:
        dataset = dcmread(path)
        if syntax == RLELossless:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
    classic, enhanced = read_series(files), read_series([path])
    np.testing.assert_array_equal(enhanced.volume_hu, classic.volume_hu)
    np.testing.assert_allclose(enhanced.affine_ras, classic.affine_ras)
    witness = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    np.testing.assert_array_equal(enhanced.volume_hu[[3, 0, 4, 1, 2]], witness)


def test_enhanced_ct_without_groups_per_frame_is_refused(write_ct_series: Writer, tmp_path: Path) -> None:
    path = enhanced_ct(write_ct_series(tmp_path / "classic"), tmp_path / "enhanced.dcm")
    dataset = dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[2]
    dataset.save_as(path)
    with pytest.raises(SeriesRefusedError, match="5 frames, but functional groups for 4"):
        read_series([path])
