"""Nodules found by rays: discs of known size, a vessel that touches, and HU that are known inside."""

import numpy as np
import pytest

from probes.nodule_rays import RING_MM, attenuation_inside, edge_radii_mm, nodule_region


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
