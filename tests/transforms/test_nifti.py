"""NIfTI in any orientation becomes the same volume at the same place."""

import gzip
import itertools
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from transforms.dicom.load import read_series
from transforms.geometry import index_to_lps, lps_to_index
from transforms.nifti import read_nifti
from transforms.refusal import SeriesRefusedError

HU = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 8)).astype(np.int16)  # (z, y, x), LPS
AFFINE = np.array([[0, 0, -0.6, 50.0], [0, -0.7, 0, 40.0], [2.5, 0, 0, -300.0], [0, 0, 0, 1]])
LPS_XYZ = AFFINE[:, [2, 1, 0, 3]]


def saved(path: Path, voxels: np.ndarray, affine: np.ndarray = LPS_XYZ, **header: object) -> Path:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("axes", list(itertools.permutations("LPS")))
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_every_orientation_gives_the_same_volume(
    axes: tuple[str, ...], flips: tuple[int, ...], tmp_path: Path
) -> None:
    opposite = {"L": "R", "P": "A", "S": "I"}
    codes = tuple(code if flip > 0 else opposite[code] for code, flip in zip(axes, flips, strict=True))
    image = nibabel.Nifti1Image(HU.transpose(2, 1, 0), LPS_XYZ)
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(LPS_XYZ), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    nibabel.save(turned, tmp_path / "v.nii.gz")
    volume = read_nifti(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(volume.volume_hu, HU)
    np.testing.assert_allclose(volume.affine_ras, AFFINE, atol=1e-4)
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.6), abs=1e-5)


def test_slope_and_intercept_are_applied_and_rounding_is_noted(tmp_path: Path) -> None:
    stored = np.arange(8 * 6 * 4, dtype=np.int16).reshape(8, 6, 4) * 10
    path = tmp_path / "v.nii"
    saved(path, stored)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, -1000], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.volume_hu, (stored * 0.5 - 1000).transpose(2, 1, 0))
    assert volume.notes == ()
    content[112:116] = np.array([0.25], "<f4").tobytes()
    path.write_bytes(content)
    assert "rounded" in read_nifti(path).notes[0]


@pytest.mark.parametrize(
    ("voxels", "header", "reason"),
    [
        ((HU > 0).astype(np.uint8), {}, "no value lies below -200 HU .*from 0 to 1"),
        (HU.clip(-150), {}, "a mask, or not CT in HU"),
        (HU / 1000.0, {}, "a mask, or not CT in HU"),
        (np.where(HU > 900, np.nan, HU), {}, "not numbers"),
        (HU * 100.0, {}, "do not fit 16 bits"),
        (np.stack([HU, HU], axis=-1), {}, "three-dimensional"),
        (HU[0], {}, "three-dimensional"),
        (HU, {"xyzt_units": 1}, "not in millimeters"),
        (HU, {"qform_code": 1, "qoffset_x": 99.0}, "sform and qform disagree"),
        (HU, {"qform_code": 1, "qoffset_x": np.nan}, "its affine is not finite"),
        (HU + 1j, {}, "color or complex"),
    ],
)
def test_is_refused_with_its_reason(
    voxels: np.ndarray, header: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(SeriesRefusedError, match=reason):
        read_nifti(saved(tmp_path / "v.nii", voxels, **header))


def test_values_clipped_to_a_window_are_noted(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).normal(-300, 500, (40, 48, 20)).astype(np.int16)
    (note,) = read_nifti(saved(tmp_path / "clipped.nii", np.clip(hu, -1000, 400))).notes
    assert note == "values end at 400 HU, which many voxels hold: clipped to a window"
    assert read_nifti(saved(tmp_path / "whole.nii", np.clip(hu, -1000, None))).notes == ()


def test_numbers_of_64_bits_are_not_copied_whole(tmp_path: Path) -> None:
    voxels = np.random.default_rng(1).uniform(-1000, 1000, (90, 96, 100))
    path = saved(tmp_path / "v.nii", voxels)
    tracemalloc.start()
    try:
        volume = read_nifti(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(volume.volume_hu, np.rint(voxels).transpose(2, 1, 0))
    assert peak < 8 * voxels.size  # bytes; int16 twice, as read and as turned, and one plane


def test_a_volume_without_a_place_in_the_patient_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "v.nii", HU)
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code; nibabel itself would not write them as 0
    path.write_bytes(content)
    with pytest.raises(SeriesRefusedError, match="neither sform nor qform"):
        read_nifti(path)


def test_lengths_of_voxels_that_pixdim_states_otherwise_are_noted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(HU.transpose(2, 1, 0), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.set_sform(LPS_XYZ, 1)  # leaves pixdim as it was
    image.set_qform(None, 0)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "v.nii")
    volume = read_nifti(tmp_path / "v.nii")
    assert volume.notes == ("pixdim says voxels of 2 x 2 x 2 mm, the sform other ones, which are used",)
    np.testing.assert_allclose(volume.affine_ras, AFFINE, atol=1e-4)


def test_compression_is_known_by_the_content_and_not_by_the_name(tmp_path: Path) -> None:
    plain, packed = (
        saved(tmp_path / "v.nii", HU.transpose(2, 1, 0)),
        saved(tmp_path / "w.nii.gz", HU.transpose(2, 1, 0)),
    )
    (tmp_path / "a.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "b.nii").write_bytes(packed.read_bytes())
    for name in ("a.nii.gz", "b.nii"):
        np.testing.assert_array_equal(read_nifti(tmp_path / name).volume_hu, HU)
    (tmp_path / "a.nii.gz").write_bytes(plain.read_bytes()[:-5])
    with pytest.raises(SeriesRefusedError, match="cut short"):
        read_nifti(tmp_path / "a.nii.gz")


def test_sheared_axes_are_refused(tmp_path: Path) -> None:
    sheared = LPS_XYZ.copy()
    sheared[1, 2] = 0.4
    with pytest.raises(SeriesRefusedError, match="not orthogonal"):
        read_nifti(saved(tmp_path / "v.nii", HU, sheared))


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b" + b"0" * 50])
def test_files_that_are_no_nifti_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.nii.gz").write_bytes(content)
    with pytest.raises(SeriesRefusedError, match=r"not a NIfTI file|compressed data are damaged"):
        read_nifti(tmp_path / "v.nii.gz")


@pytest.mark.parametrize(
    ("voxels", "affine", "reason"),
    [
        (HU * 10, LPS_XYZ, "which no CT in HU does"),
        (HU, np.diag([0.0007, 0.0006, 0.0025, 1]), "no CT of people has such voxels"),
        (HU, np.diag([0.7, 0.6, 70, 1]), "no CT of people has such voxels"),
    ],
)
def test_values_and_voxels_that_no_ct_has_are_refused(
    voxels: np.ndarray, affine: np.ndarray, reason: str, tmp_path: Path
) -> None:
    voxels = np.where(voxels == voxels.min(), -10240, voxels) if "HU does" in reason else voxels
    with pytest.raises(SeriesRefusedError, match=reason):
        read_nifti(saved(tmp_path / "v.nii", voxels, affine))


def test_one_value_around_the_circle_of_reconstruction_is_padding_as_in_dicom(tmp_path: Path) -> None:
    voxels = HU.copy()
    voxels[1:, :2] = voxels[1:, -2:] = -3024
    voxels[1, 3, 3] = -1500  # not of the fill: kept
    volume = read_nifti(saved(tmp_path / "v.nii.gz", voxels.transpose(2, 1, 0)))
    expected = np.where(voxels == -3024, -1024, voxels)
    np.testing.assert_array_equal(volume.volume_hu, expected)
    assert volume.n_padding_voxels == 3 * 4 * 8
    assert volume.notes == ("values below -1024 HU are kept",)


def test_an_affine_that_was_lost_and_a_unit_that_is_not_said_are_noted(tmp_path: Path) -> None:
    lost = read_nifti(saved(tmp_path / "lost.nii", HU, np.eye(4)))
    assert "its affine is the identity" in lost.notes[0]
    unknown = read_nifti(saved(tmp_path / "unit.nii", HU.transpose(2, 1, 0), xyzt_units=0))
    assert "does not say the unit" in unknown.notes[0]
    np.testing.assert_array_equal(unknown.volume_hu, HU)


@pytest.mark.parametrize("name", ["v.hdr", "V.HDR", "v.img"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_of_header_and_voxels_is_one_volume(name: str, kind: type, tmp_path: Path) -> None:
    nibabel.save(kind(HU.transpose(2, 1, 0), LPS_XYZ), tmp_path / "v.img")
    if name == "V.HDR":
        (tmp_path / "v.hdr").rename(tmp_path / name)
    if name == "v.img":
        content = gzip.compress((tmp_path / name).read_bytes())
        (tmp_path / name).unlink()
        (tmp_path / "v.img.gz").write_bytes(content)
    volume = read_nifti(tmp_path / name.replace("img", "hdr"))
    np.testing.assert_array_equal(volume.volume_hu, HU)
    np.testing.assert_allclose(volume.affine_ras, AFFINE, atol=1e-4)
    for voxels in tmp_path.glob("*.img*"):
        voxels.unlink()
    with pytest.raises(SeriesRefusedError, match=r"without the voxels \(\.img\)"):
        read_nifti(tmp_path / name.replace("img", "hdr"))


@pytest.mark.parametrize("name", ["v.nii.gz", "V.NII.GZ", "compressed.nii"])
def test_no_bit_of_a_compressed_file_changes_a_voxel_unseen(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    content = gzip.compress(saved(tmp_path / "plain.nii", HU.transpose(2, 1, 0)).read_bytes())
    path = tmp_path / name
    path.write_bytes(content)
    np.testing.assert_array_equal(read_nifti(path).volume_hu, HU)
    n_refused = 0
    for bit in rng.choice(8 * len(content), 300, replace=False):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            np.testing.assert_array_equal(read_nifti(path).volume_hu, HU)
        except SeriesRefusedError:
            n_refused += 1
    assert n_refused > 280  # the rest lies in what gzip's header says of time and system


def test_a_compressed_file_that_grows_beyond_what_its_header_says_is_refused(tmp_path: Path) -> None:
    content = saved(tmp_path / "v.nii", HU.transpose(2, 1, 0)).read_bytes()
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(content + bytes(1 << 25)))
    with pytest.raises(SeriesRefusedError, match="more than its header says"):
        read_nifti(tmp_path / "v.nii.gz")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_that_is_cut_short_is_refused(ending: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"v{ending}", HU)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SeriesRefusedError, match="cut short"):
        read_nifti(path)


@pytest.mark.lidc
def test_the_patch_of_lidc_0001_equals_its_dicom_at_the_same_place(dinox_data: Path) -> None:
    patch = read_nifti(dinox_data / "lidc_nodules" / "volumes" / "LIDC-IDRI-0001_nodule-0.nii.gz")
    series = read_series(sorted((dinox_data / "lidc").rglob("*.dcm")))
    first = lps_to_index(series.affine_ras, index_to_lps(patch.affine_ras, (0, 0, 0)))
    np.testing.assert_allclose(first, np.rint(first), atol=1e-3)
    z, y, x = np.rint(first).astype(int)
    depth, height, width = patch.volume_hu.shape
    same_place = series.volume_hu[z : z + depth, y : y + height, x : x + width].astype(int)
    assert np.abs(same_place - patch.volume_hu).max() <= 12
    assert patch.spacing_mm == pytest.approx(series.spacing_mm)


@pytest.mark.parametrize("n_slices", [62, 63, 126])
def test_a_border_of_zeros_in_each_slice_is_no_file_that_was_never_written(
    n_slices: int, tmp_path: Path
) -> None:
    """As dcm2niix stores CT: air outside of the patient is 0, and scl_inter -1024."""
    stored = np.zeros((n_slices, 96, 96), np.int16)
    stored[:, 30:66, 30:66] = 1064
    image = nibabel.Nifti1Image(stored.transpose(2, 1, 0), LPS_XYZ)
    image.header.set_slope_inter(1, -1024)
    nibabel.save(image, tmp_path / "v.nii")
    content = bytearray((tmp_path / "v.nii").read_bytes())
    content[112:120] = np.array([1, -1024], "<f4").tobytes()
    (tmp_path / "v.nii").write_bytes(content)
    assert set(np.unique(read_nifti(tmp_path / "v.nii").volume_hu)) == {-1024, 40}
