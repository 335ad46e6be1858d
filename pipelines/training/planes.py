"""The planes of views that figures show: a triplet's middle slice, or the three mid-planes of a cube."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from pipelines.runtime.ct_marks import Sides, mark_ct, sides_of
from transforms.views.config import ViewConfig

NAMES = ("axial", "coronal", "sagittal")


class Plane(NamedTuple):
    """One plane of one view.

    Attributes:
        name: Which one; "" of a triplet.
        pixels: (rows, columns, ...): the head up in planes along z, else as the view lies.
        size_mm: Height and width.
        sides: Of the patient at its edges; None where they are not known.
        window_hu: HU of black and white, as text; "" where they are not known.
        is_scaled: Whether `size_mm` is known, so that a scale bar may be drawn.
    """

    name: str
    pixels: NDArray[Any]
    size_mm: tuple[float, float]
    sides: Sides | None = None
    window_hu: str = ""
    is_scaled: bool = False

    def draw(self, axis: Axes, title: str = "", **style: Any) -> AxesImage:
        """Draw it with right proportions."""
        height_mm, width_mm = self.size_mm
        drawn = axis.imshow(self.pixels, extent=(0, width_mm, height_mm, 0), **style)
        axis.set_title(" ".join(filter(None, [self.name, title])), fontsize=6.5)
        return drawn

    def draw_ct(self, axis: Axes, title: str = "") -> None:
        """Draw it as CT in gray, with its sides, a scale bar and its window."""
        self.draw(axis, title, cmap="gray", vmin=0, vmax=1)
        mark_ct(axis, self.sides, 1.0 if self.is_scaled else None, self.window_hu)


@dataclass(frozen=True)
class Shown:
    """A few views as figures show them.

    Attributes:
        gray: In [0, 1], (B, z, y, x); z is 1 of triplets.
        grid: Patches along (z, y, x). Planes go through the middle of one, so that voxels and patches show one place.
        spacing_mm: Sides (z, y, x) of the voxels of each, (B, 3); only their ratios count where `is_scaled` is False.
        directions: Of the axes (z, y, x) in the patient, RAS, (B, 3, 3); None: not known.
        window_hu: HU of black and white, (B, 2); None: not known.
        is_scaled: Whether the spacing is known.
    """

    gray: torch.Tensor
    grid: tuple[int, int, int]
    spacing_mm: torch.Tensor
    directions: NDArray[np.float64] | None = None
    window_hu: torch.Tensor | None = None
    is_scaled: bool = True

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        views: ViewConfig,
        grid: tuple[int, int, int] = (1, 1, 1),
        spacing_mm: torch.Tensor | None = None,
        directions: NDArray[np.float64] | None = None,
        window_hu: torch.Tensor | None = None,
    ) -> "Shown":
        """Take normalized triplets (B, 3, S, S), of which the middle slice is shown, or cubes (B, 1, D, S, S)."""
        middle = (images if images.ndim == 5 else images[:, None, 1:2])[:, 0].float().cpu()
        channel = len(views.channel_mean) // 2
        gray = (middle * views.channel_std[channel] + views.channel_mean[channel]).clamp(0, 1)
        is_scaled = spacing_mm is not None
        spacing_mm = torch.ones(len(images), 3) if spacing_mm is None else spacing_mm
        return cls(gray, grid, spacing_mm, directions, window_hu, is_scaled)

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.gray)

    def planes(self, view: int) -> list[Plane]:
        """Return the planes of one view: one of a triplet, three of a cube."""
        return self._cut(self.gray[view], self.spacing_mm[view].tolist(), view)

    def maps(self, view: int, values: torch.Tensor) -> list[Plane]:
        """Return the same planes of what the patches of one view hold, (N, ...)."""
        voxels = [n / own for n, own in zip(self.gray.shape[1:], self.grid, strict=True)]
        sides_mm = [n * side for n, side in zip(voxels, self.spacing_mm[view].tolist(), strict=True)]
        return self._cut(values.view(*self.grid, *values.shape[1:]), sides_mm, view)

    def _sides(self, view: int, across: int) -> Sides | None:
        """Sides of the plane across one axis: rows of the planes along z run toward the feet."""
        if self.directions is None:
            return None
        z, y, x = self.directions[view]
        down, right = ((y, x), (-z, x), (-z, y))[across]
        return sides_of(down, right)

    def _cut(self, values: torch.Tensor, sides_mm: Sequence[float], view: int) -> list[Plane]:
        window = (
            "" if self.window_hu is None else "{:.0f} .. {:.0f} HU".format(*self.window_hu[view].tolist())
        )
        is_3d, planes = self.gray.shape[1] > 1, []
        sizes_mm = [n * side for n, side in zip(values.shape[:3], sides_mm, strict=True)]
        for axis in range(3 if is_3d else 1):
            middle = int((self.grid[axis] // 2 + 0.5) * values.shape[axis] / self.grid[axis])
            pixels = values.select(axis, middle)
            height_mm, width_mm = (size for other, size in enumerate(sizes_mm) if other != axis)
            # z runs toward the head, and rows downward.
            shown = pixels.flip(0) if axis else pixels
            sides, name = self._sides(view, axis), NAMES[axis] if is_3d else ""
            planes.append(Plane(name, shown.numpy(), (height_mm, width_mm), sides, window, self.is_scaled))
        return planes
