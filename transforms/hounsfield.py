"""Hounsfield units to gray through a CT window, fixed or drawn, as MONAI transforms.

A window maps [low_hu, high_hu] to [0, 1] and clips the rest (DICOM PS3.3 C.11.2.1.2, in its edge form).
"""

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform, Randomizable, Transform
from numpy.typing import NDArray

from transforms.refusal import TransformError
from transforms.window_policy import CHANNEL_RANGES_HU, PROBE_WINDOWS_HU, WindowConfig, draw_window

Volume = TypeVar("Volume", torch.Tensor, NDArray[Any])


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


def hu_ranges(triplet_hu: Volume, hu_scale: float = 1.0) -> Volume:
    """Show the middle slice of triplets (..., 3, H, W) in three windows, one a channel; see `CHANNEL_RANGES_HU`."""
    low, high = (CHANNEL_RANGES_HU / hu_scale).T[..., None, None]
    return window_hu(triplet_hu[..., [1, 1, 1], :, :], low, high)


class WindowHU(Transform):
    """HU to gray in [0, 1] through one fixed window; array form of `WindowHUd`."""

    def __init__(self, low_hu: float, high_hu: float) -> None:
        """Take the window's edges in HU; TransformError if they do not rise."""
        _refuse_falling(low_hu, high_hu)
        self.low_hu, self.high_hu = low_hu, high_hu

    def __call__(self, volume_hu: Volume) -> Volume:
        """Window an array or tensor of HU, any shape."""
        return window_hu(volume_hu, self.low_hu, self.high_hu)


def named_window(triplet_hu: Volume, name: str) -> Volume:
    """Gray of triplets (..., 3, H, W) in a window of `PROBE_WINDOWS_HU`, or in `ranges` (see `hu_ranges`)."""
    return hu_ranges(triplet_hu) if name == "ranges" else WindowHU(*PROBE_WINDOWS_HU[name])(triplet_hu)


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
        if self.config.policy == "ranges":
            return hu_ranges(volume_hu, self.config.hu_scale)
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
        """Pass the generator to the array form."""
        super().set_random_state(seed, state)
        self.draw.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Window every key."""
        windowed = dict(data)
        for number, key in enumerate(self.key_iterator(windowed)):
            is_drawn = number == 0 or self.draw.config.per == "view"
            windowed[key] = self.draw(windowed[key], randomize=is_drawn)
            windowed[f"{key}_window_hu"] = self.draw.window
        return windowed
