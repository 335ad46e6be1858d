"""Cubes against a naive loop, and against objects whose place is known."""

import numpy as np
import pytest
import torch

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
        body=torch.full((len(draws.places.read_zyx), n, 32, 32), 2, dtype=torch.uint8),
        size_hw=torch.from_numpy(frames.size_hw),
        sample_keys=torch.arange(n),
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
