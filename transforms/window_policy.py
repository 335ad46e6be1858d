"""How a view's CT window is drawn: policies and numbers, so that a loader process imports no MONAI for them.

Which window a view gets decides what a network can see at all: a window whose lower edge lies above lung (about
-850 HU) paints the whole lung black. `transforms.hounsfield` has the MONAI transforms that apply one.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

CLINICAL_LUNG_HU = (-1350.0, 150.0)
"""The lung window of radiologists, level -600 and width 1500: policy `fixed`, the baseline of pixels, figures."""
ARTICLE_LUNG_HU = (-1250.0, 250.0)
"""The lung window of the article's probes, level -500 and width 1500: in it frozen backbones are shown nodules."""
PROBE_WINDOWS_HU: dict[str, tuple[float, float]] = {
    "lung": ARTICLE_LUNG_HU,
    "mediastinal": (-160.0, 240.0),
    "wide": (-600.0, 600.0),
    "full": (-1000.0, 1000.0),
}
"""Lower and upper edges: the article's probe windows (level/width -500/1500, 40/400, 0/1200), and all of the nodule."""

CHANNEL_RANGES_HU = np.array([PROBE_WINDOWS_HU[name] for name in ("lung", "mediastinal", "wide")])
"""Policy `ranges`: lower and upper edge of each channel, (3, 2)."""

WindowPolicy = Literal["lung_aware", "clinical", "article", "full", "ranges", "fixed"]

UNIFORMS_PER_WINDOW = 3
"""How many uniform numbers one drawn window uses, under every policy."""

CLINICAL_LEVEL_WIDTH_HU = np.array([(-600.0, 1500.0), (40.0, 400.0), (-200.0, 2000.0), (400.0, 1800.0)])
"""Level and width of the four presets of policy `clinical`: lung, mediastinal, wide, bone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """Which CT window a view is shown in.

    Policies, edges in true HU:
        lung_aware: lower edge uniform in -1400..-950, upper edge uniform in 100..800. Lung is never clipped,
            and the gray gap between nodule and lung stays well above the jitter of lung between two views.
        clinical: lung, mediastinal, wide and bone presets in equal parts, level moved by up to 5% of the
            width, width scaled by 0.9..1.1. Half of the views (mediastinal, bone) clip lung.
        article: level uniform in -400..400, width uniform in 800..2000, as its authors state it.
            It clips lung in 68% of the views: an arm of a study, not advice.
        full: -1000..1000 for every view. The only policy that keeps attenuation: the others draw another gray for
            the same HU in every view, or clip what calcification is told by.
        ranges: the three channels show the middle slice alone, in the lung, mediastinal and wide window, instead of
            three slices in one window. It keeps attenuation too; the window that is drawn and logged is `full`.
        fixed: `low_hu` .. `high_hu` for every view.
    """

    policy: WindowPolicy = "lung_aware"
    per: Literal["view", "sample"] = "view"
    """Whether each view of a sample draws its own window, or all views of a sample share one."""
    low_hu: float = CLINICAL_LUNG_HU[0]
    """Lower edge of policy `fixed`, HU."""
    high_hu: float = CLINICAL_LUNG_HU[1]
    """Upper edge of policy `fixed`, HU (default: lung, level -600, width 1500)."""
    hu_scale: float = 1.0
    """Factor on HU before windowing; 0.1 repeats an encoding error of the published runs, as an arm."""

    def __post_init__(self) -> None:
        """Refuse an invalid window."""
        if self.policy not in get_args(WindowPolicy):
            raise ValueError(f"window policy {self.policy!r} is unknown; use one of {get_args(WindowPolicy)}")
        if self.per not in ("view", "sample"):
            raise ValueError(f"window per={self.per!r} is unknown; use 'view' or 'sample'")
        if not self.low_hu < self.high_hu:
            raise ValueError(f"a fixed window must rise, got low_hu {self.low_hu} and high_hu {self.high_hu}")
        if not (np.isfinite(self.hu_scale) and self.hu_scale > 0):
            raise ValueError(f"hu_scale must be a positive number, got {self.hu_scale}; true HU have 1.0")


def windows_from_uniforms(config: WindowConfig, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn uniform numbers into windows under a policy.

    A factor `hu_scale` on the image equals its inverse on the window, so it is applied to the edges: the
    integer HU stay as they are, and the edges that are returned (and logged) are in true HU.

    Args:
        config: The policy.
        uniforms: Numbers in [0, 1), (..., 3).

    Returns:
        Lower and upper edges in true HU, (..., 2).
    """
    u, v, choice = np.moveaxis(uniforms, -1, 0)
    match config.policy:
        case "lung_aware":
            low, high = -1400.0 + 450.0 * u, 100.0 + 700.0 * v
        case "clinical":
            preset = CLINICAL_LEVEL_WIDTH_HU[(choice * len(CLINICAL_LEVEL_WIDTH_HU)).astype(int)]
            width = preset[..., 1] * (0.9 + 0.2 * v)
            level = preset[..., 0] + preset[..., 1] * 0.05 * (2.0 * u - 1.0)
            low, high = level - width / 2, level + width / 2
        case "article":
            level, width = -400.0 + 800.0 * u, 800.0 + 1200.0 * v
            low, high = level - width / 2, level + width / 2
        case "full" | "ranges" | "fixed":
            edges_hu = (
                (config.low_hu, config.high_hu) if config.policy == "fixed" else PROBE_WINDOWS_HU["full"]
            )
            low, high = (np.full_like(u, edge) for edge in edges_hu)
    edges: NDArray[np.float64] = np.stack([low, high], axis=-1) / config.hu_scale
    return edges


def draw_window(config: WindowConfig, random_state: np.random.RandomState) -> tuple[float, float]:
    """Draw one window: (low_hu, high_hu) in true HU, from three uniform numbers of `random_state`."""
    low, high = windows_from_uniforms(config, random_state.random_sample(UNIFORMS_PER_WINDOW))
    return float(low), float(high)
