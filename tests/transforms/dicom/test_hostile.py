"""Real files that broke other readers: each is read as SimpleITK reads it, or refused for what is wrong with it."""

import re
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from transforms.dicom.header import SliceHeader, read_slice_headers
from transforms.dicom.load import SeriesRefusedError, read_series
from transforms.dicom.pixels import SliceDecoder
from transforms.dicom.tree import find_series
from transforms.dicom.witness import compare_with_simpleitk

pytestmark = pytest.mark.lidc

LOSSLESS = ("J2KR", "JLSL", "JPLL", "RLE")
LOSSY = ("J2KI", "JLSN")


@pytest.fixture(scope="module")
def hostile(dinox_data: Path) -> Path:
    if not (dinox_data / "hostile").is_dir():
        pytest.skip("DINOX_DATA has no folder `hostile`")
    return dinox_data / "hostile"


def decoded(path: Path) -> tuple[SliceHeader, np.ndarray]:
    (header,) = read_slice_headers(path)
    slice_hu = np.empty((header.pixels.rows, header.pixels.columns), dtype=np.int16)
    SliceDecoder().decode_into(header, slice_hu)
    return header, slice_hu


def by_simpleitk(header: SliceHeader) -> np.ndarray:
    import SimpleITK

    hu = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(header.path)))[0].astype(int)
    if header.pixels.padding:
        hu[hu == header.pixels.padding[0] * header.pixels.slope + header.pixels.intercept] = -1024
    corners = {hu[0, 0], hu[0, -1], hu[-1, 0], hu[-1, -1]}
    if corners == {hu.min()} and hu.min() < -1024:
        hu[hu == hu.min()] = -1024
    return hu


@pytest.mark.parametrize("image", ["CT1", "CT2"])
def test_lossless_variants_of_one_image_decode_to_identical_hu(image: str, hostile: Path) -> None:
    slices = []
    for codec in LOSSLESS:
        header, slice_hu = decoded(hostile / "nema_wg04_codecs" / f"{image}_{codec}.dcm")
        assert not header.is_lossy
        np.testing.assert_array_equal(slice_hu, by_simpleitk(header))
        slices.append(slice_hu)
    for other in slices[1:]:
        np.testing.assert_array_equal(other, slices[0])


@pytest.mark.parametrize("image", ["CT1", "CT2"])
@pytest.mark.parametrize("codec", LOSSY)
def test_lossy_variants_are_read_and_flagged(image: str, codec: str, hostile: Path) -> None:
    header, slice_hu = decoded(hostile / "nema_wg04_codecs" / f"{image}_{codec}.dcm")
    assert header.is_lossy
    assert np.abs(slice_hu - by_simpleitk(header)).max() <= 2


def test_jpeg_2000_whose_signs_disagree_with_its_header_is_read_right(hostile: Path) -> None:
    header, slice_hu = decoded(hostile / "pydicom_data" / "explicit_VR-UN.dcm")
    np.testing.assert_array_equal(slice_hu, by_simpleitk(header))


def test_a_series_under_a_hash_in_place_of_its_uid_is_read(hostile: Path) -> None:
    header, slice_hu = decoded(hostile / "pydicom_data" / "bad_sequence.dcm")
    assert re.fullmatch("[0-9a-f]{64}", header.series_uid)
    np.testing.assert_array_equal(slice_hu, by_simpleitk(header))


SERIES = {
    "duplicate_positions": r"varies from 7\.50 to 115\.00 mm",
    "gantry_tilt": r"gantry tilt: .*18\.5 degrees",
    "dicom2nifti_failing/gantrytilting": r"gantry tilt: .*14\.0 degrees",
    "dicom2nifti_failing/sliceincrement/002": r"gantry tilt: .*15\.5 degrees",
    "dicom2nifti_failing/notavolume": r"two slices with different pixels lie at one position \(61\.50 mm",
}


@pytest.mark.parametrize("folder", SERIES)
def test_series_that_are_no_even_stack_are_refused(folder: str, hostile: Path) -> None:
    found = find_series(hostile / folder)
    (files,) = found.series.values()
    with pytest.raises(SeriesRefusedError, match=SERIES[folder]):
        read_series(files)


def test_a_missing_slice_is_kept_as_a_gap(hostile: Path) -> None:
    (files,) = find_series(hostile / "dicom2nifti_failing" / "sliceincrement" / "001").series.values()
    series = read_series(files)
    assert (series.volume_hu.shape, series.gaps) == ((4, 512, 512), (2,))
    assert series.slice_offsets_mm == pytest.approx((0, 5, 10, 20), abs=1e-4)
    compare_with_simpleitk(series)


SINGLE = {
    "big_endian_chest": "",
    "prone_axial": "",
    "rotated_in_plane": "",
    "scientific_notation_DS": "",
    "derived_coronal_same_study": "not axial",
    "seg_single_frame_beside_ct": "Modality is SEG",
    "topogram_in_ct": "localizer",
}


@pytest.mark.parametrize("folder", SINGLE)
def test_a_single_slice_with_a_neighbor_is_read_as_simpleitk_reads_it_or_refused(
    folder: str, hostile: Path, tmp_path: Path
) -> None:
    for path in sorted((hostile / "more" / folder).iterdir()):
        neighbor = dcmread(path)
        orientation = np.array(neighbor.ImageOrientationPatient, dtype=float)
        normal = np.cross(orientation[:3], orientation[3:])
        moved = np.array(neighbor.ImagePositionPatient, dtype=float) + 2.5 * normal
        neighbor.ImagePositionPatient = [f"{mm:.6g}" for mm in moved]
        neighbor.InstanceNumber, neighbor.SOPInstanceUID = int(neighbor.InstanceNumber) + 1, "1.2.3"
        neighbor.save_as(tmp_path / path.name)
        if SINGLE[folder]:
            with pytest.raises(SeriesRefusedError, match=SINGLE[folder]):
                read_series([path, tmp_path / path.name])
        else:
            series = read_series([path, tmp_path / path.name])
            assert series.spacing_mm[0] == pytest.approx(2.5, abs=1e-3)
            compare_with_simpleitk(series)


FILES = {
    "empty_uids/example_ct_dicom/CT.1.3.12.2.1107.5.1.4.60064.30000022120808113428000016573": "SeriesInstanceUID is",
    "empty_uids/example_ct.nii.gz": "read it with from=nifti",
    "pydicom_data/eCT_Supplemental.dcm": "perfusion",
}


@pytest.mark.parametrize("file", FILES)
def test_files_that_say_too_little_are_refused(file: str, hostile: Path) -> None:
    with pytest.raises(SeriesRefusedError, match=FILES[file]):
        read_slice_headers(hostile / file)


def test_no_file_of_the_tree_is_lost(hostile: Path) -> None:
    found = find_series(hostile)
    n_found = sum(map(len, found.series.values())) + len(found.refused)
    assert n_found == sum(path.is_file() for path in hostile.rglob("*"))
    assert all(refused.reason for refused in found.refused)
