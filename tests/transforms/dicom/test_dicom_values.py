"""Further kinds of DICOM: what is read, and what is refused with its reason."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from tests.transforms.dicom.test_dicom_kinds import Writer, setting, with_pixels
from transforms.dicom.load import SeriesRefusedError, read_series
from transforms.dicom.witness import compare_with_simpleitk


def test_padding_wider_than_bits_stored_is_found_before_bits_are_masked(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    stored = np.arange(192, dtype="<i2") * 5
    stored[:4] = -2000  # 0xF830: its low 12 bits alone would be 2096, that is 1072 HU
    change = with_pixels(stored, PixelRepresentation=0, BitsStored=12, HighBit=11, PixelPaddingValue=63536)
    series = read_series(write_ct_series(tmp_path, change=change))
    assert series.n_padding_voxels == 20
    assert np.all(series.volume_hu[:, 0, :4] == -1024)
    assert series.volume_hu[0, 0, 4] == 20 - 1024


def test_padding_of_12_bits_is_found_whose_sign_is_not_carried_further(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    values = np.arange(192, dtype="<i2") * 5 - 900
    values[:4] = -2000
    change = with_pixels(
        values & 0xFFF, BitsStored=12, HighBit=11, RescaleIntercept=0, PixelPaddingValue=-2000
    )
    series = read_series(write_ct_series(tmp_path, change=change))
    assert series.n_padding_voxels == 4 * 5
    np.testing.assert_array_equal(series.volume_hu[0].ravel(), np.where(values == -2000, -1024, values))
    compare_with_simpleitk(series)


def test_declared_padding_that_no_voxel_holds_refuses_nothing(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    stored = np.arange(192, dtype="<i2").reshape(12, 16)
    stored[:2] = stored[-2:] = -1024  # the fill around the circle of reconstruction
    change = with_pixels(stored.ravel(), PixelPaddingValue=32767)
    series = read_series(write_ct_series(tmp_path, change=change))
    assert series.n_padding_voxels == 64 * 5
    assert series.volume_hu[0, 2, 0] == 32 - 1024


def test_bits_beyond_bits_stored_are_masked_and_noted(write_ct_series: Writer, tmp_path: Path) -> None:
    stored = np.arange(192, dtype="<u2") * 20 | 0x8000
    change = with_pixels(stored, PixelRepresentation=0, BitsStored=12, HighBit=11)
    series = read_series(write_ct_series(tmp_path, change=change))
    np.testing.assert_array_equal(series.volume_hu[0].ravel(), np.arange(192) * 20 - 1024)
    assert "bits beyond BitsStored were set and are masked off" in series.notes


def test_a_slice_that_is_all_padding_is_air(write_ct_series: Writer, tmp_path: Path) -> None:
    change = with_pixels(np.full(192, -2000, dtype="<i2"), PixelPaddingValue=-2000)
    series = read_series(write_ct_series(tmp_path, change=change))
    assert np.all(series.volume_hu == -1024)
    assert series.n_padding_voxels == series.volume_hu.size


def test_identical_duplicates_are_kept_once(write_ct_series: Writer, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path)
    for file in files[1:3]:
        copy = dcmread(file)
        copy.SOPInstanceUID += ".7"
        copy.save_as(tmp_path / f"copy-{file.name}")
        files.append(tmp_path / f"copy-{file.name}")
    series = read_series(files)
    assert series.volume_hu.shape == (5, 12, 16)
    assert series.notes == ("2 duplicate slice(s) with identical pixels left out",)


def test_low_values_that_are_not_declared_as_padding_are_kept_and_noted(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    stored = np.arange(192, dtype="<i2")
    stored[0] = -1024
    series = read_series(write_ct_series(tmp_path, change=with_pixels(stored, PixelPaddingValue=-2000)))
    assert series.volume_hu[0, 0, 0] == -2048
    assert series.n_padding_voxels == 0
    assert series.notes == ("values below -1024 HU that PixelPaddingValue does not declare are kept",)


def test_one_value_around_the_circle_of_reconstruction_is_padding_whatever_is_declared(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    stored = np.arange(192, dtype="<i2").reshape(12, 16)
    stored[:2] = stored[-2:] = -1024
    series = read_series(
        write_ct_series(tmp_path, change=with_pixels(stored.ravel(), PixelPaddingValue=-2000))
    )
    assert (series.volume_hu[:, :2] == -1024).all()
    assert series.volume_hu[0, 2, 0] == 32 - 1024
    assert series.n_padding_voxels == 64 * len(series.volume_hu)
    assert series.notes == ()


def test_a_file_that_does_not_say_its_encoding_is_refused(write_ct_series: Writer, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path)
    content = files[0].read_bytes()
    files[0].write_bytes(content.replace(b"\x02\x00\x10\x00UI\x14\x00", b"\x02\x00\x10\x01UI\x14\x00"))
    with pytest.raises(SeriesRefusedError, match="TransferSyntaxUID is missing"):
        read_series(files)


def test_a_rescale_that_changes_within_a_volume_is_applied_to_each_slice_and_noted(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.RescaleIntercept, dataset.RescaleType = -1024 - index, "hu"

    series = read_series(write_ct_series(tmp_path, change=change))
    np.testing.assert_array_equal(series.volume_hu[:, 0, 0], -1000 + 9 * np.arange(5))
    assert series.notes == ("RescaleSlope or RescaleIntercept changes within the volume",)


def test_slice_thickness_is_reported_and_never_used(write_ct_series: Writer, tmp_path: Path) -> None:
    series = read_series(write_ct_series(tmp_path, change=setting(SliceThickness=5, SpacingBetweenSlices=9)))
    assert series.spacing_mm[0] == 2.5
    assert series.slice_thickness_mm == 5


def test_rounded_positions_keep_their_mean_spacing(write_ct_series: Writer, tmp_path: Path) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [-50, -40, round(-300 + 0.625 * index, 1)]

    series = read_series(write_ct_series(tmp_path, n_slices=41, change=change))
    assert series.spacing_mm[0] == pytest.approx(0.625, abs=1e-6)
    assert series.gaps == ()


def test_one_slice_has_no_spacing(write_ct_series: Writer, tmp_path: Path) -> None:
    with pytest.raises(SeriesRefusedError, match="one slice"):
        read_series(write_ct_series(tmp_path)[:1])
