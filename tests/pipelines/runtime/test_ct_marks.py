"""A wrong left and right would be the worst error of a picture: a planted nodule shows where the letters must be."""

import numpy as np
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.runtime.ct_marks import RADIOLOGICAL, Sides, mark_ct, sides_of
from pipelines.runtime.plot_style import new_figure
from transforms.geometry import VolumeGeometry
from transforms.meta_volume import meta_volume
from transforms.nodule_crop import CropSpec, crop_nodule
from transforms.triplet import SliceTriplet
from transforms.views.view_crop import cut_view

LEFT, BACK, HEAD = np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0])  # LPS
SPACING = (2.0, 1.0, 1.0)


def planted(flip_y: bool, flip_x: bool) -> tuple[np.ndarray, VolumeGeometry]:
    """A volume with one bright voxel block on the patient's left, at the back, placed by LPS millimeters alone."""
    y, x = (-1.0 if flip_y else 1.0), (-1.0 if flip_x else 1.0)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = SPACING[0], -y, -x, 1  # RAS
    affine[:3, 3] = [0.0, 40.0 if flip_y else 0.0, 40.0 if flip_x else 0.0]
    geometry = VolumeGeometry((9, 41, 41), affine)
    hu = np.full((9, 41, 41), -800, np.int16)
    z, row, column = np.rint(geometry.to_index(center(geometry) + 12 * LEFT + 8 * BACK)).astype(int)
    hu[z - 1 : z + 2, row - 2 : row + 3, column - 2 : column + 3] = 400
    return hu, geometry


def center(geometry: VolumeGeometry) -> np.ndarray:
    return np.asarray(geometry.to_lps([4, 20, 20]))


def edge_of(image: np.ndarray) -> tuple[str, str]:
    """Which edges of the picture the bright block is nearer to."""
    row, column = np.argwhere(image > image.max() - 100).mean(axis=0) / np.array(image.shape)
    return ("left" if column < 0.5 else "right"), ("top" if row < 0.5 else "bottom")


@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
def test_crops_show_the_left_of_the_patient_on_the_right(flip_y: bool, flip_x: bool) -> None:
    hu, geometry = planted(flip_y, flip_x)
    crop = crop_nodule(hu, geometry, center(geometry), CropSpec(size_mm=36, out_px=36)).hu[1]
    assert edge_of(crop) == ("right", "bottom")
    assert RADIOLOGICAL == Sides("R", "L", "A")


@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_letters_of_a_view_follow_volume_and_mirror(flip_y: bool, flip_x: bool, is_mirrored: bool) -> None:
    hu, geometry = planted(flip_y, flip_x)
    triplet = SliceTriplet()(meta_volume(hu, geometry, {}), z=4)
    view = cut_view(triplet, np.array([0.0, 0.0, 41.0, 41.0]), is_mirrored, 41)
    down, right = np.asarray(view.affine)[:3, :2].T
    sides, (across, up) = sides_of(down, right), edge_of(view[1].numpy())
    assert getattr(sides, across) == "L"
    assert {sides.left, sides.right} == {"L", "R"}
    assert (sides.top == "A") == (up == "bottom")
    assert (sides == RADIOLOGICAL) == (flip_x == is_mirrored and not flip_y)


def test_planes_along_z_have_the_head_on_top() -> None:
    left, back, head = (v * [-1, -1, 1] for v in (LEFT, BACK, HEAD))  # RAS
    assert sides_of(-head, left) == Sides("R", "L", "H")
    assert sides_of(-head, back) == Sides("A", "P", "H")


def test_marks_are_letters_a_bar_of_its_length_and_the_window() -> None:
    axis = new_figure(2, 2).subplots()
    axis.imshow(np.zeros((10, 50)), aspect="auto")
    mark_ct(axis, Sides("L", "R", "P"), 0.8, (-1350.0, 150.0))
    texts = {text.get_text(): text.get_position() for text in axis.texts}
    assert texts["L"][0] < 0.1 < 0.9 < texts["R"][0]
    assert texts["P"][1] > 0.9
    assert {"-1350 .. 150 HU", "10 mm"} <= texts.keys()
    (bar,) = axis.lines
    share = np.ptp(bar.get_xdata())
    assert share * 50 * 0.8 == pytest.approx(10)
    assert axis.get_xlim() == (-0.5, 49.5)


def test_what_is_not_known_is_not_drawn() -> None:
    axis = new_figure(2, 2).subplots()
    axis.imshow(np.zeros((5, 5)))
    mark_ct(axis, None, None, "")
    assert not axis.lines
    assert not any(text.get_text() for text in axis.texts)


def test_letters_of_rendered_views_are_those_of_their_affines(small_cohort: Cohort) -> None:
    """The batched path knows left from its draws, the view sheet from MONAI's affines: two witnesses of one thing."""
    from pipelines.backbones.view_retrieval import _VIEW_SEED, directions_of, sample_slices
    from pipelines.cohort.slices import SliceIndex
    from pipelines.training.view_sheet import slice_and_cubes, slice_and_views
    from transforms.views.config import ViewConfig

    flat = ViewConfig(size_px=16)
    deep = ViewConfig(
        size_px=16, depth_px=8, extent="mm", fov_mm=(14.0, 20.0), mean=(0.2, 0.3, 0.4), std=(0.5, 0.5, 0.5)
    )
    seen = set()
    for views in (flat, deep):
        index = SliceIndex(small_cohort, set(small_cohort.series["patient_id"]), views=views)
        sample = sample_slices(index, views, 8)
        directions = directions_of(sample, sample.rows)
        for number, row in enumerate(sample.rows.tolist()):
            cut = slice_and_cubes if views.is_3d else slice_and_views
            shown = cut(index, row, sample.views, _VIEW_SEED, 0)
            for view, name in enumerate(("first", "second")):
                affine = np.asarray(shown[name].affine if views.is_3d else shown[f"{name}_affine"])
                down, right = affine[:3, 1:3].T if views.is_3d else affine[:3, :2].T
                expected = sides_of(down, right)
                assert sides_of(*directions[view, number, 1:]) == expected
                seen.add((views.is_3d, expected.left))
    assert seen == {(False, "L"), (False, "R"), (True, "L"), (True, "R")}
