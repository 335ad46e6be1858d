"""The pixel size of a backbone's input images, compared with the pixel sizes of its pretraining."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run


def tag_scale(run: Run, loaded: LoadedBackbone, mm_per_px: NDArray[Any]) -> None:
    """Warn, and tag the run, if a pixel size lies outside the range of the pretraining."""
    seen = loaded.record.get("mm_per_pixel")
    low, high = float(np.min(mm_per_px)), float(np.max(mm_per_px))
    if seen and (low < seen[0] or high > seen[1]):
        run.set_tags({Tag.SCALE: "out of distribution"})
        print(
            f"scale: the network gets {low:.2f} .. {high:.2f} mm per pixel, outside the {seen[0]:.2f} .."
            f" {seen[1]:.2f} of its pretraining"
        )
