"""Crops around a nodule: right place, right size, and nothing but the image carries information on the label."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data.meta_tensor import MetaTensor

from pipelines.phantom.shapes import Grid, sphere_coverage
from tests.phantom_questions import paint
from transforms.geometry import VolumeGeometry, index_to_lps
from transforms.nodule import NoduleCrop, NoduleCropd
from transforms.nodule_crop import Crop, CropForm, CropSpec, crop_nodule
from transforms.refusal import NoCropError, TransformError

PHANTOM_SPACINGS_Z_MM = (2.5, 1.25, 0.7, 2.0, 1.0)
INDEX = (14.3, 44.2, 51.7)


def affine_of(
    spacing_mm: tuple[float, float, float], first_lps: tuple[float, ...] = (-30.0, -60.0, -90.0)
) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm[0], -spacing_mm[1], -spacing_mm[2]
    affine[:, 3] = [-first_lps[0], -first_lps[1], first_lps[2], 1]
    return affine


def cropped(
    volume: np.ndarray,
    affine: np.ndarray,
    center: np.ndarray,
    spec: CropSpec,
    gaps: tuple[int, ...] = (),
    slice_offsets_mm: tuple[float, ...] = (),
    **more: object,
) -> Crop:
    geometry = VolumeGeometry(volume.shape, affine, gaps, tuple(slice_offsets_mm))
    return crop_nodule(volume, geometry, center, spec, **more)


def triplet_hu(
    volume: np.ndarray, affine: np.ndarray, center: np.ndarray, size_mm: float, out_px: int, *gap: tuple
) -> np.ndarray:
    return cropped(volume, affine, center, CropSpec(size_mm=size_mm, out_px=out_px), *gap).hu


def sphere(spacing_z_mm: float, diameter_mm: float = 10.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sphere of soft tissue in lung, 60 mm high; the volume, its affine, and the center in LPS mm."""
    spacing = (spacing_z_mm, 0.7, 0.7)
    n_slices = round(60 / spacing_z_mm)
    index = np.array([n_slices / 2 + 0.3, 44.2, 51.7])
    volume = np.full((n_slices, 96, 104), -850, dtype=np.float32)
    box, coverage = sphere_coverage(Grid(volume.shape, spacing), index * spacing, diameter_mm)
    paint(volume, box, coverage, 50)
    affine = affine_of(spacing)
    return np.rint(volume).astype(np.int16), affine, index_to_lps(affine, index)


def width_px(line_hu: np.ndarray) -> float:
    """Width at half height between lung (-850) and tissue (50)."""
    return float(np.clip((line_hu + 850) / 900, 0, 1).sum())


@pytest.mark.parametrize("spacing_z_mm", PHANTOM_SPACINGS_Z_MM)
@pytest.mark.parametrize("form", ["triplet", "slices", "cube", "planes"])
def test_a_10_mm_sphere_measures_10_mm_in_every_form_at_every_spacing(
    form: CropForm, spacing_z_mm: float
) -> None:
    volume, affine, center = sphere(spacing_z_mm)
    spec = CropSpec(form=form, size_mm=30.0, out_px=60, z_range_mm=6.0 if form == "slices" else 0.0)
    hu = cropped(volume, affine, center, spec).hu
    if form == "cube":
        lines = [
            hu[0, :, 29:31, 29:31].mean((1, 2)),
            hu[0, 29:31, :, 29:31].mean((0, 2)),
            hu[0, 29:31, 29:31].mean((0, 1)),
        ]
        tolerances_mm = [spacing_z_mm, 0.7, 0.7]
    elif form == "planes":
        axial, coronal, sagittal = hu[:, 1]
        lines = [
            axial[29:31].mean(0),
            axial[:, 29:31].mean(1),
            coronal[29:31].mean(0),
            coronal[:, 29:31].mean(1),
        ]
        lines += [sagittal[29:31].mean(0), sagittal[:, 29:31].mean(1)]
        tolerances_mm = [0.7, 0.7, 0.7, spacing_z_mm, 0.7, spacing_z_mm]
    else:
        middle = hu[1] if form == "triplet" else hu[len(hu) // 2, 1]
        lines, tolerances_mm = [middle[29:31].mean(0), middle[:, 29:31].mean(1)], [0.7, 0.7]
    for line, tolerance_mm in zip(lines, tolerances_mm, strict=True):
        assert width_px(line) * spec.mm_per_px == pytest.approx(10.0, abs=tolerance_mm)


@pytest.mark.parametrize("form", ["triplet", "cube", "planes"])
def test_the_nodule_lies_in_the_middle_of_its_crop(form: CropForm) -> None:
    volume, affine, center = sphere(1.25)
    hu = cropped(volume, affine, center, CropSpec(form=form, size_mm=30.0, out_px=60)).hu
    weight = np.clip((hu + 850) / 900, 0, 1)
    if form == "cube":
        images = [weight[0].sum(axis) for axis in range(3)]
    else:
        images = [weight[1]] if form == "triplet" else list(weight[:, 1])
    for image in images:
        rows, columns = np.indices(image.shape)
        place = np.array([(rows * image).sum(), (columns * image).sum()]) / image.sum()
        assert place == pytest.approx(np.full(2, 29.5), abs=0.5)


def test_a_larger_nodule_stays_larger_except_in_the_control_arm() -> None:
    widths = {}
    for diameter_mm in (6.0, 12.0):
        volume, affine, center = sphere(1.0, diameter_mm)
        for name, spec in (
            ("mm", CropSpec(size_mm=30.0, out_px=60)),
            ("own", CropSpec(out_px=60, size_in_diameters=2.0)),
        ):
            hu = cropped(volume, affine, center, spec, diameter_mm=diameter_mm).hu
            widths[name, diameter_mm] = width_px(hu[1, 29:31].mean(0))
    assert widths["mm", 12.0] / widths["mm", 6.0] == pytest.approx(2.0, abs=0.15)
    assert widths["own", 12.0] == pytest.approx(widths["own", 6.0], rel=0.07)
    with pytest.raises(NoCropError, match="needs its diameter in mm"):
        cropped(volume, affine, center, CropSpec(size_in_diameters=2.0))


def test_a_fine_crop_is_simpleitks_linear_resampling() -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, 400, (9, 40, 48)).astype(np.int16)
    spacing = (2.0, 0.8, 0.7)
    affine = affine_of(spacing)
    image = sitk.GetImageFromArray(volume.astype(np.float32))
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((-30.0, -60.0, -90.0))
    center = index_to_lps(affine, (4.0, 19.3, 23.6))
    grid = sitk.Image(30, 30, 3, sitk.sitkFloat32)
    grid.SetSpacing((0.5, 0.5, 2.0))
    grid.SetOrigin((center[0] - 7.25, center[1] - 7.25, center[2] - 2.0))
    expected = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, -1024.0))
    found = triplet_hu(volume, affine, center, 15.0, 30)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_outside_the_image_lies_air() -> None:
    volume = np.full((5, 20, 20), 100, dtype=np.int16)
    affine = affine_of((2.0, 1.0, 1.0))
    crop = triplet_hu(volume, affine, index_to_lps(affine, (2, 0, 0)), 20.0, 20)
    assert (crop[:, :9, :] == -1024).all()
    assert (crop[:, 11:, 11:] == 100).all()


def test_a_crop_hangs_the_same_way_however_the_volume_is_stored() -> None:
    rng = np.random.default_rng(1)
    volume = rng.integers(-1000, 400, (5, 40, 44)).astype(np.int16)
    affine = affine_of((2.0, 0.8, 0.7))
    center = index_to_lps(affine, (2.0, 20.3, 21.6))
    flipped = affine.copy()
    flipped[:, 3] = affine @ [0, 39, 43, 1]
    flipped[:3, 1:3] *= -1
    for spec in (CropSpec(size_mm=12.0, out_px=16), CropSpec(form="cube", size_mm=8.0, out_px=8)):
        expected = cropped(volume, affine, center, spec).hu
        found = cropped(volume[:, ::-1, ::-1], flipped, center, spec).hu
        np.testing.assert_allclose(found, expected, atol=0.01)


def test_upright_planes_have_the_head_up_and_the_patients_left_on_the_right() -> None:
    volume = np.zeros((30, 30, 30), dtype=np.int16)
    volume[20:, :, :] += 100  # toward the head
    volume[:, 20:, :] += 10  # toward the back
    volume[:, :, 20:] += 1  # toward the patient's left
    affine = affine_of((1.0, 1.0, 1.0))
    axial, coronal, sagittal = cropped(
        volume,
        affine,
        index_to_lps(affine, (14.5, 14.5, 14.5)),
        CropSpec(form="planes", size_mm=28.0, out_px=28),
    ).hu[:, 1]
    assert [axial[0, 0], axial[-1, 0], axial[0, -1]] == [0, 10, 1]
    assert [coronal[-1, 0], coronal[0, 0], coronal[-1, -1]] == [0, 100, 1]
    assert [sagittal[-1, 0], sagittal[0, 0], sagittal[-1, -1]] == [0, 100, 10]


def numbered(n_slices: int, spacing_z_mm: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A volume in which each slice holds its own number."""
    volume = np.broadcast_to(np.arange(n_slices, dtype=np.int16)[:, None, None], (n_slices, 16, 16))
    return volume, affine_of((spacing_z_mm, 1.0, 1.0))


def slices_of(crop: np.ndarray) -> list:
    return np.rint(crop.mean((-1, -2))).astype(int).tolist()


def test_the_number_of_slices_follows_from_the_range_in_mm_alone() -> None:
    spec = CropSpec(form="slices", size_mm=8.0, out_px=8, z_range_mm=5.0)
    volume, affine = numbered(20, 2.0)
    middle = cropped(volume, affine, index_to_lps(affine, (9.4, 8, 8)), spec)
    assert slices_of(middle.hu) == [[6, 7, 8], [7, 8, 9], [8, 9, 10], [9, 10, 11], [10, 11, 12]]
    assert not middle.is_replicated
    edge = cropped(volume, affine, index_to_lps(affine, (18.6, 8, 8)), spec)
    assert slices_of(edge.hu) == [[16, 17, 18], [17, 18, 19], [18, 19, 19], [18, 19, 19], [18, 19, 19]]
    assert edge.is_replicated
    thin, thin_affine = numbered(20, 1.0)
    assert cropped(thin, thin_affine, index_to_lps(thin_affine, (9, 8, 8)), spec).hu.shape == (
        11,
        3,
        8,
        8,
    )


def test_no_form_reaches_across_a_gap() -> None:
    volume, affine = numbered(20)
    offsets = [2.0 * k + (10.0 if k > 9 else 0.0) for k in range(20)]
    gap = (9,), offsets
    below = index_to_lps(affine, (9, 8, 8), offsets)
    above = index_to_lps(affine, (11, 8, 8), offsets)
    assert above[2] - below[2] == pytest.approx(14.0)
    assert slices_of(triplet_hu(volume, affine, below, 8.0, 8, *gap)) == [8, 9, 9]
    assert slices_of(triplet_hu(volume, affine, above, 8.0, 8, *gap)) == [10, 11, 12]
    ranged = cropped(
        volume, affine, below, CropSpec(form="slices", size_mm=8.0, out_px=8, z_range_mm=2.0), *gap
    )
    assert slices_of(ranged.hu) == [[7, 8, 9], [8, 9, 9], [8, 9, 9]]
    assert ranged.is_replicated
    for form in ("cube", "planes"):
        with pytest.raises(NoCropError, match="slices are missing after slice 9"):
            cropped(volume, affine, below, CropSpec(form=form, size_mm=8.0, out_px=8), *gap)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ((-0.6, 8, 8), "at slice -0.6, outside the 20 slices"),
        ((19.5, 8, 8), "at slice 19.5, outside the 20 slices"),
        ((5, 16, 8), "at row 16.0, outside the 16 rows"),
        ((5, 8, -3), "at column -3.0, outside the 16 columns"),
        ((5, 8, np.nan), "three finite numbers"),
    ],
)
def test_a_center_outside_the_volume_is_refused_never_shifted(index: tuple[float, ...], message: str) -> None:
    volume, affine = numbered(20)
    with pytest.raises(NoCropError, match=message):
        triplet_hu(volume, affine, index_to_lps(affine, index), 8.0, 8)


def test_a_center_where_slices_are_missing_is_refused_and_one_beside_them_is_not() -> None:
    volume, affine = numbered(20)
    offsets = [2.0 * k + (36.0 if k > 9 else 0.0) for k in range(20)]
    below, above = (index_to_lps(affine, (k, 8, 8), offsets) for k in (9, 10))
    assert above[2] - below[2] == pytest.approx(38.0)
    for beyond_mm, message in (
        (1.0, ""),
        (2.0, "2.0 mm from"),
        (19.0, "19.0 mm from"),
        (36.0, "2.0 mm from"),
    ):
        center = below + np.array([0.0, 0.0, beyond_mm])
        if not message:
            assert slices_of(triplet_hu(volume, affine, center, 8.0, 8, (9,), offsets)) == [8, 9, 9]
            continue
        with pytest.raises(NoCropError, match=f"{message} the nearest slice, where slices are missing"):
            triplet_hu(volume, affine, center, 8.0, 8, (9,), offsets)


def test_on_a_patch_only_the_one_triplet_that_every_patch_has_is_cut() -> None:
    for n_slices, expected, replicated in (
        (2, [0, 1, 1], True),
        (3, [0, 1, 2], False),
        (40, [19, 20, 21], False),
    ):
        volume, affine = numbered(n_slices)
        center = index_to_lps(affine, (n_slices // 2, 8, 8))
        crop = cropped(volume, affine, center, CropSpec(size_mm=8.0, out_px=8), is_patch=True)
        assert (slices_of(crop.hu), crop.is_replicated) == (expected, replicated)
        for form in ("cube", "planes"):
            with pytest.raises(
                NoCropError, match=f"{form} reaches outside a patch in z.*would reveal the label"
            ):
                cropped(volume, affine, center, CropSpec(form=form, size_mm=8.0, out_px=8), is_patch=True)
    long_range = CropSpec(form="slices", size_mm=8.0, out_px=8, z_range_mm=2.0)
    assert cropped(volume, affine, center, long_range, is_patch=True).hu.shape == (3, 3, 8, 8)
    volume, affine = numbered(3)
    with pytest.raises(NoCropError, match="reach outside this patch of 3 slices"):
        cropped(volume, affine, index_to_lps(affine, (1, 8, 8)), long_range, is_patch=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "ball"},
        {"size_mm": 0.0},
        {"out_px": 0},
        {"z_range_mm": 5.0},
        {"form": "slices"},
        {"size_in_diameters": 0.0},
    ],
)
def test_a_crop_that_cannot_be_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(TransformError, match=r"does not exist|positive"):
        CropSpec(**settings)


def test_a_volume_with_other_axes_is_refused() -> None:
    volume, affine = numbered(16)
    for wrong in (affine[:, [1, 0, 2, 3]], affine * [[-1], [-1], [-1], [1]]):
        with pytest.raises(TransformError, match="reorient it before"):
            triplet_hu(volume, wrong, (0, 0, 0), 8.0, 8)


def meta_volume() -> tuple[MetaTensor, np.ndarray]:
    volume, affine, center = sphere(2.5)
    return MetaTensor(torch.from_numpy(volume)[None], affine=torch.from_numpy(affine)), center


def test_the_monai_forms_give_the_crop_of_the_function() -> None:
    volume, center = meta_volume()
    spec = CropSpec(size_mm=24.0, out_px=32)
    expected = triplet_hu(volume[0].numpy(), volume.affine.numpy(), center, 24.0, 32)
    found = NoduleCrop(spec)(volume, center)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, expected)
    data = NoduleCropd("image", spec)({"image": volume, "center_lps_mm": center, "label": 1})
    np.testing.assert_array_equal(data["image"], expected)
    assert (data["label"], data["image_is_replicated"]) == (1, False)


def test_the_monai_forms_know_a_patch_and_a_gap_from_the_meta_data() -> None:
    volume, center = meta_volume()
    volume.meta["kind"] = "patch"
    with pytest.raises(NoCropError, match="outside a patch"):
        NoduleCrop(CropSpec(form="cube"))(volume, center)
    volume.meta["kind"] = "series"
    volume.meta["gaps"] = (11,)
    with pytest.raises(NoCropError, match="slices are missing after slice 11"):
        NoduleCrop(CropSpec(form="cube"))(volume, center)


def test_a_volume_without_geometry_is_refused() -> None:
    with pytest.raises(
        TransformError, match=r"MetaTensor \(1, Z, Y, X\).*got Tensor of shape \(1, 4, 8, 8\)"
    ):
        NoduleCrop(CropSpec())(torch.zeros(1, 4, 8, 8), (0, 0, 0))


def test_jitter_moves_the_crop_in_the_plane_only_when_seeded_and_the_same_for_the_same_seed() -> None:
    volume, center = meta_volume()
    spec = CropSpec(size_mm=24.0, out_px=48)
    with pytest.raises(TransformError, match="call set_random_state first"):
        NoduleCrop(spec, jitter_mm=3.0)(volume, center)
    crop = NoduleCrop(spec, jitter_mm=3.0).set_random_state(7)
    one, two = crop(volume, center), crop(volume, center)
    assert not torch.equal(one, two)
    again = NoduleCrop(spec, jitter_mm=3.0).set_random_state(7)
    torch.testing.assert_close(again(volume, center), one, rtol=0, atol=0)
    shift = crop.shift_lps_mm
    assert shift[2] == 0
    assert 0 < np.abs(shift[:2]).max() <= 3
    torch.testing.assert_close(NoduleCrop(spec)(volume, center + shift), two, rtol=0, atol=0)


def test_two_keys_are_jittered_alike() -> None:
    volume, center = meta_volume()
    crop = NoduleCropd(["a", "b"], CropSpec(size_mm=24.0, out_px=48), jitter_mm=3.0).set_random_state(3)
    data = crop({"a": volume, "b": volume, "center_lps_mm": center})
    torch.testing.assert_close(data["a"], data["b"], rtol=0, atol=0)
