"""Cubes against a naive loop, and against objects whose place is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from transforms.views.config import ViewConfig
from transforms.views.cube_render import CubeBatch, cube_weights, render_cubes, resize_together
from transforms.views.cubes import CubeFrames, draw_cubes
from transforms.window_policy import WindowConfig

NAN = float("nan")
WIDE = WindowConfig(policy="fixed", low_hu=-1024, high_hu=3071)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "window": WIDE, "extent": "mm"}
SPACINGS_MM = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (0.6, 0.8, 0.9), (5.0, 0.5, 0.5)]


def frames_at(shape, spacing_mm, slices, points=None, gaps=()):
    """Frames of some slices of one volume, all of it lung."""
    n = len(slices)
    low = [max([gap + 1 for gap in gaps if gap < z], default=0) for z in slices]
    high = [min([gap for gap in gaps if gap >= z], default=shape[0] - 1) for z in slices]
    return CubeFrames(
        z=np.array(slices),
        run_z=np.stack([low, high], axis=1),
        size_hw=np.array([shape[1:]] * n),
        spacing_mm=np.array([spacing_mm] * n, dtype=float),
        body=np.full((n, 32, 32), 2, np.uint8),
        point_yx_px=np.array(points if points is not None else [(NAN, NAN)] * n, dtype=float),
    )


def read(volume_hu, frames, draws):
    """The raw boxes of drawn cubes, one by one."""
    boxes = [volume_hu[tuple(slice(*ends) for ends in box)] for view in draws.places.read_zyx for box in view]
    n = len(frames.z)
    return CubeBatch(
        voxels_hu=torch.from_numpy(np.concatenate([box.ravel() for box in boxes])),
        body_share=draws.places.body_share(
            np.full((len(draws.places.read_zyx), n, 32, 32), 2, np.uint8), frames.size_hw
        ),
    )


def cubes_of(volume_hu, spacing_mm, config, slices, gaps=(), points=None, step=0):
    frames = frames_at(volume_hu.shape, spacing_mm, slices, points, gaps)
    draws = draw_cubes(frames, list(range(len(slices))), config, seed=1, step=step)
    return draws, render_cubes(read(volume_hu, frames, draws), draws, config)


def gray(hu):
    return (hu + 1024) / 4095


def naive_line(volume, axis, start, length, n_out, low, high):
    """One axis, voxel by voxel: every sample is the mean of the voxels around it under a triangle."""
    volume = np.moveaxis(volume, axis, 0)
    step = length / n_out
    reach = max(1.0, step)
    out = np.zeros((n_out, *volume.shape[1:]))
    for i in range(n_out):
        center, total = start + (i + 0.5) * step, 0.0
        for voxel in range(int(center - reach) - 2, int(center + reach) + 3):
            weight = 1 - abs(voxel + 0.5 - center) / reach
            if weight > 0:
                out[i] += weight * volume[min(max(voxel, low), high)]
                total += weight
        out[i] /= total
    return np.moveaxis(out, 0, axis)


CUBES = {
    "isotropic": ViewConfig(size_px=12, depth_px=12, fov_mm=(10.0, 30.0), **PLAIN),
    "flat": ViewConfig(size_px=12, depth_px=4, depth_mm=(4.0, 30.0), fov_mm=(6.0, 30.0), flip=False, **PLAIN),
    "local": ViewConfig(
        size_px=12,
        depth_px=8,
        fov_mm=(20.0, 30.0),
        n_local=2,
        local_size_px=6,
        local_depth_px=5,
        local_depth_mm=(3.0, 9.0),
        local_fov_mm=(5.0, 12.0),
        center="lung",
        **PLAIN,
    ),
    "shared": ViewConfig(
        size_px=12,
        depth_px=8,
        fov_mm=(20.0, 30.0),
        depth_mm=(12.0, 30.0),
        n_local=1,
        local_size_px=6,
        local_depth_px=4,
        shared_scale=True,
        center="uniform",
        **PLAIN,
    ),
}


@pytest.mark.parametrize("config", CUBES.values(), ids=CUBES.keys())
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM, ids=str)
def test_cubes_are_those_of_a_naive_loop(config, spacing_mm):
    volume = np.random.default_rng(0).integers(-1000, 1000, (14, 70, 64)).astype(np.int16)
    slices, gaps = [0, 6, 9, 13], (8,)
    draws, views = cubes_of(volume, spacing_mm, config, slices, gaps)
    all_views = [*views.global_views, *(views.local_views if views.local_views is not None else [])]
    for view, shape in enumerate(config.view_shapes()):
        for b, z in enumerate(slices):
            run = (0, 8) if z <= 8 else (9, 13)
            expected = volume.astype(float)
            for axis, ends in enumerate((run, (0, 69), (0, 63))):
                line = (
                    draws.places.start_zyx[view, b, axis],
                    draws.places.length_zyx[view, b, axis],
                    shape[axis],
                )
                expected = naive_line(expected, axis, *line, *ends)
            if draws.places.is_flipped[view, b]:
                expected = expected[..., ::-1]
            np.testing.assert_allclose(all_views[view][b, 0].numpy(), gray(expected), atol=1e-5)


@pytest.mark.parametrize("config", CUBES.values(), ids=CUBES.keys())
def test_the_form_for_a_gpu_shows_the_same(config):
    volume = np.random.default_rng(0).integers(-1000, 1000, (14, 70, 64)).astype(np.int16)
    frames = frames_at(volume.shape, (2.0, 0.7, 0.7), [0, 6, 13])
    draws = draw_cubes(frames, [4, 5, 6], config, seed=1, step=0)
    views = render_cubes(read(volume, frames, draws), draws, config).global_views
    for view, shape in enumerate(config.view_shapes()[:2]):
        boxes = [
            torch.from_numpy(volume[tuple(slice(*ends) for ends in box)])
            for box in draws.places.read_zyx[view]
        ]
        together = resize_together(boxes, [cube_weights(draws.places, view, b, shape) for b in range(3)])
        np.testing.assert_allclose(gray(together.numpy()), views[view, :, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("center", ["body", "uniform", "lung", "point"])
def test_a_cube_lies_within_the_thickness_of_its_slice_and_inside_it(center):
    config = ViewConfig(
        size_px=10, depth_px=10, fov_mm=(8.0, 40.0), center=center, center_jitter_mm=2.0, **PLAIN
    )
    slices = [0, 3, 9] * 40
    points = [(30.0, 20.0)] * len(slices)
    places = draw_cubes(
        frames_at((10, 60, 50), (3.0, 0.9, 0.8), slices, points), list(range(120)), config, 1, 0
    ).places
    middle = places.start_zyx + places.length_zyx / 2
    inside_slice = middle[..., 0] - slices
    assert ((inside_slice >= 0) & (inside_slice < 1)).all()
    assert inside_slice.min() < 0.05
    assert inside_slice.max() > 0.95
    assert (places.middle_z() == slices).all()
    assert (places.start_zyx[..., 1:] > -1e-9).all()
    assert (places.start_zyx[..., 1:] + places.length_zyx[..., 1:] < np.array([60, 50]) + 1e-9).all()
    is_shared = center in ("lung", "point")
    assert np.allclose(inside_slice[0], inside_slice[1]) == is_shared
    if center == "point":
        # Where the cube is not pushed back into the slice, its middle is the point, moved by at most the jitter.
        free = places.length_zyx[..., 2] * 0.8 < 30
        off_mm = np.abs(middle[..., 1:] - 0.5 - points[0]) * (0.9, 0.8)
        assert off_mm[free].max() <= 2.0
        assert off_mm[free].max() > 1.8


def test_extents_in_mm_fill_their_ranges_per_axis_and_views_share_a_scale_where_asked():
    keys, slices = list(range(200)), [5] * 200
    frames = frames_at((40, 200, 200), (2.0, 0.7, 0.8), slices)
    isotropic = ViewConfig(size_px=10, depth_px=5, fov_mm=(8.0, 40.0), **PLAIN)
    spacing_mm = draw_cubes(frames, keys, isotropic, 1, 0).places.spacing_mm
    np.testing.assert_allclose(spacing_mm, spacing_mm[..., :1].repeat(3, axis=-1))
    fov_mm = spacing_mm[..., 1] * 10
    assert 8 <= fov_mm.min() < 8.5
    assert 38 < fov_mm.max() <= 40
    assert abs(np.median(np.log(fov_mm)) - np.log(8 * 40) / 2) < 0.15  # log-uniform

    free = replace(isotropic, depth_mm=(4.0, 12.0))
    spacing_mm = draw_cubes(frames, keys, free, 1, 0).places.spacing_mm
    depth_mm = spacing_mm[..., 0] * 5
    assert 4 <= depth_mm.min() < 4.2
    assert 11.5 < depth_mm.max() <= 12
    assert abs(np.corrcoef(depth_mm.ravel(), spacing_mm[..., 1].ravel())[0, 1]) < 0.2
    assert not np.allclose(depth_mm[0], depth_mm[1])

    shared = replace(free, shared_scale=True, n_local=2, local_size_px=4, local_depth_px=3)
    spacing_mm = draw_cubes(frames, keys, shared, 1, 0).places.spacing_mm
    np.testing.assert_allclose(spacing_mm, spacing_mm[:1].repeat(4, axis=0))


@pytest.mark.parametrize("center", ["body", "lung"])
def test_local_cubes_lie_along_the_first_global_one(center):
    config = replace(CUBES["local"], center=center)
    slices = [10] * 100
    places = draw_cubes(
        frames_at((20, 100, 90), (2.0, 0.7, 0.8), slices), list(range(100)), config, 1, 0
    ).places
    begin = places.start_zyx[2:] - places.start_zyx[0]
    end = begin + places.length_zyx[2:] - places.length_zyx[0]
    axes = slice(0, 3) if center == "lung" else slice(0, 1)
    assert (begin[..., axes] > -1e-9).all()
    assert (end[..., axes] < 1e-9).all()
    assert begin[..., 0].min() < 0.3  # anywhere along it, in voxels
    assert end[..., 0].max() > -0.3
    assert (begin[..., 2].min() < -1) == (center == "body")


def test_a_sample_has_the_same_cubes_in_any_batch_and_others_at_another_step():
    frames = frames_at((20, 100, 90), (2.0, 0.7, 0.8), [3, 10, 18])
    alone = frames_at((20, 100, 90), (2.0, 0.7, 0.8), [10])
    config = CUBES["local"]
    together, one = draw_cubes(frames, [7, 8, 9], config, 1, 5), draw_cubes(alone, [8], config, 1, 5)
    for name in ("start_zyx", "length_zyx", "read_zyx", "spacing_mm", "is_flipped"):
        assert np.array_equal(getattr(together.places, name)[:, 1:2], getattr(one.places, name))
    assert np.array_equal(together.window_hu[:, 1:2], one.window_hu)
    for seed, step, key in ((2, 5, 8), (1, 6, 8), (1, 5, 9)):
        other = draw_cubes(alone, [key], config, seed, step)
        assert not np.array_equal(other.places.start_zyx, one.places.start_zyx)


def test_a_mirrored_cube_is_the_other_one_from_right_to_left():
    volume = np.random.default_rng(0).integers(-1000, 1000, (14, 70, 64)).astype(np.int16)
    config, frames = CUBES["flat"], frames_at((14, 70, 64), (1.0, 1.0, 1.0), [6])
    draws = draw_cubes(frames, [3], config, 1, 0)
    turned = replace(draws, places=replace(draws.places, is_flipped=~draws.places.is_flipped))
    batch = read(volume, frames, draws)
    assert torch.equal(
        render_cubes(batch, turned, config).global_views,
        render_cubes(batch, draws, config).global_views.flip(-1),
    )
    half = draw_cubes(
        frames_at((14, 70, 64), (1.0, 1.0, 1.0), [6] * 200), list(range(200)), CUBES["isotropic"], 1, 0
    )
    assert 0.4 < half.places.is_flipped.mean() < 0.6


def test_windows_and_normalization_are_those_of_triplets_and_outside_the_body_is_noticed():
    config = ViewConfig(
        size_px=6, depth_px=4, extent="mm", fov_mm=(9.0, 9.0), mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4)
    )
    volume = np.full((9, 40, 40), -850, np.int16)
    frames = frames_at(volume.shape, (2.0, 1.0, 1.0), [3, 4])
    draws = draw_cubes(frames, [0, 1], config, 0, 0)
    batch = read(volume, frames, draws)
    views = render_cubes(batch, draws, config)
    for view in range(2):
        for b in range(2):
            low, high = draws.window_hu[view, b]
            expected = ((-850 - low) / (high - low) - 0.3) / 0.3
            np.testing.assert_allclose(views.global_views[view, b].numpy(), expected, atol=1e-5)
    assert not views.outside_body.any()
    np.testing.assert_allclose(batch.body_share, 1)
    half = np.zeros((2, 2, 32, 32), np.uint8)
    half[..., :16] = 1
    shares = draws.places.body_share(half, frames.size_hw)
    begin = draws.places.start_zyx[..., 2]
    np.testing.assert_allclose(shares, ((20 - begin) / 9).clip(0, 1), atol=1e-9)
    outside = render_cubes(
        replace(batch, body_share=np.array([[0.09, 0.11], [0, 1]])), draws, config
    ).outside_body
    assert outside.tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"extent": "fraction"}, r"have extent=mm alone, got fraction"),
        ({"neighbor_slices": 1}, "have neighbor_slices=0 alone, got 1"),
        ({"color_jitter": (0.2, 0.2)}, "have color_jitter"),
        ({"gaussian_blur": (0.0, 1.0)}, "have gaussian_blur"),
        ({"window": WindowConfig(policy="ranges")}, "fills three channels; cubes have one"),
        ({"n_local": 2}, "local cubes need n_local and local_depth_px, got 2 and 0"),
        ({"local_depth_px": 2}, "local cubes need n_local and local_depth_px, got 0 and 2"),
        ({"depth_mm": (3.0, 2.0)}, "depth_mm must be a range"),
        ({"depth_px": -1}, "depth_px must be 0 .* or more voxels, got -1"),
        ({"depth_px": 0, "depth_mm": (2.0, 3.0)}, "depth_mm is of cubes: set depth_px"),
        (
            {"shared_scale": True, "n_local": 1, "local_size_px": 4, "local_depth_px": 9},
            "would show more than those; make local_depth_px smaller",
        ),
    ],
)
def test_settings_that_cubes_do_not_have_are_refused(given, message):
    cubes = {"size_px": 8, "depth_px": 8, "extent": "mm"}
    with pytest.raises(ValueError, match=message):
        ViewConfig(**cubes | given)


def test_rendering_on_a_gpu_waits_for_no_copy(host_copies) -> None:
    volume = np.zeros((14, 70, 64), np.int16)
    frames, config = frames_at(volume.shape, (2.0, 0.7, 0.7), [0, 6]), CUBES["local"]
    draws = draw_cubes(frames, [4, 5], config, seed=1, step=0)
    raw = read(volume, frames, draws)
    with FakeTensorMode(allow_non_fake_inputs=True), host_copies:  # shapes and devices, no GPU
        voxels = torch.empty(raw.voxels_hu.shape, dtype=torch.int16, device="cuda")
        views = render_cubes(replace(raw, voxels_hu=voxels), draws, config)
    assert views.global_views.device.type == "cuda"
    assert views.local_views is not None
    assert views.local_views.shape == (2, 2, 1, 5, 6, 6)
    assert len(host_copies.is_waited_for) == len(host_copies.pinned) > 10
    assert not any(host_copies.is_waited_for)


def test_only_the_voxels_travel_to_the_device():
    volume, frames = np.zeros((14, 70, 64), np.int16), frames_at((14, 70, 64), (2.0, 0.7, 0.7), [6])
    raw = read(volume, frames, draw_cubes(frames, [4], CUBES["flat"], 1, 0))
    moved = raw.to("meta")
    assert moved.voxels_hu.device.type == "meta"
    assert moved.body_share is raw.body_share


@pytest.mark.gpu
@pytest.mark.parametrize("config", CUBES.values(), ids=CUBES.keys())
def test_the_device_shows_what_the_cpu_shows(config):
    volume = np.random.default_rng(0).integers(-1000, 1000, (14, 70, 64)).astype(np.int16)
    frames = frames_at(volume.shape, (2.0, 0.7, 0.7), [0, 6, 13])
    draws = draw_cubes(frames, [4, 5, 6], config, seed=1, step=0)
    raw = read(volume, frames, draws)
    on_cpu, on_device = render_cubes(raw, draws, config), render_cubes(raw.to("cuda"), draws, config)
    for name in ("global_views", "local_views"):
        if getattr(on_cpu, name) is not None:
            assert (getattr(on_cpu, name) - getattr(on_device, name).cpu()).abs().max() < 1e-5
