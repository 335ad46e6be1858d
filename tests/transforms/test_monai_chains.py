"""MONAI's ordinary chains around these transforms: a batch of unlike series, and any order of spatial transforms."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    EnsureChannelFirstd,
    Flip,
    Flipd,
    LoadImaged,
    Orientationd,
    RandFlipd,
    Resize,
    Rotate90,
    Rotate90d,
    Spacing,
    Spacingd,
    SpatialCrop,
    SpatialCropd,
    SpatialPadd,
    SqueezeDimd,
    Transform,
    Transposed,
)

from transforms import (
    CropSpec,
    LoadDicomSeriesd,
    NoduleCrop,
    NoduleCropd,
    RandViewCropd,
    RandWindowHUd,
    SliceTriplet,
    SliceTripletd,
    TransformError,
    ViewConfig,
    WindowHUd,
)
from transforms.geometry import VolumeGeometry, ras_to_lps
from transforms.meta_volume import meta_volume

SPACING_MM = (2.5, 0.7, 0.9)
AFFINE = np.array([[0, 0, -0.9, 80], [0, -0.7, 0, 60], [2.5, 0, 0, -150], [0, 0, 0, 1.0]])
GAPS, OFFSETS_MM = (3,), (0.0, 2.5, 5.0, 7.5, 27.5, 30.0, 32.5, 35.0)
SPL = Orientationd("image", "SPL", labels=None)
RAS = Orientationd("image", "RAS", labels=None)


def ramp(*gap: tuple) -> MetaTensor:
    """Eight slices of unlike sides; every voxel encodes its position: 1000 z + 30 y + x."""
    z, y, x = np.mgrid[:8, :20, :24]
    volume = (1000 * z + 30 * y + x).astype(np.int16)
    return meta_volume(volume, VolumeGeometry(volume.shape, AFFINE, *gap), {})


def slices_of(triplet: torch.Tensor) -> list[int]:
    return (triplet.amin((1, 2)) // 1000).tolist()


def refusal_of(chain: list, data: dict) -> str:
    with pytest.raises(RuntimeError) as caught:  # MONAI's Compose wraps what a transform raises
        Compose(chain)(data)
    assert isinstance(caught.value.__cause__, TransformError)
    return str(caught.value.__cause__)


@pytest.fixture
def two_series(write_ct_series: Callable[..., list[Path]], tmp_path: Path) -> list[dict]:
    """Two good series of one size; of the second a slice is missing, and a note says so."""
    whole = write_ct_series(tmp_path / "whole", n_slices=6)
    holed = write_ct_series(tmp_path / "holed", n_slices=7, series_uid="1.2.3.5")
    holed.pop(4).unlink()
    return [{"image": [str(file) for file in files], "z": 2} for files in (whole, holed)]


LOAD = LoadDicomSeriesd("image", allow_gaps=True)
VIEWS = ViewConfig(size_px=8, center="uniform")


@pytest.mark.parametrize(
    "chain",
    [
        [LOAD],
        [LOAD, WindowHUd("image", -1350, 150)],
        [LOAD, SliceTripletd("image")],
        [LOAD, CenterSpatialCropd("image", (4, 8, 8)), SliceTripletd("image")],
        [LOAD, SPL, SliceTripletd("image"), RandViewCropd("image", VIEWS), RandWindowHUd("image")],
        [LOAD, SliceTripletd("image"), RandFlipd("image", prob=1.0, spatial_axis=1)],
    ],
    ids=["volume", "window", "triplet", "cut triplet", "views", "flipped triplet"],
)
def test_series_with_and_without_gaps_and_notes_make_one_batch(two_series: list[dict], chain: list) -> None:
    single = [Compose(chain)(data)["image"].shape for data in two_series]
    for loader in (
        DataLoader(Dataset(two_series, Compose(chain)), batch_size=2),
        torch.utils.data.DataLoader(
            CacheDataset(two_series, Compose(chain), progress=False),
            batch_size=2,
            collate_fn=list_data_collate,
        ),
    ):
        batch = next(iter(loader))
        assert batch["image"].shape == (2, *single[0])
        assert [item["image"].shape for item in decollate_batch(batch)] == single
        assert batch["image"].meta["notes"] == ["", "slices are missing at 1 place(s)"]
        assert batch["image"].affine.shape == (2, 4, 4)


def test_a_batch_comes_apart_into_volumes_that_still_know_their_gaps(two_series: list[dict]) -> None:
    batch = next(iter(DataLoader(Dataset(two_series, LOAD), batch_size=2)))
    whole, holed = (item["image"] for item in decollate_batch(batch))
    geometry = VolumeGeometry.from_meta(holed.shape, holed.affine, holed.meta)
    assert (geometry.gaps, geometry.slice_offsets_mm) == ((3,), (0.0, 2.5, 5.0, 7.5, 12.5, 15.0))
    assert VolumeGeometry.from_meta(whole.shape, whole.affine, whole.meta).gaps == ()


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [SPL],
        [RAS, SPL],
        [Flipd("image", 0), Flipd("image", 0)],
        [Flipd("image", 0), SPL],
        [Rotate90d("image", 1, (0, 2)), SPL],
        [SqueezeDimd("image", 0)],
    ],
    ids=[
        "none",
        "SPL",
        "RAS and back",
        "flipped twice",
        "flipped and back",
        "rotated and back",
        "no channel",
    ],
)
@pytest.mark.parametrize("gap", [(), (GAPS, OFFSETS_MM)], ids=["whole", "gap"])
def test_a_triplet_is_the_same_wherever_monai_took_the_volume_and_brought_it_back(
    changes: list, gap: tuple
) -> None:
    expected, cut = SliceTriplet()(ramp(*gap), 4), SliceTripletd("image")
    assert slices_of(expected) == ([4, 4, 5] if gap else [3, 4, 5])
    assert expected.affine[2, 3] == -150 + (27.5 if gap else 10.0)
    found = Compose([*changes, cut])({"image": ramp(*gap), "z": 4})["image"]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)


POINT = {"image": ramp(), "z": 2, "center_lps_mm": (-70.0, -55.0, -145.0)}
OURS = [SliceTripletd("image"), NoduleCropd("image", CropSpec(size_mm=5.0, out_px=4))]


@pytest.mark.parametrize("ours", OURS, ids=["triplet", "crop"])
@pytest.mark.parametrize(
    ("change", "runs_to"),
    [
        (RAS, "R, A, S"),
        (Orientationd("image", "SLP", labels=None), "S, L, P"),
        (Flipd("image", 0), "I, P, L"),
        (Rotate90d("image", 1, (0, 2)), "R, P, S"),
        (Rotate90d("image", 1, (1, 2)), "S, R, P"),
        (Rotate90d("image", 2, (0, 1)), "I, A, L"),
    ],
)
def test_what_no_longer_has_z_first_and_toward_the_head_is_refused_and_told_what_helps(
    change: Transform, runs_to: str, ours: Transform
) -> None:
    reason = refusal_of([change, ours], POINT)
    assert f"they run to ({runs_to})" in reason
    assert 'Orientationd(keys, axcodes="SPL")' in reason
    assert Compose([change, SPL, ours])(POINT)["image"].shape[0] == 3


@pytest.mark.parametrize("ours", OURS, ids=["triplet", "crop"])
def test_axes_exchanged_behind_the_back_of_the_affine_are_refused(ours: Transform) -> None:
    assert "axes were exchanged" in refusal_of([Transposed("image", (0, 3, 2, 1)), ours], POINT)


def test_a_triplet_of_a_triplet_is_refused() -> None:
    assert "axes are not" in refusal_of(
        [SliceTripletd("image"), SliceTripletd("image")], {"image": ramp(), "z": 1}
    )


@pytest.mark.filterwarnings("ignore:NvImgCodec")
def test_loadimaged_ends_in_the_same_triplet_after_orientationd_and_is_refused_before(tmp_path: Path) -> None:
    volume = ramp()
    affine = AFFINE[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(volume.numpy()[0].transpose(2, 1, 0), affine), tmp_path / "ct.nii.gz")
    load = [LoadImaged("image"), EnsureChannelFirstd("image")]
    data = {"image": str(tmp_path / "ct.nii.gz"), "z": 4}
    assert "(L, P, S)" in refusal_of([*load, SliceTripletd("image")], data)
    assert "(L, P, S)" in refusal_of([load[0], SliceTripletd("image")], data)
    found = Compose([*load, SPL, SliceTripletd("image")])(data)["image"]
    expected = SliceTriplet()(volume, 4)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


@pytest.mark.filterwarnings("ignore:NvImgCodec")
def test_another_reader_of_the_same_dicom_ends_in_the_same_triplet(
    write_ct_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    write_ct_series(tmp_path, n_slices=6)
    data = {"image": str(tmp_path), "z": 3}
    pydicom_chain = [LoadImaged("image", reader="PydicomReader"), EnsureChannelFirstd("image"), SPL]
    found = Compose([*pydicom_chain, SliceTripletd("image")])(data)["image"]
    expected = Compose([LoadDicomSeriesd("image"), SliceTripletd("image")])(data)["image"]
    np.testing.assert_allclose(found, expected.numpy().astype(np.float32))
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


def test_distances_in_mm_follow_the_spacing_after_resampling() -> None:
    data = {"image": ramp(), "z": 10}
    resampled = Compose([Spacingd("image", (1.25, 0.7, 0.9)), SliceTripletd("image", distance_mm=2.5)])(data)[
        "image"
    ]
    assert torch.allclose(resampled[:, 3, 3], torch.tensor([4093.0, 5093.0, 6093.0], dtype=resampled.dtype))
    assert resampled.affine[2, 3] == pytest.approx(-150 + 12.5)


@pytest.mark.parametrize(
    ("start", "stop", "z", "expected", "height_mm"),
    [
        (0, 8, 3, [2, 3, 3], 7.5),
        (2, 7, 2, [4, 4, 5], 27.5),
        (5, 8, 1, [5, 6, 7], 32.5),
        (4, 8, 0, [4, 4, 5], 27.5),
    ],
)
def test_gaps_are_counted_anew_when_slices_are_cut_off(
    start: int, stop: int, z: int, expected: list[int], height_mm: float
) -> None:
    cut_off = SpatialCropd("image", roi_start=(start, 2, 3), roi_end=(stop, 18, 20))
    for changes in ([cut_off], [Flipd("image", 1), cut_off], [RAS, SPL, cut_off]):
        triplet = Compose([*changes, SliceTripletd("image")])({"image": ramp(GAPS, OFFSETS_MM), "z": z})[
            "image"
        ]
        assert slices_of(triplet) == expected
        assert float(triplet.affine[2, 3]) == pytest.approx(-150 + height_mm)


@pytest.mark.parametrize("ours", OURS, ids=["triplet", "crop"])
@pytest.mark.parametrize(
    "change",
    [Spacingd("image", (1.25, 0.7, 0.9)), SpatialPadd("image", (12, 20, 24))],
    ids=["spacing", "pad"],
)
def test_a_series_with_gaps_that_was_resampled_or_padded_along_z_is_refused(
    change: Transform, ours: Transform
) -> None:
    assert Compose([change, ours])(POINT)["image"].shape[0] == 3
    reason = refusal_of([change, ours], {**POINT, "image": ramp(GAPS, OFFSETS_MM)})
    assert "cut triplets or crops before" in reason


def test_resampling_in_the_plane_leaves_gaps_where_they_are() -> None:
    data = {"image": ramp(GAPS, OFFSETS_MM), "z": 3}
    triplet = Compose([Spacingd("image", (2.5, 1.4, 1.8)), SliceTripletd("image")])(data)["image"]
    assert triplet.shape[1:] == (10, 12)
    assert slices_of(triplet) == [2, 3, 3]


@pytest.mark.parametrize("flip", [(1,), (2,), (1, 2)])
def test_a_nodule_crop_hangs_the_same_way_however_monai_flipped_the_plane(flip: tuple[int, ...]) -> None:
    geometry = VolumeGeometry((8, 20, 24), AFFINE)
    center = geometry.to_lps((3.2, 9.4, 11.7))
    crop = NoduleCrop(CropSpec(size_mm=7.0, out_px=10))
    torch.testing.assert_close(crop(Flip(flip)(ramp()), center), crop(ramp(), center), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        Flip(0),
        Flip(1),
        Rotate90(1),
        Spacing((1.0, 1.0)),
        Resize((50, 60)),
        SpatialCrop(roi_start=(20, 30), roi_end=(90, 100)),
    ],
)
def test_a_view_of_a_changed_triplet_lies_where_the_patient_is(
    change: Callable[[MetaTensor], MetaTensor],
) -> None:
    hu, (y, x) = np.full((8, 100, 120), -1000, np.int16), np.mgrid[:100, :120]
    hu[3][np.hypot((y - 52) * 0.7, (x - 64) * 0.9) < 6.0] = 1000
    volume = meta_volume(hu, VolumeGeometry(hu.shape, AFFINE), {})
    data = {"image": change(SliceTriplet()(volume, 3).float())}
    config = ViewConfig(size_px=64, center="uniform")
    view = RandViewCropd("image", config).set_random_state(1)(data)["image"]
    weight = (view[1].numpy() + 1000).clip(0)
    rows, columns = np.mgrid[:64, :64]
    spot = [(weight * rows).sum() / weight.sum(), (weight * columns).sum() / weight.sum(), 0, 1]
    np.testing.assert_allclose(np.asarray(view.affine) @ spot, AFFINE @ [3, 52, 64, 1], atol=0.1)
    assert data["image"].shape[0] == 3


def test_a_view_of_a_volume_is_refused() -> None:
    for volume in (ramp(), ramp()[0], np.zeros((1, 8, 20, 24), np.int16)):
        with pytest.raises(TransformError, match=r"a view is cut from an axial slice .*SliceTripletd"):
            RandViewCropd("image", VIEWS)({"image": volume})


def test_a_crop_reads_a_mapped_file_and_copies_no_volume(tmp_path: Path) -> None:
    volume = ramp().numpy()[0]
    np.save(tmp_path / "volume.npy", volume)
    mapped = np.load(tmp_path / "volume.npy", mmap_mode="c")
    tensor = meta_volume(mapped, VolumeGeometry(volume.shape, AFFINE), {})
    assert np.shares_memory(tensor.numpy(), mapped)
    center = ras_to_lps((AFFINE @ [3, 9, 11, 1])[:3])
    expected = NoduleCrop(CropSpec(size_mm=7.0, out_px=10))(ramp(), center)
    torch.testing.assert_close(
        NoduleCrop(CropSpec(size_mm=7.0, out_px=10))(tensor, center), expected, rtol=0, atol=0
    )
