"""A DICOM series becomes the right volume at the right place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, Orientationd, Spacingd
from pydicom.dataset import Dataset

from transforms.dicom.load import LoadDicomSeries, LoadDicomSeriesd, SeriesRefusedError, read_series
from transforms.dicom.witness import compare_with_simpleitk
from transforms.geometry import index_to_lps, lps_to_index
from transforms.hounsfield import WindowHUd
from transforms.nodule_sampling import place as sampled_at

Writer = Callable[..., list[Path]]


def expected_hu(n_slices: int = 5) -> np.ndarray:
    return np.arange(12 * 16).reshape(12, 16) * 7 - 1000 + 10 * np.arange(n_slices).reshape(-1, 1, 1)


def test_slices_are_stacked_from_feet_to_head_in_hu(write_ct_series: Writer, tmp_path: Path) -> None:
    series = read_series(write_ct_series(tmp_path))
    assert series.volume_hu.dtype == np.int16
    np.testing.assert_array_equal(series.volume_hu, expected_hu())
    assert series.spacing_mm == pytest.approx((2.5, 0.7, 0.6))
    np.testing.assert_allclose(index_to_lps(series.affine_ras, (4, 2, 3)), (-50 + 1.8, -40 + 1.4, -290))
    assert (series.series_uid, series.study_uid, series.patient_id) == ("1.2.3.4", "1.2.3", "somebody")
    assert (series.gaps, series.notes, series.n_padding_voxels, series.is_lossy) == ((), (), 0, False)


def test_the_order_of_files_does_not_matter(write_ct_series: Writer, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path)
    one, other = read_series(files), read_series(files[::-1])
    np.testing.assert_array_equal(one.volume_hu, other.volume_hu)
    np.testing.assert_array_equal(one.affine_ras, other.affine_ras)


def test_a_series_stored_head_first_with_flipped_rows_still_runs_toward_the_head(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def flip(dataset: Dataset, index: int) -> None:
        dataset.ImageOrientationPatient = [1, 0, 0, 0, -1, 0]

    series = read_series(write_ct_series(tmp_path, change=flip))
    np.testing.assert_array_equal(series.volume_hu, expected_hu())
    np.testing.assert_allclose(index_to_lps(series.affine_ras, (1, 2, 0)), (-50, -41.4, -297.5))


@pytest.mark.parametrize(
    "orientation", [(0, 1, 0, 1, 0, 0), (0, -1, 0, 1, 0, 0), (0.3, 0.954, 0, -0.954, 0.3, 0)]
)
def test_slices_whose_rows_run_from_front_to_back_are_turned_to_z_y_x(
    orientation: tuple[float, ...], write_ct_series: Writer, tmp_path: Path
) -> None:
    def turn(dataset: Dataset, index: int) -> None:
        dataset.ImageOrientationPatient = list(orientation)

    series = read_series(write_ct_series(tmp_path, change=turn))
    np.testing.assert_array_equal(series.volume_hu, expected_hu().swapaxes(1, 2))
    assert series.volume_hu.flags.c_contiguous
    assert series.spacing_mm == pytest.approx((2.5, 0.6, 0.7))
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    place = np.array([-50, -40, -300]) + 0.6 * 9 * row + 0.7 * 4 * column + [0, 0, 2.5]
    np.testing.assert_allclose(index_to_lps(series.affine_ras, (1, 9, 4)), place, atol=2e-3)
    middle = index_to_lps(series.affine_ras, np.array(series.volume_hu.shape) // 2)
    placed = sampled_at(series.geometry, middle)  # refuses other axes than (z, y, x)
    np.testing.assert_allclose(placed.index_zyx, np.array(series.volume_hu.shape) // 2)
    compare_with_simpleitk(series)


def test_monai_orients_and_resamples_the_meta_tensor_to_the_right_place(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def one_bright_voxel(dataset: Dataset, index: int) -> None:
        stored = np.zeros((12, 16), dtype="<i2")
        stored[4:8, 5:11] = 2000 if index == 3 else 0
        dataset.PixelData = stored.tobytes()

    write_ct_series(tmp_path, n_slices=7, change=one_bright_voxel)
    loaded = LoadDicomSeriesd("image")({"image": tmp_path})["image"]
    assert loaded.shape == (1, 7, 12, 16)
    center_ras = np.array([50 - 7.5 * 0.6, 40 - 5.5 * 0.7, -300 + 3 * 2.5])

    oriented = Orientationd("image", "RAS", labels=None)({"image": loaded})["image"]
    assert oriented.shape == (1, 16, 12, 7)
    for image in (
        oriented,
        Spacingd("image", (0.5, 0.5, 1.0), mode="bilinear")({"image": oriented})["image"],
    ):
        bright = np.argwhere(np.asarray(image[0]) > 0)
        found = np.append(bright.mean(axis=0), 1) @ np.asarray(image.affine).T
        np.testing.assert_allclose(found[:3], center_ras, atol=0.15)


def test_it_composes_with_windows_and_other_transforms(write_ct_series: Writer, tmp_path: Path) -> None:
    write_ct_series(tmp_path)
    load = Compose([LoadDicomSeriesd("image"), WindowHUd("image", low_hu=-1350, high_hu=150)])
    image = load({"image": tmp_path})["image"]
    np.testing.assert_allclose(image[0], np.clip((expected_hu() + 1350) / 1500, 0, 1), atol=1e-6)
    assert image.meta["series_uid"] == "1.2.3.4"


def test_a_gap_is_kept_and_slices_beyond_it_have_their_own_place(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    files = write_ct_series(tmp_path, n_slices=9)
    del files[4:6]
    series = read_series(files)
    np.testing.assert_array_equal(series.volume_hu, np.delete(expected_hu(9), (4, 5), axis=0))
    assert series.gaps == (3,)
    assert series.slice_offsets_mm == pytest.approx((0, 2.5, 5, 7.5, 15, 17.5, 20))
    assert lps_to_index(series.affine_ras, (-50, -40, -285), series.slice_offsets_mm)[0] == pytest.approx(4)
    with pytest.raises(SeriesRefusedError, match="missing at 1 place"):
        LoadDicomSeries()(files)
    assert LoadDicomSeries(allow_gaps=True)(files).meta["gaps"] == "3"


def test_a_folder_of_two_series_needs_a_name(write_ct_series: Writer, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "a", series_uid="1.2.3.4")
    write_ct_series(tmp_path / "b", n_slices=3, series_uid="1.2.3.5")
    with pytest.raises(SeriesRefusedError, match="2 CT series"):
        LoadDicomSeries()(tmp_path)
    assert LoadDicomSeries("1.2.3.5")(tmp_path).shape == (1, 3, 12, 16)
    with pytest.raises(SeriesRefusedError, match=r"no CT series 1\.9"):
        LoadDicomSeries("1.9")(str(tmp_path))


@pytest.mark.lidc
def test_lidc_0001_equals_simpleitk(dinox_data: Path) -> None:
    import SimpleITK

    series = read_series(sorted((dinox_data / "lidc" / "LIDC-IDRI-0001").rglob("*.dcm")))
    assert series.volume_hu.shape == (133, 512, 512)
    assert series.spacing_mm == (2.5, 0.703125, 0.703125)
    assert np.all(np.diff([header.position_lps_mm[2] for header in series.slices]) == 2.5)
    for header, slice_hu in zip(series.slices, series.volume_hu, strict=True):
        witness = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(header.path)))[0]
        # Around the circle of reconstruction it holds -2048 HU, though -2000 stored is what it declares as padding.
        assert witness.min() == -2048
        np.testing.assert_array_equal(slice_hu, np.where(witness == -2048, -1024, witness))
    assert series.n_padding_voxels > 0


@pytest.mark.lidc
def test_lidc_0002_is_read_as_the_12_slices_that_are_there(dinox_data: Path) -> None:
    series = read_series(sorted((dinox_data / "lidc_partial").rglob("*.dcm")))
    assert series.volume_hu.shape == (12, 512, 512)
    assert series.spacing_mm[0] == pytest.approx(1.25)
    assert series.n_padding_voxels > 0
    assert series.volume_hu.min() == -1024
