"""The peer: how CT slices are commonly fed to a network, one 16-bit PNG per slice, decoded again for every view.

Three PNGs per view, HU, a random window, torchvision's random resized crop (bicubic, antialiased) and flip.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from benchmarks.chest_cohort import PNG_OFFSET
from transforms.views.config import ViewConfig


class PngTwoViews(Dataset[torch.Tensor]):
    """Two views (2, 3, S, S) float32 of the triplet around each slice, from PNG files."""

    def __init__(self, png_paths: list[Path], rows: list[int], config: ViewConfig) -> None:
        """Take the files in slice order, the rows whose neighbors exist, and what a view looks like."""
        self.png_paths, self.rows = png_paths, rows
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    config.size_px,
                    scale=config.fraction,
                    interpolation=InterpolationMode.BICUBIC,
                    antialias=True,
                ),
                v2.RandomHorizontalFlip(),
                v2.Normalize(config.mean, config.std),
            ]
        )

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.rows)

    def __getitem__(self, item: int) -> torch.Tensor:
        """Decode, window and crop twice."""
        return torch.stack([self._view(self.rows[item]) for _ in range(2)])

    def _view(self, row: int) -> torch.Tensor:
        slices = [np.asarray(Image.open(self.png_paths[i])) for i in (row - 1, row, row + 1)]
        hu = np.stack([slice_stored.astype(np.float32) - PNG_OFFSET for slice_stored in slices])
        low, high = np.random.uniform(-1400, -950), np.random.uniform(100, 800)  # noqa: NPY002 as peers do
        gray = np.clip((hu - low) / (high - low), 0, 1)
        view: torch.Tensor = self.transform(torch.from_numpy(gray))
        return view
