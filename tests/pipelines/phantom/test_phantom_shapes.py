import math

import numpy as np
import pytest

from pipelines.phantom.shapes import Grid, capsule_coverage, sphere_coverage
from tests.phantom_questions import paint


def test_a_ten_millimeter_sphere_measures_ten_millimeters(phantom_sphere) -> None:
    share = (phantom_sphere.volume_hu.astype(float) - phantom_sphere.tissue_hu) / (
        phantom_sphere.sphere_hu - phantom_sphere.tissue_hu
    )
    share[phantom_sphere.volume_hu == phantom_sphere.air_hu] = 0
    volume_mm3 = share.sum() * math.prod(phantom_sphere.spacing_mm)
    assert (6 * volume_mm3 / math.pi) ** (1 / 3) == pytest.approx(10, rel=0.005)
    for axis, step in enumerate(phantom_sphere.spacing_mm):
        other = tuple(k for k in range(3) if k != axis)
        extent_mm = np.count_nonzero((share > 0.5).any(axis=other)) * step
        assert abs(extent_mm - 10) <= step


def test_the_sphere_lies_at_its_stated_lps_point(phantom_sphere) -> None:
    weights = (phantom_sphere.volume_hu > 100).astype(float)
    index = [float((axis * weights).sum() / weights.sum()) for axis in np.indices(weights.shape)]
    ras = phantom_sphere.affine_ras @ [*index, 1]
    lps = ras[:3] * [-1, -1, 1]
    np.testing.assert_allclose(lps, phantom_sphere.center_lps_mm, atol=0.35)
    exact = phantom_sphere.affine_ras @ [*phantom_sphere.center_index_zyx, 1]
    np.testing.assert_allclose(exact[:3] * [-1, -1, 1], phantom_sphere.center_lps_mm, atol=1e-9)


@pytest.mark.parametrize("spacing_mm", [(2.5, 0.7, 0.7), (1.0, 1.0, 1.0), (0.7, 1.4, 1.4)])
@pytest.mark.parametrize("diameter_mm", [4.0, 9.3, 20.0])
def test_coverage_adds_up_to_the_volume_of_the_sphere(
    spacing_mm: tuple[float, float, float], diameter_mm: float
) -> None:
    shape = tuple(int(30 / step) for step in spacing_mm)
    _, coverage = sphere_coverage(Grid(shape, spacing_mm), (15.3, 14.1, 15.8), diameter_mm, samples=6)
    measured = float(coverage.sum()) * math.prod(spacing_mm)
    assert measured == pytest.approx(math.pi / 6 * diameter_mm**3, rel=0.03)


def test_coverage_equals_a_naive_loop_over_sample_points() -> None:
    grid, center, diameter, samples = Grid((5, 6, 7), (2.0, 1.0, 0.8)), (4.1, 2.7, 3.3), 4.4, 2
    expected = np.zeros(grid.shape)
    for z, y, x in np.ndindex(grid.shape):
        for k in np.ndindex(samples, samples, samples):
            point = [
                (i + (s + 0.5) / samples - 0.5) * step
                for i, s, step in zip((z, y, x), k, grid.spacing_mm, strict=True)
            ]
            expected[z, y, x] += math.dist(point, center) <= diameter / 2
    drawn = np.zeros(grid.shape)
    box, coverage = sphere_coverage(grid, center, diameter, samples)
    drawn[box] = coverage
    np.testing.assert_allclose(drawn, expected / samples**3)


def in_lung(center: float) -> np.ndarray:
    volume = np.full((8, 8, 8), -850, dtype=np.float32)
    paint(volume, *sphere_coverage(Grid((8, 8, 8), (1.0, 1.0, 1.0)), (center, center, center), 6.0), 40)
    return volume


def test_a_sphere_that_leaves_the_volume_is_cut_off() -> None:
    volume = in_lung(0.0)
    assert volume[0, 0, 0] == 40
    assert volume[7, 7, 7] == -850
    assert (in_lung(40.0) == -850).all()
    assert (in_lung(-40.0) == -850).all()


def test_a_capsule_of_one_radius_has_the_volume_of_a_cylinder_with_two_half_spheres() -> None:
    grid = Grid((40, 40, 60), (1.0, 1.0, 1.0))
    _, coverage = capsule_coverage(grid, (20, 20, 15), (20, 20, 45), 5, 5)
    expected = math.pi * 25 * 30 + 4 / 3 * math.pi * 125
    assert float(coverage.sum()) == pytest.approx(expected, rel=0.02)


def test_a_sphere_without_size_is_refused() -> None:
    with pytest.raises(ValueError, match="positive diameter"):
        sphere_coverage(Grid((4, 4, 4), (1.0, 1.0, 1.0)), (1, 1, 1), 0.0)
