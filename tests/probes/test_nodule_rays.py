"""Nodules found by rays: discs of known size, a vessel that touches, and HU that are known inside."""

import numpy as np
import pytest

from probes.nodule_rays import RING_MM, attenuation_inside, cube_region, edge_radii_mm, nodule_region


def disc(diameter_mm: float, mm_per_px: float = 0.5, n_px: int = 100, hu: float = 40.0) -> np.ndarray:
    rows, columns = np.mgrid[:n_px, :n_px] - (n_px - 1) / 2
    inside = np.clip(diameter_mm / 2 / mm_per_px - np.hypot(rows, columns) + 0.5, 0.0, 1.0)
    return -850.0 + inside * (hu + 850.0)


@pytest.mark.parametrize("mm_per_px", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("diameter_mm", [6.0, 12.0, 20.0])
def test_mask_and_ring_have_the_areas_of_a_disc(diameter_mm: float, mm_per_px: float) -> None:
    region = nodule_region(disc(diameter_mm, mm_per_px, int(60 / mm_per_px))[None], mm_per_px)
    radius = diameter_mm / 2
    assert region.area_mm2[0] == pytest.approx(np.pi * radius**2, rel=0.2)
    ring_mm2 = region.ring.sum() * mm_per_px**2
    assert ring_mm2 == pytest.approx(np.pi * ((radius + RING_MM) ** 2 - radius**2), rel=0.15)
    assert not (region.mask & region.ring).any()
    assert region.diameter_mm[0] == pytest.approx(diameter_mm, abs=max(0.5, mm_per_px))


def test_a_vessel_is_followed_no_further_than_the_cap() -> None:
    image = disc(10.0)
    image[48:52, 50:] = 40.0  # 2 mm wide, from the center to the edge of the crop
    radii = edge_radii_mm(image[None], 0.5)[0]
    assert radii.max() > 20.0
    region = nodule_region(image[None], 0.5)
    columns = np.flatnonzero(region.mask[0, 49])
    assert (columns.max() - 49.5) * 0.5 == pytest.approx(1.8 * 5.0, abs=0.6)
    assert region.diameter_mm[0] == pytest.approx(10.0, abs=0.5)


def test_an_elongated_nodule_keeps_its_shape() -> None:
    rows, columns = np.mgrid[:100, :100] - 49.5
    image = np.where((rows / 8.0) ** 2 + (columns / 14.0) ** 2 <= 1, 40.0, -850.0)
    mask = nodule_region(image[None], 0.5).mask[0]
    assert mask.any(1).sum() * 0.5 == pytest.approx(8.0, abs=1.0)
    assert mask.any(0).sum() * 0.5 == pytest.approx(14.0, abs=1.0)


@pytest.mark.parametrize("n_px", [40, 41])
def test_where_nothing_is_the_mask_still_holds_the_center(n_px: int) -> None:
    image = np.full((n_px, n_px), -850.0)
    image[n_px // 2, n_px // 2] = 100.0
    region = nodule_region(image[None], 0.5)
    assert region.mask[0, n_px // 2, n_px // 2]
    assert region.area_mm2[0] > 0
    assert region.diameter_mm[0] > 0


def test_attenuation_is_that_of_the_pixels_inside() -> None:
    image = np.arange(100.0).reshape(10, 10) * 3
    mask = np.zeros((1, 10, 10), bool)
    mask[0, 2:6, 3:7] = True
    inside = image[2:6, 3:7].ravel()
    found = attenuation_inside(image[None], mask)
    expected = [
        (inside > 150).mean(),
        inside.mean(),
        inside.std(),
        *np.percentile(inside, (10, 25, 50, 75, 90)),
    ]
    np.testing.assert_allclose(np.ravel(found), expected)


def ball(
    diameter_mm: float, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]
) -> np.ndarray:
    place = np.mgrid[tuple(slice(n) for n in shape)] - (np.array(shape)[:, None, None, None] - 1) / 2
    distance = np.sqrt(((place.T * spacing_mm) ** 2).sum(-1)).T
    inside = np.clip((diameter_mm / 2 - distance) / min(spacing_mm) + 0.5, 0.0, 1.0)
    return np.asarray(-850.0 + inside * 890.0)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 0.8, 0.8)])
@pytest.mark.parametrize("diameter_mm", [9.0, 16.0])
def test_mask_and_ring_have_the_volumes_of_a_ball(
    diameter_mm: float, spacing_mm: tuple[float, float, float]
) -> None:
    shape = tuple(round(32 / step) for step in spacing_mm)
    region = cube_region(ball(diameter_mm, spacing_mm, shape)[None], np.array([spacing_mm]))  # type: ignore[arg-type]
    voxel_mm3, radius = np.prod(spacing_mm), diameter_mm / 2
    assert region.mask.sum() * voxel_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.15)
    ring_mm3 = 4 / 3 * np.pi * ((radius + RING_MM) ** 3 - radius**3)
    assert region.ring.sum() * voxel_mm3 == pytest.approx(ring_mm3, rel=0.1)
    assert not (region.mask & region.ring).any()
    assert region.diameter_mm[0] == pytest.approx(diameter_mm, abs=0.6)


def test_a_vessel_along_z_is_followed_no_further_than_the_cap_and_ends_with_the_cube() -> None:
    cube = ball(10.0, (1.0, 1.0, 1.0), (41, 41, 41))
    cube[20:, 18:23, 18:23] = 40.0  # 5 mm wide, to the face toward the head
    region = cube_region(cube[None], np.ones((1, 3)))
    up = np.flatnonzero(region.mask[0, :, 20, 20])
    assert (up.max() - 20, up.min() - 20) == (9, -5)  # 1.8 times 5 mm, and 5 mm
    assert region.diameter_mm[0] == pytest.approx(10.0, abs=0.5)
    short = cube_region(cube[None, 17:24], np.ones((1, 3)))
    assert short.mask[0, :, 20, 20].all()  # Every ray along z leaves the cube.


def test_an_elongated_nodule_keeps_its_shape_along_z() -> None:
    z, y, x = np.mgrid[:31, :31, :31] - 15.0
    cube = np.where((z / 11.0) ** 2 + (y / 7.0) ** 2 + (x / 7.0) ** 2 <= 1, 40.0, -850.0)
    mask = cube_region(cube[None], np.ones((1, 3))).mask[0]
    assert [mask.any(axes).sum() for axes in ((1, 2), (0, 2), (0, 1))] == pytest.approx([21, 13, 13], abs=2.0)
