"""Cubes for 3D encoders: voxels where the affine says, no length of a patch, no interpolation over missing slices."""

import numpy as np
import pytest

from tests.conftest import PhantomSphere
from transforms.geometry import VolumeGeometry, ras_to_lps
from transforms.nodule_cube import CubeSpec, check_cube, cut_cube
from transforms.refusal import NoCropError

SPEC = CubeSpec(shape=(9, 21, 25), spacing_mm=(2.0, 1.0, 0.8))


def sphere_geometry(sphere: PhantomSphere, **changes: object) -> VolumeGeometry:
    shape = sphere.volume_hu.shape
    return VolumeGeometry(shape, sphere.affine_ras, **changes)  # type: ignore[arg-type]


def test_the_sphere_lies_where_the_affine_of_the_cube_says(phantom_sphere: PhantomSphere) -> None:
    sphere = phantom_sphere
    cube = cut_cube(sphere.volume_hu, sphere_geometry(sphere), sphere.center_lps_mm, SPEC, False)
    bright = np.clip((cube - sphere.tissue_hu) / (sphere.sphere_hu - sphere.tissue_hu), 0, 1)
    index = np.stack(np.mgrid[: cube.shape[0], : cube.shape[1], : cube.shape[2]], axis=-1)
    mean = (index * bright[..., None]).sum((0, 1, 2)) / bright.sum()
    affine = SPEC.affine_ras(sphere.center_lps_mm)
    np.testing.assert_allclose(
        ras_to_lps(affine[:3, :3] @ mean + affine[:3, 3]), sphere.center_lps_mm, atol=0.2
    )
    volume_mm3 = bright.sum() * np.prod(SPEC.spacing_mm)
    assert volume_mm3 == pytest.approx(np.pi / 6 * sphere.diameter_mm**3, rel=0.1)


def test_axes_run_to_the_head_the_back_and_the_left_whichever_way_the_volume_runs(
    phantom_sphere: PhantomSphere,
) -> None:
    sphere = phantom_sphere
    away = np.add(sphere.center_lps_mm, (3.0, 5.0, 2.0))
    cube = cut_cube(sphere.volume_hu, sphere_geometry(sphere), away, SPEC, False)
    turned = sphere.affine_ras.copy()
    turned[:3, 3] += turned[:3, 1] * (sphere.volume_hu.shape[1] - 1)
    turned[:3, 1] *= -1
    flipped = VolumeGeometry(sphere.volume_hu.shape, turned)
    np.testing.assert_allclose(
        cut_cube(sphere.volume_hu[:, ::-1], flipped, away, SPEC, False), cube, atol=1e-3
    )
    bright = np.argwhere(cube > 200).mean(0)
    assert (bright < (np.array(SPEC.shape) - 1) / 2).all()  # the sphere is below, in front and to the right


@pytest.mark.parametrize("n_slices", [2, 7, 31])
def test_the_length_of_a_patch_does_not_show(n_slices: int) -> None:
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[[2, 1, 0], [0, 1, 2]] = [1.5, -1.0, -1.0]
    volume = np.full((n_slices, 40, 40), -700, dtype=np.int16)
    geometry = VolumeGeometry(volume.shape, affine)
    center = geometry.to_lps([n_slices / 2 - 0.2, 20.3, 19.1])
    cube = cut_cube(volume, geometry, center, SPEC, True)
    np.testing.assert_allclose(cube, -700.0, atol=1e-3)


def test_a_patch_is_its_center_slice_at_every_height() -> None:
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[[2, 1, 0], [0, 1, 2]] = [1.5, -1.0, -1.0]
    volume = np.random.default_rng(0).integers(-900, 300, (5, 40, 40)).astype(np.int16)
    geometry = VolumeGeometry(volume.shape, affine)
    cube = cut_cube(volume, geometry, geometry.to_lps([3.2, 20.0, 20.0]), SPEC, True)
    np.testing.assert_array_equal(cube, np.broadcast_to(cube[:1], cube.shape))
    alone = np.repeat(volume[3:4], 5, axis=0)
    np.testing.assert_allclose(
        cube, cut_cube(alone, geometry, geometry.to_lps([2.0, 20.0, 20.0]), SPEC, True)
    )


def test_slices_that_are_missing_inside_the_cube_are_refused(phantom_sphere: PhantomSphere) -> None:
    sphere = phantom_sphere
    offsets = tuple(2.5 * (k + (k > 5)) for k in range(len(sphere.volume_hu)))
    geometry = sphere_geometry(sphere, gaps=(5,), slice_offsets_mm=offsets)
    center = geometry.to_lps([8.0, 40.0, 40.0]).tolist()
    with pytest.raises(NoCropError, match="slices are missing after slice 5"):
        cut_cube(sphere.volume_hu, geometry, center, SPEC, False)
    with pytest.raises(NoCropError, match="slices are missing after slice 5"):
        check_cube(geometry, center, SPEC, False)
    check_cube(geometry, geometry.to_lps([13.0, 40.0, 40.0]).tolist(), SPEC, False)
