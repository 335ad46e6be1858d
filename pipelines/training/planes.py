"""The planes of views that figures show: a triplet's middle slice, or the three mid-planes of a cube."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from transforms.views.config import ViewConfig

NAMES = ("axial", "coronal", "sagittal")


class Plane(NamedTuple):
    """One plane of one view.

    Attributes:
        name: Which one; "" of a triplet.
        pixels: (rows, columns, ...): head or front up, the patient's right or front on the left.
        size_mm: Height and width.
    """

    name: str
    pixels: NDArray[Any]
    size_mm: tuple[float, float]

    def draw(self, axis: Axes, title: str = "", **style: Any) -> None:
        """Draw it with right proportions."""
        height_mm, width_mm = self.size_mm
        axis.imshow(self.pixels, extent=(0, width_mm, height_mm, 0), **style)
        axis.set_title(" ".join(filter(None, [self.name, title])), fontsize=7)


@dataclass(frozen=True)
class Shown:
    """A few views as figures show them.

    Attributes:
        gray: In [0, 1], (B, z, y, x); z is 1 of triplets.
        grid: Patches along (z, y, x). Planes go through the middle of one, so that voxels and patches show one place.
        spacing_mm: Sides (z, y, x) of the voxels of each, (B, 3).
    """

    gray: torch.Tensor
    grid: tuple[int, int, int]
    spacing_mm: torch.Tensor

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        views: ViewConfig,
        grid: tuple[int, int, int] = (1, 1, 1),
        spacing_mm: torch.Tensor | None = None,
    ) -> "Shown":
        """Take normalized triplets (B, 3, S, S), of which the middle slice is shown, or cubes (B, 1, D, S, S)."""
        middle = (images if images.ndim == 5 else images[:, None, 1:2])[:, 0].float().cpu()
        channel = len(views.channel_mean) // 2
        gray = (middle * views.channel_std[channel] + views.channel_mean[channel]).clamp(0, 1)
        return cls(gray, grid, torch.ones(len(images), 3) if spacing_mm is None else spacing_mm)

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.gray)

    def planes(self, view: int) -> list[Plane]:
        """Return the planes of one view: one of a triplet, three of a cube."""
        return self._cut(self.gray[view], self.spacing_mm[view].tolist())

    def maps(self, view: int, values: torch.Tensor) -> list[Plane]:
        """Return the same planes of what the patches of one view hold, (N, ...)."""
        voxels = [n / own for n, own in zip(self.gray.shape[1:], self.grid, strict=True)]
        sides_mm = [n * side for n, side in zip(voxels, self.spacing_mm[view].tolist(), strict=True)]
        return self._cut(values.view(*self.grid, *values.shape[1:]), sides_mm)

    def _cut(self, values: torch.Tensor, sides_mm: Sequence[float]) -> list[Plane]:
        is_3d, planes = self.gray.shape[1] > 1, []
        sizes_mm = [n * side for n, side in zip(values.shape[:3], sides_mm, strict=True)]
        for axis in range(3 if is_3d else 1):
            middle = int((self.grid[axis] // 2 + 0.5) * values.shape[axis] / self.grid[axis])
            pixels = values.select(axis, middle)
            height_mm, width_mm = (size for other, size in enumerate(sizes_mm) if other != axis)
            # z runs toward the head, and rows downward.
            shown = pixels.flip(0) if axis else pixels
            planes.append(Plane(NAMES[axis] if is_3d else "", shown.numpy(), (height_mm, width_mm)))
        return planes
