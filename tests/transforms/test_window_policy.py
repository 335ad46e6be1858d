"""The edges of the windows that each policy draws, at the ends of the uniform numbers that it draws them from."""

import numpy as np
import pytest

from probes.pixels import pixel_features
from transforms.window_policy import (
    ARTICLE_LUNG_HU,
    CLINICAL_LUNG_HU,
    PROBE_WINDOWS_HU,
    WindowConfig,
    WindowPolicy,
    windows_from_uniforms,
)

PRESETS_HU = ((-600, 1500), (40, 400), (-200, 2000), (400, 1800))
"""Level and width: lung, mediastinum, wide, bone."""


def edges(policy: WindowPolicy, u: float, v: float, choice: float = 0.0, **settings: float) -> list[float]:
    config = WindowConfig(policy=policy, **settings)
    return windows_from_uniforms(config, np.array([u, v, choice])).tolist()


@pytest.mark.parametrize("number", range(4))
def test_a_clinical_window_is_a_preset_moved_by_5_percent_of_its_width_and_scaled_by_10(number: int) -> None:
    level, width = PRESETS_HU[number]
    for choice in (number / 4, number / 4 + 0.2499):
        for u, moved in ((0.0, -0.05), (0.5, 0.0), (1.0, 0.05)):
            for v, scale in ((0.0, 0.9), (0.5, 1.0), (1.0, 1.1)):
                middle = level + moved * width
                expected = [middle - scale * width / 2, middle + scale * width / 2]
                assert edges("clinical", u, v, choice) == pytest.approx(expected)


def test_the_other_policies_reach_the_edges_that_they_state() -> None:
    assert edges("lung_aware", 0, 0) == [-1400, 100]
    assert edges("lung_aware", 1, 1) == [-950, 800]
    assert edges("article", 0, 0) == [-800, 0]
    assert edges("article", 1, 1) == [-600, 1400]
    assert edges("article", 0.5, 0.5) == [-700, 700]
    assert edges("fixed", 0.3, 0.8) == [-1350, 150]
    assert edges("full", 0.3, 0.8) == edges("full", 1, 0, low_hu=-1350.0) == [-1000, 1000]


def test_a_scale_of_the_hu_is_the_inverse_scale_of_the_window() -> None:
    assert edges("fixed", 0, 0, hu_scale=0.1) == pytest.approx([-13500, 1500])


def test_the_two_lung_windows_are_named_apart_and_keep_their_values() -> None:
    """Figures and tables of results rest on them: the baseline of pixels on one, features of crops on the other."""
    assert CLINICAL_LUNG_HU == (-1350, 150)
    assert PROBE_WINDOWS_HU["lung"] == ARTICLE_LUNG_HU == (-1250, 250)
    assert (WindowConfig().low_hu, WindowConfig().high_hu) == CLINICAL_LUNG_HU
    zero = np.zeros((1, 3, 1, 1), dtype=np.float32)
    assert pixel_features(zero)[0] == pytest.approx([0.9] * 3)
