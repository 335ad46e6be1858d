from collections.abc import Callable

import numpy as np
import pytest

from pipelines.wall_slices import chest_slices


def test_slices_are_the_same_for_a_seed_and_a_longer_study_begins_with_the_shorter() -> None:
    short, long = chest_slices(8, seed=1), chest_slices(12, seed=1)
    assert short.shape == (8, 3, 40, 40)
    assert short.dtype == np.int16
    np.testing.assert_array_equal(short, long[:8])
    assert not np.array_equal(short, chest_slices(8, seed=2))


def test_lungs_lie_near_minus_850_hu_in_a_body_with_bone() -> None:
    slices = chest_slices(256)
    lung = slices[(slices > -950) & (slices < -700)]
    assert -850 < np.median(lung) < -800  # vessels' edges pull it up
    assert 0.05 < lung.size / slices.size < 0.5
    assert np.mean((slices > 0) & (slices < 100)) > 0.08
    assert np.mean(slices > 200) > 0.005


def test_noise_is_fifteen_hu_and_new_in_every_channel() -> None:
    corner = chest_slices(64)[:, :, :4, :4].astype(float)
    assert np.std(corner) == pytest.approx(15, abs=4)  # air below -1024 HU is cut off
    assert abs(np.corrcoef(corner[:, 0].ravel(), corner[:, 2].ravel())[0, 1]) < 0.15


def test_neighbouring_channels_are_alike_and_slices_are_not() -> None:
    slices = chest_slices(32).astype(float)
    own = np.abs(slices[:, 0] - slices[:, 1]).mean()
    other = np.abs(slices[:-1, 1] - slices[1:, 1]).mean()
    assert own * 2 < other


def test_a_study_without_slices_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 slice"):
        chest_slices(0)


def widths_px(slices: np.ndarray) -> np.ndarray:
    """Width of each body in each channel, (n, 3)."""
    return (slices[:, :, 5:35] > -500).any(2).sum(-1)


def test_the_spread_of_bodies_scales_about_the_middle() -> None:
    plain, wide = (widths_px(chest_slices(200, body_spread=spread))[:, 1] for spread in (1.0, 2.0))
    assert wide.std() == pytest.approx(2 * plain.std(), rel=0.1)
    assert wide.mean() == pytest.approx(plain.mean(), rel=0.02)
    assert widths_px(chest_slices(200, body_spread=0.0))[:, 1].std() < 0.5  # the edge's rounding is left
    with pytest.raises(ValueError, match="body_spread"):
        chest_slices(1, body_spread=4.0)


def test_organs_grow_from_slice_to_slice_at_rates_of_their_own() -> None:
    def growth_px(organ_growth: float, is_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        slices = chest_slices(200, organ_growth=organ_growth)
        area = is_of(slices).sum((-2, -1))
        return area[:, 2] - area[:, 0]

    def lung(slices: np.ndarray) -> np.ndarray:
        return (slices > -950) & (slices < -700)

    still, plain = growth_px(0.0, lung), growth_px(1.0, lung)
    assert plain.std() > 3 * still.std()
    assert abs(plain.mean()) < plain.std() / 5  # as many grow as shrink
    bodies = np.diff(widths_px(chest_slices(200)), axis=1).sum(1)
    assert abs(np.corrcoef(bodies, plain)[0, 1]) < 0.3
    with pytest.raises(ValueError, match="organ_growth"):
        chest_slices(1, organ_growth=3.0)
