"""Cubes: where random 3D views lie in a volume, drawn per sample by key. No voxels are read here.

A sample is a slice of the index, as for triplets: it gives the place along z, and body grid, lung or nodule point give
the place in the plane by the rules of triplets (`crops`). A cube lies anywhere, not on whole voxels. In the plane it is
pushed back into the slice; along z it stays where it is, and beyond the last slice before a volume edge or a gap that
slice is repeated, as for triplets.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from transforms.views.config import N_GLOBAL, ViewConfig
from transforms.views.crops import (
    UNIFORMS_PER_CROP,
    Floats,
    Ints,
    SliceFrames,
    body_share,
    crop_flips,
    place_crops,
)
from transforms.views.keyed import keyed_uniforms, keyed_windows

# Of the uniform numbers of a crop, one in mm uses the first for its side. Cubes use two of the others.
_DEPTH, _Z = 1, 2
_CENTERED = ("point", "lung")
"""Centers that all views of a sample share."""


def smallest_cube_mm(views: ViewConfig) -> tuple[float, float, float]:
    """Sides (z, y, x) in mm of the smallest global cube."""
    side_mm = views.fov_mm[0]
    return views.depth_mm[0] if views.depth_mm else side_mm / views.size_px * views.depth_px, side_mm, side_mm


def longest_cube_mm(views: ViewConfig) -> float:
    """Extent along z, in mm, of the longest global cube."""
    return views.depth_mm[1] if views.depth_mm else views.fov_mm[1] / views.size_px * views.depth_px


def holds_a_cube(views: ViewConfig, sides_mm: Floats) -> NDArray[np.bool_]:
    """Whether volumes with sides (..., 3) are as large as the smallest global cube."""
    # Lengths are products of rounded numbers: a cube that fits exactly fits.
    fits: NDArray[np.bool_] = np.all(sides_mm >= np.array(smallest_cube_mm(views)) * (1 - 1e-6), axis=-1)
    return fits


def in_mm(sides_mm: Iterable[float]) -> str:
    """Sides (z, y, x) as text."""
    return " x ".join(f"{side:.3g}" for side in sides_mm) + " mm (z, y, x)"


@dataclass(frozen=True, slots=True)
class CubeFrames:
    """What drawing cubes needs of B slices: no voxels.

    Attributes:
        z: The slice of each sample, (B,).
        run_z: First and last slice of those around it among which none is missing, (B, 2).
        size_hw: Height and width in pixels, (B, 2).
        spacing_mm: Voxel spacing (z, y, x), (B, 3).
        body: Grid over the slice: 0 outside, 1 body, 2 lung, (B, 32, 32).
        point_yx_px: A point to center on, as pixel indices, (B, 2); NaN where a slice has none.
    """

    z: Ints
    run_z: Ints
    size_hw: Ints
    spacing_mm: Floats
    body: NDArray[np.uint8]
    point_yx_px: Floats


@dataclass(frozen=True, slots=True)
class CubePlaces:
    """Where V cubes (global first) of B samples lie, and what they read.

    Attributes:
        start_zyx: Where each cube begins, in voxel edges (the volume runs from 0 to Z, 0 to Y, 0 to X), (V, B, 3).
        length_zyx: Its lengths in voxels, (V, B, 3).
        read_zyx: First voxel, and one past the last, of the box that it reads, (V, B, 3, 2).
        spacing_mm: Sides of its own voxels, (V, B, 3).
        is_flipped: Mirrored left to right, (V, B).
    """

    start_zyx: Floats
    length_zyx: Floats
    read_zyx: Ints
    spacing_mm: Floats
    is_flipped: NDArray[np.bool_]

    def middle_z(self) -> Ints:
        """Slice at the middle of each cube, or the one repeated there, (V, B)."""
        middle = np.floor(self.start_zyx[..., 0] + self.length_zyx[..., 0] / 2).astype(np.int64)
        return np.clip(middle, self.read_zyx[..., 0, 0], self.read_zyx[..., 0, 1] - 1)

    def body_share(self, body: NDArray[np.uint8], size_hw: Ints) -> Floats:
        """Share of each cube's middle slice that lies in body or lung; `body` (V, B, 32, 32) is of those slices."""
        boxes = np.concatenate([self.start_zyx[..., 1:], self.length_zyx[..., 1:]], axis=-1)
        shares = [body_share(box[None], cells, size_hw)[0] for box, cells in zip(boxes, body, strict=True)]
        return np.stack(shares)


@dataclass(frozen=True, slots=True)
class CubeDraws:
    """Every random choice of V cubes of B samples.

    Attributes:
        places: Where they lie.
        window_hu: Lower and upper edges in true HU, (V, B, 2).
    """

    places: CubePlaces
    window_hu: Floats


def draw_cubes(
    frames: CubeFrames, sample_keys: list[int], config: ViewConfig, seed: int, step: int
) -> CubeDraws:
    """Draw the cubes of a batch; each sample's draws depend on (seed, step, its key) and its frame alone.

    Args:
        frames: The slices of the samples.
        sample_keys: Identify the samples, B not negative numbers.
        config: Settings of the views.
        seed: Seed of the run.
        step: Optimizer update.

    Returns:
        Draws of 2 + n_local cubes.
    """
    n_views = N_GLOBAL + config.n_local
    crop = keyed_uniforms(sample_keys, seed, step, "crop", (n_views, UNIFORMS_PER_CROP))
    window_hu = keyed_windows(config.window, sample_keys, seed, step, n_views)
    return CubeDraws(place_cubes(config, crop, N_GLOBAL, frames), window_hu)


def place_cubes(config: ViewConfig, uniforms: Floats, n_global: int, frames: CubeFrames) -> CubePlaces:
    """Place the cubes of all views: global views first, local views behind them.

    Args:
        config: Extents and centers.
        uniforms: (V, B, UNIFORMS_PER_CROP) in [0, 1).
        n_global: How many of the V views are global.
        frames: The B slices.

    Returns:
        The places.
    """
    slices = SliceFrames(frames.size_hw, frames.spacing_mm[:, 1:], frames.body, frames.point_yx_px)
    # Crops of the bilinear kernel lie anywhere.
    boxes = place_crops(replace(config, interpolation="bilinear"), uniforms, n_global, slices)
    shapes = np.array(config.view_shapes()[:1] * n_global + config.view_shapes()[N_GLOBAL:])
    sides_mm = boxes[..., 2:] * frames.spacing_mm[:, 1:]
    depth_mm = _depths(config, uniforms, n_global, sides_mm[..., 0] / shapes[: len(boxes), 1:2])
    depth = depth_mm / frames.spacing_mm[:, 0]
    share = uniforms[:n_global, :, _Z]
    # Anywhere within the thickness of the slice; one place for all views that share their center.
    center = frames.z + (share[:1] if config.center in _CENTERED else share)
    start = np.broadcast_to(center, depth[:n_global].shape) - depth[:n_global] / 2
    # Local cubes lie anywhere along the first global one.
    local = start[:1] + uniforms[n_global:, :, _Z] * (depth[:1] - depth[n_global:])
    start_zyx = np.concatenate([np.concatenate([start, local])[..., None], boxes[..., :2]], axis=-1)
    length_zyx = np.concatenate([depth[..., None], boxes[..., 2:]], axis=-1)
    low = np.pad(frames.run_z[:, :1], [(0, 0), (0, 2)])
    high = np.concatenate([frames.run_z[:, 1:] + 1, frames.size_hw], axis=-1)
    return CubePlaces(
        start_zyx=start_zyx,
        length_zyx=length_zyx,
        read_zyx=_read(start_zyx, length_zyx, shapes[: len(boxes), None], low, high),
        spacing_mm=np.concatenate([depth_mm[..., None], sides_mm], axis=-1) / shapes[: len(boxes), None],
        is_flipped=crop_flips(config, uniforms),
    )


def _depths(config: ViewConfig, uniforms: Floats, n_global: int, mm_per_pixel: Floats) -> Floats:
    """Draw the extent of each cube along z in mm, (V, B), beside its scale in the plane, (V, B)."""

    def drawn(bounds: tuple[float, float] | None, depth_px: int, views: slice) -> Floats:
        if bounds is None:
            return depth_px * mm_per_pixel[views]
        low, high = bounds
        drawn_mm: Floats = low * (high / low) ** uniforms[views, :, _DEPTH]
        return drawn_mm

    depth_mm = drawn(config.depth_mm, config.depth_px, slice(0, n_global))
    if config.shared_scale:
        depth_mm = np.broadcast_to(depth_mm[:1], depth_mm.shape)
    if n_global == len(uniforms):
        return depth_mm
    if config.shared_scale:
        local_mm = np.repeat(depth_mm[:1] * (config.local_depth_px / config.depth_px), config.n_local, axis=0)
    else:
        local_mm = drawn(config.local_depth_mm, config.local_depth_px, slice(n_global, None))
    if config.center in _CENTERED:
        local_mm = np.minimum(local_mm, depth_mm[0])
    return np.concatenate([depth_mm, local_mm])


def _read(start: Floats, length: Floats, n_out: Ints, low: Ints, high: Ints) -> Ints:
    """First voxel, and one past the last, that the kernel weighs, within [low, high)."""
    step = length / n_out
    reach = np.maximum(step, 1.0)
    first = np.floor(start + step / 2 - 0.5 - reach) + 1
    last = np.ceil(start + length - step / 2 - 0.5 + reach) - 1
    first = np.clip(first, low, high - 1)
    return np.stack([first, np.clip(last, first, high - 1) + 1], axis=-1).astype(np.int64)
