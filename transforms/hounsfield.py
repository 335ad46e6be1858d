"""Hounsfield units to gray: the CT window, and how a view's window is drawn.

A window maps [low_hu, high_hu] to [0, 1] and clips the rest (DICOM PS3.3 C.11.2.1.2, in its edge form). Which
window a view gets decides what a network can see at all: a window whose lower edge lies above lung (about
-850 HU) paints the whole lung black.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform, Randomizable, Transform
from numpy.typing import NDArray

from transforms.refusal import TransformError

WindowPolicy = Literal["lung_aware", "clinical", "article", "fixed"]
Volume = TypeVar("Volume", torch.Tensor, NDArray[Any])

UNIFORMS_PER_WINDOW = 3
"""How many uniform numbers one drawn window uses, under every policy."""

CLINICAL_LEVEL_WIDTH_HU = np.array([(-600.0, 1500.0), (40.0, 400.0), (-200.0, 2000.0), (400.0, 1800.0)])
"""Level and width of the four presets of policy `clinical`: lung, mediastinal, wide, bone."""


def window_hu(
    volume_hu: Volume,
    low_hu: float | NDArray[Any] | torch.Tensor,
    high_hu: float | NDArray[Any] | torch.Tensor,
) -> Volume:
    """Map [low_hu, high_hu] linearly to [0, 1] and clip what lies outside.

    Args:
        volume_hu: Hounsfield units, any shape, integer or float; tensor or array.
        low_hu: Lower edge in HU, a number or something that broadcasts against `volume_hu`.
        high_hu: Upper edge in HU, above `low_hu`.

    Returns:
        Gray values in [0, 1], float32 (float64 stays float64), same kind and shape as `volume_hu`.

    Raises:
        TransformError: If the window does not rise.
    """
    _refuse_falling(low_hu, high_hu)
    if isinstance(volume_hu, torch.Tensor):
        dtype = torch.float64 if volume_hu.dtype == torch.float64 else torch.float32
        low = torch.as_tensor(low_hu, dtype=dtype, device=volume_hu.device)
        high = torch.as_tensor(high_hu, dtype=dtype, device=volume_hu.device)
        return ((volume_hu.to(dtype) - low) / (high - low)).clamp_(0.0, 1.0)
    kind = np.float64 if volume_hu.dtype == np.float64 else np.float32
    low_edge: NDArray[Any] = np.asarray(low_hu, kind)
    high_edge: NDArray[Any] = np.asarray(high_hu, kind)
    gray: NDArray[Any] = np.clip((volume_hu.astype(kind) - low_edge) / (high_edge - low_edge), 0.0, 1.0)
    return gray


def _refuse_falling(low_hu: Any, high_hu: Any) -> None:
    if not bool((torch.as_tensor(low_hu) < torch.as_tensor(high_hu)).all()):
        raise TransformError(
            f"a CT window must rise, got {low_hu} .. {high_hu} HU; give low_hu below high_hu"
        )


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
        fixed: `low_hu` .. `high_hu` for every view.
    """

    policy: WindowPolicy = "lung_aware"
    per: Literal["view", "sample"] = "view"
    """Whether each view of a sample draws its own window, or all views of a sample share one."""
    low_hu: float = -1350.0
    """Lower edge of policy `fixed`, HU."""
    high_hu: float = 150.0
    """Upper edge of policy `fixed`, HU (default: lung, level -600, width 1500)."""
    hu_scale: float = 1.0
    """Factor on HU before windowing; 0.1 repeats an encoding error of the published runs, as an arm."""

    def __post_init__(self) -> None:
        """Refuse a window that cannot be."""
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
        case "fixed":
            low, high = np.full_like(u, config.low_hu), np.full_like(u, config.high_hu)
    edges: NDArray[np.float64] = np.stack([low, high], axis=-1) / config.hu_scale
    return edges


def draw_window(config: WindowConfig, random_state: np.random.RandomState) -> tuple[float, float]:
    """Draw one window: (low_hu, high_hu) in true HU, from three uniform numbers of `random_state`."""
    low, high = windows_from_uniforms(config, random_state.random_sample(UNIFORMS_PER_WINDOW))
    return float(low), float(high)


class WindowHU(Transform):
    """HU to gray in [0, 1] through one fixed window; array form of `WindowHUd`."""

    def __init__(self, low_hu: float, high_hu: float) -> None:
        """Take the window's edges in HU; TransformError if they do not rise."""
        _refuse_falling(low_hu, high_hu)
        self.low_hu, self.high_hu = low_hu, high_hu

    def __call__(self, volume_hu: Volume) -> Volume:
        """Window an array or tensor of HU, any shape."""
        return window_hu(volume_hu, self.low_hu, self.high_hu)


class WindowHUd(MapTransform):
    """HU to gray in [0, 1] through one fixed window, for each key of a dictionary."""

    def __init__(
        self, keys: KeysCollection, low_hu: float, high_hu: float, allow_missing_keys: bool = False
    ) -> None:
        """Take the keys and the window's edges in HU."""
        super().__init__(keys, allow_missing_keys)
        self.window = WindowHU(low_hu, high_hu)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Window every key."""
        windowed = dict(data)
        for key in self.key_iterator(windowed):
            windowed[key] = self.window(windowed[key])
        return windowed


class RandWindowHU(Randomizable, Transform):
    """HU to gray in [0, 1] through a window drawn under a policy; the drawn edges stay in `window`."""

    def __init__(self, config: WindowConfig | None = None) -> None:
        """Take the policy (default `WindowConfig()`, lung aware)."""
        self.config = config or WindowConfig()
        self.window: tuple[float, float] | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw the window from `self.R`."""
        self.window = draw_window(self.config, self.R)

    def __call__(self, volume_hu: Volume, randomize: bool = True) -> Volume:
        """Window an array or tensor of HU; `randomize=False` uses the last drawn window again.

        Raises:
            TransformError: If no window has been drawn yet.
        """
        if randomize:
            self.randomize()
        if self.window is None:
            raise TransformError("no window has been drawn yet; call with randomize=True first")
        return window_hu(volume_hu, *self.window)


class RandWindowHUd(Randomizable, MapTransform):
    """Draw a window per key (`per="view"`) or one for all keys (`per="sample"`): the keys are the views.

    Adds `<key>_window_hu`, the edges in true HU, beside each key.
    """

    def __init__(
        self, keys: KeysCollection, config: WindowConfig | None = None, allow_missing_keys: bool = False
    ) -> None:
        """Take the keys and the policy."""
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.draw = RandWindowHU(config)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "RandWindowHUd":
        """Hand the generator on to the array form."""
        super().set_random_state(seed, state)
        self.draw.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Window every key."""
        windowed = dict(data)
        is_first = True
        for key in self.key_iterator(windowed):
            windowed[key] = self.draw(windowed[key], randomize=is_first or self.draw.config.per == "view")
            windowed[f"{key}_window_hu"] = self.draw.window
            is_first = False
        return windowed
