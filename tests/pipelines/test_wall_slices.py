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
    slices = chest_slices(64)
    lung = slices[(slices > -950) & (slices < -700)]
    counts, edges = np.histogram(lung, bins=10, range=(-950, -700))
    assert -900 <= edges[np.argmax(counts)] <= -850  # vessels' edges pull the median up, not the peak
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


def test_variety_scales_how_much_bodies_differ_and_leaves_the_middle() -> None:
    def widths_px(variety: float) -> np.ndarray:
        inner_rows = chest_slices(200, variety=variety)[:, 1, 5:35]
        return (inner_rows > -500).any(1).sum(-1)

    alike, plain = widths_px(0.5), widths_px(1.0)
    assert alike.std() == pytest.approx(plain.std() / 2, rel=0.1)
    assert alike.mean() == pytest.approx(plain.mean(), rel=0.02)
    with pytest.raises(ValueError, match="variety"):
        chest_slices(1, variety=2.0)
