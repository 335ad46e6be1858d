from dataclasses import replace

import numpy as np
import pytest

from transforms.body_grid import LUNG
from transforms.views.config import ViewConfig
from transforms.views.crops import (
    UNIFORMS_PER_CROP,
    SliceFrames,
    body_share,
    crop_flips,
    crop_sizes,
    place_crops,
)

N = 4000


def frames(size_hw=(512, 512), pixel_mm=(0.7, 0.7), body=None, point=(np.nan, np.nan), n=1):
    return SliceFrames(
        size_hw=np.tile(np.array(size_hw), (n, 1)),
        pixel_mm=np.tile(np.array(pixel_mm), (n, 1)),
        body=np.tile(np.ones((32, 32), np.uint8) if body is None else body, (n, 1, 1)),
        point_yx_px=np.tile(np.array(point), (n, 1)),
    )


def boxes(config, n_global=N, seed=0, n_local=0, **frame):
    uniforms = np.random.RandomState(seed).random_sample((n_global + n_local, 1, UNIFORMS_PER_CROP))
    return place_crops(config, uniforms, n_global, frames(**frame))[:, 0]


@pytest.mark.parametrize("size_hw", [(512, 512), (300, 512), (512, 90), (7, 5), (1, 1)])
@pytest.mark.parametrize("extent", ["fraction", "mm"])
@pytest.mark.parametrize("shared_scale", [False, True])
@pytest.mark.parametrize("center", ["body", "uniform", "point", "lung"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_crop_lies_on_its_slice(size_hw, extent, shared_scale, center, interpolation):
    config = ViewConfig(
        extent=extent,
        shared_scale=shared_scale,
        center=center,
        interpolation=interpolation,
        n_local=300,
        center_jitter_mm=9.0,
    )
    box = boxes(config, n_global=300, n_local=300, size_hw=size_hw, point=(0.0, size_hw[1] - 1.0))
    assert (box[:, 2:] >= 1).all()
    assert (box[:, :2] >= 0).all()
    assert (box[:, :2] + box[:, 2:] <= np.array(size_hw) + 1e-9).all()
    assert (box == np.rint(box)).all() or interpolation == "bilinear"


def test_bilinear_crops_lie_anywhere_uniformly():
    box = boxes(
        ViewConfig(fraction=(0.25, 0.25), square=True, center="uniform", interpolation="bilinear"),
        size_hw=(41, 41),
    )
    np.testing.assert_allclose(box[:, 2:], 20.5)
    assert (box[:, :2] % 1 != 0).all()
    for quantile in (0.0, 0.25, 0.5, 0.75, 1.0):
        np.testing.assert_allclose(np.quantile(box[:, :2], quantile, axis=0), 20.5 * quantile, atol=0.6)


def test_bilinear_sizes_are_those_of_bicubic_before_rounding():
    for config in (ViewConfig(), ViewConfig(square=True), ViewConfig(extent="mm")):
        snapped, free = boxes(config), boxes(replace(config, interpolation="bilinear"))
        # A try that just fits when rounded may not fit as it is, and the next one is taken: seldom.
        assert np.quantile(np.abs(snapped[:, 2:] - free[:, 2:]), 0.99) <= 0.5
        assert (snapped[:, 2:] != free[:, 2:]).any()


def test_fractions_of_the_area_are_uniform_and_aspects_stay_within_four_thirds():
    box = boxes(ViewConfig())
    share = box[:, 2] * box[:, 3] / 512**2
    aspect = box[:, 3] / box[:, 2]
    assert share.min() > 0.495
    assert aspect.min() > 0.745
    assert aspect.max() < 1.34
    # A crop of 0.9 of the area fits only when nearly square, so large ones are rare, as in torchvision.
    assert (share < 0.6).mean() > 3 * (share > 0.9).mean() > 0


def test_crop_sizes_follow_torchvision():
    torchvision = pytest.importorskip("torchvision.transforms")
    import torch

    image = torch.empty(1, 300, 512)
    theirs = np.array(
        [torchvision.RandomResizedCrop.get_params(image, (0.5, 1.0), (3 / 4, 4 / 3))[2:] for _ in range(N)]
    )
    ours = boxes(ViewConfig(), size_hw=(300, 512))[:, 2:]
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(
            np.quantile(ours, quantile, 0), np.quantile(theirs, quantile, 0), rtol=0.03
        )


@pytest.mark.parametrize(("size_hw", "expected"), [((512, 90), (120, 90)), ((90, 512), (90, 120))])
def test_a_slice_too_long_for_any_aspect_is_cut_to_the_longest_allowed(size_hw, expected):
    assert (boxes(ViewConfig(fraction=(1.0, 1.0)), n_global=5, size_hw=size_hw)[:, 2:] == expected).all()


def test_square_crops_are_square():
    box = boxes(ViewConfig(square=True))
    assert (box[:, 2] == box[:, 3]).all()
    share = box[:, 2] ** 2 / 512**2
    assert share.mean() == pytest.approx(0.75, abs=0.01)


def test_fields_of_view_in_mm_are_log_uniform_and_square_in_mm():
    config = ViewConfig(extent="mm", fov_mm=(30.0, 240.0))
    box = boxes(config, size_hw=(512, 400), pixel_mm=(0.5, 0.75))
    side_mm = box[:, 2:] * (0.5, 0.75)
    np.testing.assert_allclose(side_mm[:, 0], side_mm[:, 1], atol=0.75)
    assert side_mm.min() > 29.5
    assert side_mm.max() < 240.5
    quartiles = np.quantile(np.log2(side_mm[:, 0] / 30), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [0.75, 1.5, 2.25], atol=0.1)


def test_a_field_larger_than_the_slice_shows_the_whole_slice():
    config = ViewConfig(extent="mm", fov_mm=(400.0, 500.0))
    assert (boxes(config, n_global=4, size_hw=(300, 300)) == (0, 0, 300, 300)).all()


def test_shared_scale_gives_every_view_of_a_sample_one_scale():
    config = ViewConfig(extent="mm", shared_scale=True, size_px=224, n_local=4, local_size_px=98)
    for seed in range(20):
        box = boxes(config, n_global=2, n_local=4, seed=seed)
        assert (box[:2, 2:] == box[0, 2]).all()
        assert (np.abs(box[2:, 2:] - box[0, 2] * 98 / 224) <= 0.5).all()
    sides = {int(boxes(config, n_global=2, seed=seed)[0, 2]) for seed in range(20)}
    assert len(sides) > 10  # samples still differ


def test_centers_fall_on_the_body():
    body = np.zeros((32, 32), np.uint8)
    body[4:12, 20:30] = 1
    body[6:8, 22:25] = 2
    box = boxes(ViewConfig(extent="mm", fov_mm=(20.0, 30.0)), body=body)
    center = (box[:, :2] + box[:, 2:] / 2) / 16
    assert (center >= (4 - 0.1, 20 - 0.1)).all()
    assert (center <= (12 + 0.1, 30 + 0.1)).all()
    np.testing.assert_allclose(center.mean(axis=0), (8, 25), atol=0.15)


def test_large_crops_do_not_pile_up_at_the_corners():
    # Side 448 of 512 leaves 65 places per axis. Drawing centers first and pushing back would put most at the ends.
    box = boxes(ViewConfig(fraction=(0.765, 0.767), square=True), n_global=8000)
    n_places = 512 - int(box[0, 2]) + 1
    counts = np.bincount(box[:, 0].astype(int), minlength=n_places)
    assert len(counts) == n_places
    assert counts.max() < 2 * counts.mean()
    assert counts[[0, -1]].min() > 0.5 * counts.mean()


def test_a_slice_without_body_is_cut_anywhere_and_counts_as_outside():
    empty = np.zeros((32, 32), np.uint8)
    config = ViewConfig(extent="mm", fov_mm=(20.0, 30.0))
    box = boxes(config, body=empty)
    assert np.ptp(box[:, 0]) > 400
    assert (body_share(box[:, None], empty[None], np.array([[512, 512]])) == 0).all()


def test_the_share_of_body_is_the_share_of_the_area():
    body = np.zeros((32, 32), np.uint8)
    body[:, :16] = 1
    at = np.array([[[0, 192, 64, 128]], [[0, 384, 64, 128]], [[10, 255, 3, 4]]])
    share = body_share(at, body[None], np.array([[512, 512]]))
    np.testing.assert_allclose(share[:, 0], [0.5, 0.0, 0.25])


def test_a_point_is_the_middle_of_the_crop_wherever_the_slice_allows():
    config = ViewConfig(extent="mm", fov_mm=(28.0, 28.0), center="point")
    box = boxes(config, n_global=3, point=(200.0, 300.5))
    np.testing.assert_allclose(box[:, :2] + box[:, 2:] / 2 - 0.5, np.tile((200.0, 300.5), (3, 1)), atol=0.5)
    assert boxes(config, n_global=1, point=(3.0, 510.0))[0, :2].tolist() == [0, 472]


def test_jitter_moves_the_point_by_so_many_mm():
    config = ViewConfig(extent="mm", fov_mm=(28.0, 28.0), center="point", center_jitter_mm=7.0)
    box = boxes(config, point=(200.0, 300.0))
    offset_mm = (box[:, :2] + box[:, 2:] / 2 - 0.5 - (200, 300)) * 0.7
    assert np.abs(offset_mm).max() == pytest.approx(7.0, abs=0.5)
    assert offset_mm.std(axis=0) == pytest.approx(14 / np.sqrt(12), rel=0.05)


def test_local_views_of_a_point_stay_inside_the_first_global_view():
    config = ViewConfig(
        extent="mm", fov_mm=(40.0, 60.0), local_fov_mm=(10.0, 90.0), center="point", n_local=500
    )
    box = boxes(config, n_global=2, n_local=500, point=(200.0, 300.0))
    top_left, bottom_right = box[2:, :2], box[2:, :2] + box[2:, 2:]
    assert (top_left >= box[0, :2]).all()
    assert (bottom_right <= box[0, :2] + box[0, 2:]).all()
    assert np.ptp(top_left, axis=0).min() > 20


def test_global_views_around_the_lung_share_a_place_in_it_that_differs_between_samples():
    body = np.ones((32, 32), np.uint8)
    body[8:24, 18:26] = LUNG
    config = ViewConfig(extent="mm", fov_mm=(28.0, 40.0), center="lung", center_jitter_mm=3.5)
    places = []
    for seed in range(200):
        box = boxes(config, n_global=2, seed=seed, body=body)
        center = box[:, :2] + box[:, 2:] / 2
        assert np.abs(center[0] - center[1]).max() * 0.7 <= 7.0 + 0.7  # two jitters, and whole pixels
        places.append(center.mean(axis=0) / 16)
    low, high = np.min(places, axis=0), np.max(places, axis=0)
    jitter_cells = 3.5 / 0.7 / 16 + 0.1
    assert (low >= np.array([8, 18]) - jitter_cells).all()
    assert (high <= np.array([24, 26]) + jitter_cells).all()
    assert (high - low > [14, 7]).all()


def test_local_views_around_the_lung_stay_inside_the_first_global_view():
    body = np.ones((32, 32), np.uint8)
    body[8:24, 18:26] = LUNG
    config = ViewConfig(
        extent="mm", fov_mm=(40.0, 60.0), local_fov_mm=(10.0, 90.0), center="lung", n_local=99
    )
    box = boxes(config, n_global=2, n_local=99, body=body)
    assert (box[2:, :2] >= box[0, :2]).all()
    assert (box[2:, :2] + box[2:, 2:] <= box[0, :2] + box[0, 2:]).all()


def test_half_of_the_views_are_mirrored_or_none():
    uniforms = np.random.RandomState(0).random_sample((N, 1, UNIFORMS_PER_CROP))
    assert crop_flips(ViewConfig(), uniforms).mean() == pytest.approx(0.5, abs=0.03)
    assert not crop_flips(ViewConfig(flip=False), uniforms).any()


def test_local_views_have_an_extent_of_their_own():
    config = ViewConfig(local_fraction=(0.05, 0.1))
    uniforms = np.random.RandomState(0).random_sample((N, 1, 20))
    size = crop_sizes(config, uniforms, np.array([[512, 512]]), np.array([[0.7, 0.7]]), is_local=True)
    share = size.prod(axis=-1) / 512**2
    assert share.min() > 0.048
    assert share.max() < 0.102


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_px": 0}, "size_px must be at least 1"),
        ({"extent": "cm"}, "extent 'cm' is unknown"),
        ({"center": "chest"}, "center 'chest' is unknown"),
        ({"fraction": (0.0, 1.0)}, "fraction must be a range"),
        ({"fraction": (0.5, 1.5)}, "fraction must be a range"),
        ({"fov_mm": (60.0, 30.0)}, "fov_mm must be a range"),
        ({"local_fraction": (0.5, 0.1)}, "local_fraction must be a range"),
        ({"n_local": -1}, "n_local"),
        ({"center_jitter_mm": -1.0}, "center_jitter_mm"),
        ({"color_jitter": (1.0, 0.2)}, "color_jitter"),
        ({"gaussian_blur": (2.0, 0.1)}, "gaussian_blur"),
        ({"std": (0.2, 0.0, 0.2)}, "std must be positive"),
        ({"shared_scale": True, "n_local": 2, "local_size_px": 300}, "would show more"),
    ],
)
def test_impossible_views_are_refused_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message) as refusal:
        ViewConfig(**change)
    assert "\n" not in str(refusal.value)
