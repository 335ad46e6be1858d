import numpy as np
import pytest

from pipelines.phantom.wall_cohort import Growth, chest_slices


def test_slices_are_the_same_for_a_seed_and_a_longer_study_begins_with_the_shorter() -> None:
    short, long = chest_slices(8, seed=1), chest_slices(12, seed=1)
    assert short.shape == (8, 3, 40, 40)
    assert short.dtype == np.int16
    np.testing.assert_array_equal(short, long[:8])
    assert not np.array_equal(short, chest_slices(8, seed=2))


def test_lungs_lie_near_minus_850_hu_in_a_body_with_bone() -> None:
    slices = chest_slices(128)
    lung = slices[(slices > -950) & (slices < -700)]
    assert (
        -830 < np.median(lung) < -810
    )  # vessels' edges pull it up; lungs at -900 or -800 HU give -845 or -790
    assert 0.05 < lung.size / slices.size < 0.5
    assert np.mean((slices > 0) & (slices < 100)) > 0.08
    assert np.mean(slices > 200) > 0.005


def test_noise_is_fifteen_hu_and_new_in_every_channel() -> None:
    corner = chest_slices(64)[:, :, :4, :4].astype(float)
    assert np.std(corner) == pytest.approx(15, abs=4)  # air below -1024 HU is cut off
    assert abs(np.corrcoef(corner[:, 0].ravel(), corner[:, 2].ravel())[0, 1]) < 0.15


def test_neighboring_channels_are_alike_and_slices_are_not() -> None:
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


def test_organs_grow_from_slice_to_slice_at_rates_of_their_own() -> None:
    def lung_px(growth: Growth) -> np.ndarray:
        """How many more pixels of lung the upper neighbor has than the lower one, (n,)."""
        slices = chest_slices(100, growth=growth)
        area = ((slices > -950) & (slices < -700)).sum((-2, -1))
        return area[:, 2] - area[:, 0]

    still, plain = lung_px(Growth(lungs=0.0)), lung_px(Growth())
    assert plain.std() > 2 * still.std()
    assert abs(plain.mean()) < plain.std() / 5  # as many grow as shrink
    bodies = np.diff(widths_px(chest_slices(100, growth=Growth(body=0.08))), axis=1).sum(1)
    assert bodies.std() > 2 * np.diff(widths_px(chest_slices(100)), axis=1).sum(1).std()
    assert abs(np.corrcoef(bodies, plain)[0, 1]) < 0.3
    with pytest.raises(ValueError, match=r"by 0 to 0\.5"):
        chest_slices(1, growth=Growth(spine=0.6))
