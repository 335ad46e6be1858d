"""Cubes as MONAI transforms: known objects are found through the affine, and the batched path shows the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, NormalizeIntensityd, Orientation, ResampleToMatch, Spacing

from transforms.geometry import VolumeGeometry
from transforms.hounsfield import RandWindowHUd
from transforms.refusal import TransformError
from transforms.views.config import ViewConfig
from transforms.views.cube_crop import RandCube, RandCubed
from transforms.views.cube_render import CubeBatch, render_cubes
from transforms.views.cubes import CubeFrames, draw_cubes
from transforms.views.keyed import sample_state
from transforms.window_policy import WindowConfig

VIEWS = ("first", "second")
SPACINGS_MM = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9), (0.6, 0.8, 0.8), (5.0, 1.2, 1.2)]
SIDES_MM = np.array([60.0, 64.0, 68.0])
SLOPE = 40.0
"""Of the gradients, HU per mm."""
ORIGIN_MM = np.array([80.0, 60.0, -150.0])
AXES = np.array([[0, 0, -1.0], [0, -1.0, 0], [1.0, 0, 0]])
"""From (z, y, x) to RAS: toward the head, the back and the left."""
CENTER_MM = np.array([30.0, 31.0, 35.0])
"""Of the objects, mm from the first voxel along (z, y, x)."""
SIZES = {
    "isotropic": ViewConfig(size_px=20, depth_px=20, extent="mm", fov_mm=(24.0, 40.0)),
    "flat": ViewConfig(size_px=24, depth_px=8, extent="mm", fov_mm=(24.0, 30.0), depth_mm=(20.0, 50.0)),
    "fine": ViewConfig(size_px=40, depth_px=48, extent="mm", fov_mm=(22.0, 26.0), depth_mm=(22.0, 26.0)),
}


def volume_of(value_at, spacing_mm):
    """A volume of HU given as a function of (z, y, x) in mm from the first voxel."""
    shape = np.ceil(SIDES_MM / spacing_mm).astype(int)
    lines = [np.arange(n) * step for n, step in zip(shape, spacing_mm, strict=True)]
    hu = value_at(*np.meshgrid(*lines, indexing="ij"))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = AXES * spacing_mm, ORIGIN_MM
    return MetaTensor(torch.from_numpy(np.round(hu).astype(np.int16))[None], affine=torch.from_numpy(affine))


def blurred_edge(distance_mm, width_mm):
    """1 inside, 0 outside, with a soft edge that the voxels resolve."""
    return np.clip(0.5 - distance_mm / width_mm, 0, 1)


def ball(radius_mm, width_mm):
    return lambda z, y, x: (
        -1000
        + 2000
        * blurred_edge(
            np.sqrt((z - CENTER_MM[0]) ** 2 + (y - CENTER_MM[1]) ** 2 + (x - CENTER_MM[2]) ** 2) - radius_mm,
            width_mm,
        )
    )


def rod(axis, width_mm):
    def value_at(*zyx):
        across = [zyx[other] - CENTER_MM[other] for other in range(3) if other != axis]
        return -1000 + 2000 * blurred_edge(np.hypot(*across) - 4.0, width_mm)

    return value_at


def cut(volume, config, seed, point=True):
    """A cube around the objects' center, moved by up to 2 mm and half a slice, with its keys."""
    spacing_mm = np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)
    config = replace(config, center="point", center_jitter_mm=2.0)
    chain = Compose([RandCubed("image", config, body_key="body", point_key="point")]).set_random_state(
        seed=seed
    )
    z, y, x = CENTER_MM / spacing_mm
    data = {"image": volume, "z": round(z), "body": np.ones((32, 32), np.uint8), "point": (y, x)}
    return chain(data)


def places_zyx_mm(cube):
    """Where each voxel lies by its affine: mm along (z, y, x) from the first voxel of the volume, (3, D, S, S)."""
    index = np.stack(np.meshgrid(*map(np.arange, cube.shape[1:]), indexing="ij"))
    affine = np.asarray(cube.affine)
    ras = np.einsum("ij,jdyx->idyx", affine[:3, :3], index) + (affine[:3, 3] - ORIGIN_MM)[:, None, None, None]
    return np.einsum("ji,jdyx->idyx", AXES, ras)


def centroid_mm(cube, places_mm, axis=None):
    """Center of what is brighter than the background; with `axis`, of each slice along it, (n, 3)."""
    weight = (cube.as_tensor().numpy()[0] + 1000).clip(0)
    over = tuple(other for other in range(3) if other != axis)
    return np.moveaxis(
        (weight * places_mm).sum(axis=tuple(o + 1 for o in over)) / weight.sum(axis=over), 0, -1
    )


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM, ids=str)
def test_a_ball_rods_and_gradients_are_where_they_should_be(spacing_mm, config):
    for seed in range(3):
        volume = volume_of(ball(6.0, 2 * max(spacing_mm)), spacing_mm)
        data = cut(volume, config, seed)
        cube, voxel_mm = data["image"], np.array(data["image_spacing_mm"])
        places_mm = places_zyx_mm(cube)
        # Half a voxel: of the cube, or of the volume where that is the coarser.
        half_mm = np.maximum(voxel_mm, spacing_mm) / 2
        assert (np.abs(centroid_mm(cube, places_mm) - CENTER_MM) < half_mm / 2).all()
        for axis in range(3):
            cube = cut(volume_of(rod(axis, 2 * max(spacing_mm)), spacing_mm), config, seed)["image"]
            middles = centroid_mm(cube, places_mm, axis)
            across = [other for other in range(3) if other != axis]
            assert (np.abs(middles - CENTER_MM)[:, across] < half_mm[across] / 2).all()
            ramp = volume_of(lambda *zyx, axis=axis: SLOPE * (zyx[axis] - CENTER_MM[axis]), spacing_mm)
            shown = cut(ramp, config, seed)["image"].as_tensor().numpy()[0]
            off_mm = np.abs(shown / SLOPE - (places_mm[axis] - CENTER_MM[axis]))
            assert off_mm.max() < half_mm[axis]
            assert shown.std() > SLOPE  # a ramp, not a plane


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM[1:3], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_monais_own_transforms_take_a_cube_back_to_where_it_was_cut(spacing_mm, seed):
    """Resampled onto the volume, turned, or given another spacing, its values lie where the volume has them."""

    def wave(z, y, x):
        return 300 * (np.sin(z / 9) + np.sin(y / 7) + np.sin(x / 8))

    volume = volume_of(wave, spacing_mm)
    cube = cut(volume, SIZES["fine"], seed)["image"]
    back = ResampleToMatch(padding_mode="zeros")(cube, volume.to(torch.float32))
    inside = ResampleToMatch(padding_mode="zeros")(cube * 0 + 1, volume.to(torch.float32)) > 0.999
    assert inside.sum() > 1000
    difference = (back - volume).abs()[inside]
    assert difference.max() < 60  # of -900 .. 900
    for changed in (Orientation("RAS", labels=None)(cube), Spacing((1.1, 0.7, 0.9))(cube)):
        onto = ResampleToMatch(padding_mode="zeros")(changed, volume.to(torch.float32))
        there = ResampleToMatch(padding_mode="zeros")(changed * 0 + 1, volume.to(torch.float32)) > 0.999
        assert (onto - volume).abs()[there & inside].max() < 75
    assert "gaps" not in cube.meta


CHAINS = {
    "body": ViewConfig(size_px=16, depth_px=12, extent="mm", fov_mm=(14.0, 30.0)),
    "uniform": ViewConfig(
        size_px=16,
        depth_px=12,
        extent="mm",
        fov_mm=(14.0, 30.0),
        depth_mm=(6.0, 20.0),
        center="uniform",
        shared_scale=True,
        window=WindowConfig(policy="clinical", per="sample"),
    ),
    "point": ViewConfig(
        size_px=16, depth_px=12, extent="mm", fov_mm=(14.0, 30.0), center="point", center_jitter_mm=3.0
    ),
    "lung": ViewConfig(
        size_px=16,
        depth_px=12,
        extent="mm",
        fov_mm=(14.0, 30.0),
        center="lung",
        center_jitter_mm=3.0,
        n_local=1,
        local_size_px=8,
        local_depth_px=8,
        window=WindowConfig(policy="fixed", hu_scale=0.5),
    ),
}


@pytest.mark.parametrize("config", CHAINS.values(), ids=CHAINS.keys())
def test_compose_and_the_batched_path_show_the_same_cubes(config):
    hu = np.random.default_rng(0).integers(-1000, 400, (12, 60, 70)).astype(np.int16)
    spacing_mm, z, point, gaps = (2.5, 0.7, 0.9), 7, (30.0, 41.0), (8,)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = AXES * spacing_mm, ORIGIN_MM
    offsets = tuple(2.5 * (i + 3 * (i > 8)) for i in range(12))
    geometry = VolumeGeometry((12, 60, 70), affine, gaps, offsets)
    volume = MetaTensor(torch.from_numpy(hu)[None], affine=torch.from_numpy(affine), meta=geometry.as_meta())
    body = np.zeros((32, 32), np.uint8)
    body[5:20, 8:30] = 1
    body[9:15, 12:20] = 2
    seed, step, key = 9, 4, 12345

    frames = CubeFrames(
        z=np.array([z]),
        run_z=np.array([[0, 8]]),
        size_hw=np.array([[60, 70]]),
        spacing_mm=np.array([spacing_mm]),
        body=body[None],
        point_yx_px=np.array([point]),
    )
    draws = draw_cubes(frames, [key], config, seed, step)
    boxes = [hu[tuple(slice(*ends) for ends in view[0])] for view in draws.places.read_zyx]
    batch = CubeBatch(
        voxels_hu=torch.from_numpy(np.concatenate([box.ravel() for box in boxes])),
        body_share=np.ones((len(boxes), 1)),
    )
    fast = render_cubes(batch, draws, config)

    crop = RandCubed(VIEWS, config, volume_key="image", body_key="body", point_key="point")
    window = RandWindowHUd(VIEWS, config.window)
    mean, std = config.channel_mean, config.channel_std
    chain = Compose([crop, window, NormalizeIntensityd(VIEWS, mean, std, channel_wise=True)])
    crop.set_random_state(state=sample_state(seed, step, key, "crop"))
    window.set_random_state(state=sample_state(seed, step, key, "window"))
    data = chain({"image": volume, "z": z, "body": body, "point": point})
    for view, name in enumerate(VIEWS):
        difference = (data[name].as_tensor() - fast.global_views[view, 0]) * std[0]
        assert difference.abs().max() < 1e-5
        assert data[f"{name}_spacing_mm"] == pytest.approx(fast.spacing_mm[view, 0].tolist(), rel=1e-6)
        assert data[f"{name}_window_hu"] == pytest.approx(fast.window_hu[view, 0].tolist(), rel=1e-6)
    assert data["image"] is volume  # not copied


@pytest.mark.parametrize("z", [0, 4, 5, 11])
def test_beyond_an_edge_or_a_gap_the_last_slice_is_repeated_and_behind_a_gap_the_place_is_right(z):
    """Slices of one HU each, 30 mm missing behind slice 4: what a cube shows, and where its affine says that lies."""
    offsets = tuple(2.0 * i + 30.0 * (i > 4) for i in range(12))
    hu = (np.array(offsets) * 10 - 1000)[:, None, None] * np.ones((12, 40, 40))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = AXES * (2.0, 1.0, 1.0), ORIGIN_MM
    geometry = VolumeGeometry((12, 40, 40), affine, (4,), offsets)
    volume = MetaTensor(
        torch.from_numpy(hu.astype(np.int16))[None], affine=torch.from_numpy(affine), meta=geometry.as_meta()
    )
    config = ViewConfig(size_px=8, depth_px=24, extent="mm", fov_mm=(15.0, 15.0), center="uniform")
    cube = RandCube(replace(config, depth_mm=(24.0, 24.0))).set_random_state(seed=z)(volume, z)
    low_mm, high_mm = (0.0, 8.0) if z <= 4 else (40.0, 52.0)
    expected = places_zyx_mm(cube)[0].clip(low_mm, high_mm) * 10 - 1000
    np.testing.assert_allclose(cube.as_tensor().numpy()[0], expected, atol=1e-2)
    assert expected.max() - expected.min() >= 10 * min(high_mm - low_mm, 10)


def test_bad_input_is_refused_in_one_sentence():
    cubes = ViewConfig(size_px=8, depth_px=8, extent="mm", fov_mm=(8.0, 9.0), center="uniform")
    volume = np.zeros((12, 20, 20), np.int16)
    with pytest.raises(TransformError, match="give a ViewConfig with depth_px"):
        RandCube(ViewConfig())
    with pytest.raises(TransformError, match="need body_key"):
        RandCubed("image", replace(cubes, center="body"))
    with pytest.raises(TransformError, match="need point_key"):
        RandCubed("image", replace(cubes, center="point"), body_key="body")
    with pytest.raises(TransformError, match="give spacing_mm"):
        RandCube(cubes)(volume, 3)
    with pytest.raises(TransformError, match=r"slice 12 is not in a volume of 12 slices"):
        RandCube(cubes)(volume, 12, spacing_mm=(1, 1, 1))
    with pytest.raises(TransformError, match=r"got shape \(20, 20\)"):
        RandCube(cubes)(volume[0], 3, spacing_mm=(1, 1, 1))
    turned = MetaTensor(torch.from_numpy(volume)[None], affine=torch.eye(4))
    with pytest.raises(TransformError, match="the volume's axes are not"):
        RandCube(cubes)(turned, 3)
    with pytest.raises(
        TransformError, match=r"of 6 x 10 x 10 mm .* does not hold the smallest cube of 8 x 8 x 8 mm"
    ):
        RandCube(cubes)(volume, 3, spacing_mm=(0.5, 0.5, 0.5))
    patch = MetaTensor(torch.from_numpy(volume)[None], affine=torch.eye(4), meta={"kind": "patch"})
    with pytest.raises(TransformError, match="which tells its label"):
        RandCube(cubes)(patch, 3)
    cube = RandCube(cubes)(volume[None], 3, spacing_mm=(1, 1, 1))
    assert cube.shape == (1, 8, 8, 8)
