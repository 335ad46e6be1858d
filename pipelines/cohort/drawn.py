"""The views of some slices of a cohort: what is drawn and read of them, as triplets or as cubes."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.cohort.slices import SliceIndex
from transforms.views.batch import TripletBatch, ViewDraws, Views, draw_views, render_views
from transforms.views.config import ViewConfig
from transforms.views.cube_render import CubeBatch, render_cubes
from transforms.views.cubes import CubeDraws, draw_cubes
from transforms.views.keyed import sample_state


class DrawnBatch(NamedTuple):
    """Raw voxels and the random parameters of their views; the training device renders them."""

    voxels: TripletBatch | CubeBatch
    draws: ViewDraws | CubeDraws

    @property
    def is_flipped(self) -> NDArray[np.bool_]:
        """Which views are mirrored left to right, (V, B)."""
        return self.draws.places.is_flipped if isinstance(self.draws, CubeDraws) else self.draws.is_flipped

    def render(self, device: torch.device, config: ViewConfig) -> Views:
        """Render the views on a device."""
        voxels = self.voxels.to(device, non_blocking=True)
        if isinstance(voxels, CubeBatch):
            assert isinstance(self.draws, CubeDraws)
            return render_cubes(voxels, self.draws, config)
        assert isinstance(self.draws, ViewDraws)
        return render_views(voxels, self.draws, config)


def draw_batch(
    index: SliceIndex, rows: NDArray[np.int64], config: ViewConfig, seed: int, step: int
) -> DrawnBatch:
    """Draw the views of some slices and read the voxels that they show.

    Args:
        index: All slices.
        rows: The chosen ones, (B,).
        config: Settings of the views.
        seed: Seed of the run.
        step: Optimizer update.

    Returns:
        What `DrawnBatch.render` makes views of.
    """
    if config.is_3d:
        drawn = draw_cubes(index.frames(rows), index.keys(rows).tolist(), config, seed, step)
        return DrawnBatch(index.read_cubes(rows, drawn.places), drawn)
    triplets = index.read(rows)
    if config.neighbor_slices:
        keys = triplets.sample_keys.tolist()
        uniforms = [sample_state(seed, step, key, "neighbor").random_sample() for key in keys]
        others = index.neighbors(rows, config.neighbor_slices, uniforms)
        triplets = replace(triplets, second_hu=index.read(others).triplets_hu)
    return DrawnBatch(triplets, draw_views(triplets, config, seed, step))
