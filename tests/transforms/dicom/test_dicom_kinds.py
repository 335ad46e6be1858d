"""Every kind of odd series is read right or refused with a reason that says what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from transforms.dicom.load import SeriesRefusedError, read_series
from transforms.dicom.witness import compare_with_simpleitk

Writer = Callable[..., list[Path]]
Change = Callable[[Dataset, int], None]


def setting(**values: Any) -> Change:
    """A change that sets elements of every slice; None deletes them."""

    def change(dataset: Dataset, index: int) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def only_slice(number: int, **values: Any) -> Change:
    return lambda dataset, index: setting(**values)(dataset, index) if index == number else None


def with_pixels(stored: np.ndarray, **values: Any) -> Change:
    def change(dataset: Dataset, index: int) -> None:
        dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
        setting(**values)(dataset, index)

    return change


def in_syntax(syntax: str) -> Change:
    def change(dataset: Dataset, index: int) -> None:
        if syntax == RLELossless:
            dataset.compress(syntax, generate_instance_uid=False)
            return
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "no slope": (setting(RescaleSlope=None), "RescaleSlope or RescaleIntercept is missing"),
    "no intercept": (setting(RescaleIntercept=None), "RescaleSlope or RescaleIntercept is missing"),
    "zero slope": (setting(RescaleSlope=0), "RescaleSlope must lie above zero"),
    "not HU": (setting(RescaleType="US"), "RescaleType is not HU"),
    "HU beyond 16 bits": (setting(RescaleSlope=40), "do not fit 16 bits"),
    "MR": (setting(Modality="MR"), r"not CT \(Modality is MR\)"),
    "no modality": (setting(Modality=None), "Modality is missing or unknown"),
    "a name as modality": (setting(Modality="ISOLDE"), "missing or unknown"),
    "dose report": (setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67"), "dose report"),
    "secondary capture": (setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "screen save"),
    "localizer": (setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    "projection": (
        setting(ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]),
        "maximum intensity projection",
    ),
    **{
        f"kind {values}": (setting(**{keyword: values.split("\\")}), reason)
        for keyword, values, reason in [
            ("ImageType", "DERIVED\\PRIMARY\\AXIAL\\CT_SOM5 MIP", "maximum intensity projection"),
            ("ImageType", "DERIVED\\SECONDARY\\CSA MIP", "maximum intensity projection"),
            ("ImageType", "DERIVED\\SECONDARY\\AXIAL\\MINIP", "minimum intensity projection"),
            ("ImageType", "DERIVED\\SECONDARY\\PROJECTION IMAGE", "a projection"),
            ("ImageType", "DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE", "an average"),
            ("ImageType", "DERIVED\\PRIMARY\\AXIAL\\SUBTRACTION", "differences"),
            ("ImageType", "DERIVED\\PRIMARY\\PERFUSION\\NONE", "perfusion"),
            ("ImageType", "DERIVED\\SECONDARY\\AXIAL\\DE_IODINE MAP", "map of a material"),
            ("ImageType", "DERIVED\\PRIMARY\\AXIAL\\EFF_ATOMIC_NUM", "map of a material"),
            ("ImageType", "DERIVED\\SECONDARY\\CPR", "along a curve"),
            ("ImageType", "ORIGINAL\\PRIMARY\\CT_SOM5 TOPOGRAM", "localizer"),
            ("VolumetricProperties", "SAMPLED", "a projection"),
            ("VolumeBasedCalculationTechnique", "MAX_IP", "maximum intensity"),
            ("VolumeBasedCalculationTechnique", "CURVED_MPR", "along a curve"),
            ("VolumeBasedCalculationTechnique", "VOLUME_RENDER", "a rendering"),
        ]
    },
    "no series UID": (setting(SeriesInstanceUID=""), "SeriesInstanceUID is missing or empty"),
    "no position": (setting(ImagePositionPatient=None), "ImagePositionPatient is missing"),
    "no orientation": (setting(ImageOrientationPatient=None), "ImageOrientationPatient is missing"),
    "no pixel spacing": (setting(PixelSpacing=None), "PixelSpacing is missing"),
    "negative spacing": (setting(PixelSpacing=[-0.7, 0.6]), "PixelSpacing must be above zero"),
    "skewed axes": (setting(ImageOrientationPatient=[1, 0, 0, 0.2, 1, 0]), "orthogonal unit vectors"),
    "coronal": (
        setting(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        "not axial: their normal lies 90 degrees",
    ),
    "sagittal": (setting(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "not axial"),
    "gantry tilt": (
        setting(ImageOrientationPatient=[1, 0, 0, 0, float(np.cos(0.3)), float(-np.sin(0.3))]),
        r"gantry tilt: .* \(17\.2 degrees\)",
    ),
    "one orientation differs": (
        only_slice(2, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0]),
        "Orientation.* changes",
    ),
    "one spacing differs": (only_slice(2, PixelSpacing=[0.8, 0.6]), "PixelSpacing changes .* 0.6 to 0.8"),
    "one study differs": (only_slice(1, StudyInstanceUID="1.2.99"), "StudyInstanceUID takes 2 values"),
    "one patient differs": (only_slice(1, PatientID="other"), "PatientID takes 2 values"),
    "one frame of reference differs": (
        only_slice(1, FrameOfReferenceUID="1.2.99"),
        "FrameOfReferenceUID takes 2",
    ),
    "field of view moves": (
        only_slice(2, ImagePositionPatient=[-49, -40, -295]),
        "1.00 mm sideways|sideways of a",
    ),
    "uneven": (only_slice(2, ImagePositionPatient=[-50, -40, -294.2]), r"varies from 1\.70 to 3\.30 mm"),
    "one position, two images": (
        only_slice(2, ImagePositionPatient=[-50, -40, -297.5]),
        "two slices with different",
    ),
    "matrix changes": (
        lambda ds, i: with_pixels(np.zeros((10, 16), "<i2"), Rows=10)(ds, i) if i == 3 else None,
        "matrix changes within the series: 10 x 16, 12 x 16",
    ),
    "cut short": (only_slice(4, PixelData=b"\0" * 100), "cut short: 100 bytes where 12 x 16 pixels need 384"),
    "too long": (only_slice(4, PixelData=b"\0" * 400), "too long"),
    "no pixel data": (setting(PixelData=None), "no pixel data"),
    "color": (setting(SamplesPerPixel=3), "color"),
    "color table": (setting(PhotometricInterpretation="PALETTE COLOR"), "neither MONOCHROME1 nor"),
    "32 bits": (setting(BitsAllocated=32), "32 bits allocated"),
    "high bit": (setting(BitsStored=12, HighBit=9), "high bit 9"),
    "12 bits stored high": (setting(BitsStored=12, HighBit=15), "high bit 15"),
    "no rows": (setting(Rows=None), "Rows is missing"),
    "huge matrix": (setting(Rows=65535), "65535 x 16"),
    "several frames": (setting(NumberOfFrames=2), "several frames"),
    "intercept that was lost": (
        with_pixels(np.arange(192, dtype="<u2") * 20, PixelRepresentation=0, RescaleIntercept=0),
        "no value lies below -200 HU .the lowest is 0.: no chest, or RescaleIntercept",
    ),
    "padding that is tissue": (
        setting(PixelPaddingValue=1032, RescaleIntercept=-1024),
        "a value that tissue has too",
    ),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # pydicom, while the fault is written
@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_with_its_reason(kind: str, write_ct_series: Writer, tmp_path: Path) -> None:
    change, reason = REFUSED[kind]
    with pytest.raises(SeriesRefusedError, match=reason) as refusal:
        read_series(write_ct_series(tmp_path, change=change))
    assert "ISOLDE" not in str(refusal.value)
    assert "somebody" not in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"],
        ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MPR"],
        ["DERIVED", "SECONDARY", "RESAMPLED"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "LOW_DOSE"],
        ["DERIVED", "PRIMARY", "VOLUME", "NONE"],
    ],
)
def test_an_image_of_attenuation_is_read_however_its_kind_is_written(
    values: list[str], write_ct_series: Writer, tmp_path: Path
) -> None:
    assert len(read_series(write_ct_series(tmp_path, change=setting(ImageType=values))).slices) == 5


READ: dict[str, tuple[Change, np.ndarray]] = {
    "implicit VR": (in_syntax(ImplicitVRLittleEndian), np.arange(192) * 7 - 1000),
    "big-endian": (in_syntax(ExplicitVRBigEndian), np.arange(192) * 7 - 1000),
    "deflated": (in_syntax(DeflatedExplicitVRLittleEndian), np.arange(192) * 7 - 1000),
    "RLE": (in_syntax(RLELossless), np.arange(192) * 7 - 1000),
    "slope 2": (
        with_pixels(np.arange(192, dtype="<i2") - 500, RescaleSlope=2, RescaleIntercept=0),
        np.arange(192) * 2 - 1000,
    ),
    "unsigned 16 bits": (
        with_pixels(np.arange(192, dtype="<u2") * 170, PixelRepresentation=0),
        np.arange(192) * 170 - 1024,
    ),
    "12 bits unsigned": (
        with_pixels(np.arange(192, dtype="<u2") * 20, PixelRepresentation=0, BitsStored=12, HighBit=11),
        np.arange(192) * 20 - 1024,
    ),
    "12 bits signed": (
        with_pixels(
            (np.arange(192, dtype="<i2") * 20 - 2000) & 0xFFF, BitsStored=12, HighBit=11, RescaleIntercept=0
        ),
        np.arange(192) * 20 - 2000,
    ),
    "8 bits": (
        with_pixels(
            np.arange(192, dtype="u1"),
            PixelRepresentation=0,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            RescaleSlope=4,
        ),
        np.arange(192) * 4 - 1024,
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_is_read_as_simpleitk_reads_it(kind: str, write_ct_series: Writer, tmp_path: Path) -> None:
    change, first_hu = READ[kind]
    series = read_series(write_ct_series(tmp_path, change=change))
    np.testing.assert_array_equal(series.volume_hu[0].ravel(), first_hu)
    compare_with_simpleitk(series)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("sequence", ["none", "defined", "undefined length"])
def test_a_file_without_preamble_and_file_meta_is_read_as_the_whole_file_is(
    syntax: str, sequence: str, write_ct_series: Writer, tmp_path: Path
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        if sequence != "none":
            dataset.ReferencedStudySequence = [Dataset()]
            dataset["ReferencedStudySequence"].is_undefined_length = sequence != "defined"

    files = write_ct_series(tmp_path, change=change)
    whole = read_series(files)
    for file in files:
        content = file.read_bytes()
        start = 132 + 12 + int.from_bytes(content[140:144], "little")
        file.write_bytes(content[start:])
    bare = read_series(files)
    np.testing.assert_array_equal(bare.volume_hu, whole.volume_hu)
    assert (bare.transfer_syntax, bare.notes) == (syntax, whole.notes)
    compare_with_simpleitk(bare)


def test_bytes_that_begin_like_a_data_set_are_refused_for_what_they_are(tmp_path: Path) -> None:
    for i, content in enumerate(
        (b"\x08\x00\x05\x00CS\x02\x00IR" * 20, b"\x08\x00\x05\x00" + b"\x02\0\0\0" * 99)
    ):
        (tmp_path / f"{i}.bin").write_bytes(content)
        with pytest.raises(SeriesRefusedError, match=r"not CT|damaged"):
            read_series([tmp_path / f"{i}.bin"])


def test_a_witness_that_reads_other_values_refuses_the_series(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    series = read_series(write_ct_series(tmp_path))
    series.volume_hu[3, 2, 1] += 1
    with pytest.raises(SeriesRefusedError, match="differs in 1 voxels of a slice, by up to 1 HU"):
        compare_with_simpleitk(series)


def test_monochrome1_is_for_the_display_and_changes_no_hu(write_ct_series: Writer, tmp_path: Path) -> None:
    plain = read_series(write_ct_series(tmp_path / "2"))
    series = read_series(
        write_ct_series(tmp_path / "1", change=setting(PhotometricInterpretation="MONOCHROME1"))
    )
    np.testing.assert_array_equal(series.volume_hu, plain.volume_hu)
    assert "MONOCHROME1" in series.notes[0]


def test_hu_that_are_no_integers_are_rounded_and_noted(write_ct_series: Writer, tmp_path: Path) -> None:
    stored = np.arange(192, dtype="<i2")
    series = read_series(
        write_ct_series(tmp_path, change=with_pixels(stored, RescaleSlope=0.3, RescaleIntercept=-900.2))
    )
    np.testing.assert_array_equal(series.volume_hu[0].ravel(), np.rint(np.arange(192) * 0.3 - 900.2))
    assert "HU were not integers as stored and are rounded" in series.notes


@pytest.mark.parametrize(
    ("value", "limit", "n_expected"), [(-2000, None, 3), (63536, None, 3), (-2000, -1990, 5)]
)
def test_padding_becomes_minus_1024_and_is_counted(
    value: int, limit: int | None, n_expected: int, write_ct_series: Writer, tmp_path: Path
) -> None:
    stored = np.arange(192, dtype="<i2") * 5
    stored[:6] = [-2000, -2000, -2000, -1995, -1990, -1989]

    def change(dataset: Dataset, index: int) -> None:
        dataset.PixelData = stored.tobytes()
        dataset.add_new(0x00280120, "US" if value > 0 else "SS", value)
        if limit is not None:
            dataset.add_new(0x00280121, "SS", limit)

    series = read_series(write_ct_series(tmp_path, change=change))
    expected = stored.astype(int) - 1024
    expected[:n_expected] = -1024
    np.testing.assert_array_equal(series.volume_hu[2].ravel(), expected)
    assert series.n_padding_voxels == 5 * n_expected
    compare_with_simpleitk(series)
