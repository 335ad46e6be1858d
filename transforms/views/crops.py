"""Where a view lies on its slice: sizes and positions of crops, from uniform numbers.

Everything here is arithmetic on arrays of views and samples, (V, B, ...): no randomness of its own, no pixels. Crops
that are resized by the bicubic kernel begin and end on whole pixels; bilinear ones lie anywhere on the slice.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from transforms.body_grid import GRID, LUNG
from transforms.views.config import ViewConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOG_ASPECT = np.log(4 / 3)
TRIES = 10
"""Tries for a crop that fits the slice, as in torchvision's RandomResizedCrop."""
NO_ROOM_PX = 1e-6
"""Margin, in pixels, of a bilinear crop that is as large as its slice: one position, not none."""
UNIFORMS_PER_CROP = 2 * TRIES + 6
"""How many uniform numbers one crop uses: the tries, then body cell, y, x, flip, jitter y, jitter x."""


def _snapped(config: ViewConfig, length_px: Floats) -> Floats:
    """Round lengths and places to whole pixels where the kernel needs that."""
    return np.rint(length_px) if config.interpolation == "bicubic" else length_px


def crop_sizes(
    config: ViewConfig, uniforms: Floats, size_hw: Ints, pixel_mm: Floats, is_local: bool
) -> Floats:
    """Draw the size of each crop in pixels of its slice.

    Args:
        config: Extents.
        uniforms: (V, B, 2 * TRIES) in [0, 1).
        size_hw: Height and width of each slice, (B, 2).
        pixel_mm: Pixel spacing (y, x) of each slice, (B, 2).
        is_local: Whether these are local views with an extent of their own.

    Returns:
        Height and width, (V, B, 2), at least 1 and at most the slice.
    """
    if config.extent == "mm":
        low, high = config.local_fov_mm if is_local else config.fov_mm
        largest = np.minimum(high, (size_hw * pixel_mm).min(axis=1))
        smallest = np.minimum(low, largest)
        fov_mm = smallest * (largest / smallest) ** uniforms[..., 0]
        size: Floats = np.clip(_snapped(config, fov_mm[..., None] / pixel_mm), 1.0, size_hw)
        return size
    low, high = config.local_fraction if is_local else config.fraction
    area = size_hw.prod(axis=1)[:, None] * (low + (high - low) * uniforms[..., 0::2])
    if config.square or config.shared_scale:
        side = np.clip(_snapped(config, np.sqrt(area[..., 0])), 1.0, size_hw.min(axis=1))
        return np.stack([side, side], axis=-1)
    aspect = np.exp(LOG_ASPECT * (2 * uniforms[..., 1::2] - 1))
    tries = _snapped(config, np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=-1))
    tries = np.maximum(tries, 1.0)
    fits = (tries <= size_hw[:, None, :]).all(axis=-1)
    chosen = np.take_along_axis(tries, fits.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    # A slice so long that no try fits is cut to the longest aspect that is allowed.
    whole = np.minimum(size_hw, _snapped(config, size_hw[:, ::-1].astype(float) * (4 / 3)))
    return np.where(fits.any(axis=-1, keepdims=True), chosen, whole)


def _overlap(low: Floats, high: Floats, length: Floats) -> tuple[Floats, Floats]:
    """Length of each body cell inside [low, high] along one axis, and where that part begins; (..., 32)."""
    edges = np.arange(GRID + 1) / GRID * length[..., None]
    begin = np.maximum(edges[..., :-1], low[..., None])
    return np.maximum(np.minimum(edges[..., 1:], high[..., None]) - begin, 0.0), begin


def centers_in_cells(
    cells: NDArray[np.bool_],
    uniforms: Floats,
    size: Floats,
    size_hw: Ints,
    region_yxhw: Floats,
    margin_px: float = 0.5,
) -> Floats:
    """Draw crop centers uniformly over the marked cells, among the centers whose crop stays in the region.

    Drawing first and pushing the crop back onto the slice afterwards would pile large crops up at its corners.

    Args:
        cells: Marked cells of the body grid, (B, 32, 32); where none is left, every cell counts as marked.
        uniforms: (V, B, 3) in [0, 1): cell, y in it, x in it.
        size: Height and width of each crop, (V, B, 2).
        size_hw: Height and width of each slice, (B, 2).
        region_yxhw: Part of the slice that holds the crops, (B, 4).
        margin_px: Margin beyond the region. Half a pixel gives all whole-pixel positions the same probability.

    Returns:
        Centers (y, x), (V, B, 2), in pixel edges (the slice runs from 0 to H and 0 to W).
    """
    low = region_yxhw[:, :2] + size / 2 - margin_px
    high = region_yxhw[:, :2] + region_yxhw[:, 2:] - size / 2 + margin_px
    length_y, begin_y = _overlap(low[..., 0], high[..., 0], size_hw[:, 0].astype(float))
    length_x, begin_x = _overlap(low[..., 1], high[..., 1], size_hw[:, 1].astype(float))
    room = length_y[..., :, None] * length_x[..., None, :]
    marked = room * cells
    is_empty = marked.sum(axis=(-2, -1), keepdims=True) == 0
    weight = np.where(is_empty, room, marked).reshape(*room.shape[:-2], -1).cumsum(axis=-1)
    cell = (weight <= uniforms[..., 0, None] * weight[..., -1:]).sum(axis=-1)[..., None]
    row, column = np.divmod(cell, GRID)

    def place(begin: Floats, length: Floats, index: Ints, share: Floats) -> Floats:
        at: Floats = (
            np.take_along_axis(begin, index, -1) + np.take_along_axis(length, index, -1) * share[..., None]
        )
        return at[..., 0]

    y = place(begin_y, length_y, row, uniforms[..., 1])
    x = place(begin_x, length_x, column, uniforms[..., 2])
    return np.stack([y, x], axis=-1)


def boxes_around(config: ViewConfig, centers: Floats, size: Floats, region_yxhw: Floats) -> Floats:
    """Place crops of a size at centers (pixel edges), pushed back into the region: (V, B, 4) top, left, h, w."""
    corner, room = region_yxhw[:, :2], region_yxhw[:, 2:]
    top_left = corner + np.clip(_snapped(config, centers - size / 2 - corner), 0.0, room - size)
    return np.concatenate([top_left, size], axis=-1)


@dataclass(frozen=True, slots=True)
class SliceFrames:
    """What drawing crops needs of B slices: no pixels.

    Attributes:
        size_hw: Height and width in pixels, (B, 2).
        pixel_mm: Pixel spacing (y, x), (B, 2).
        body: 0 outside, 1 body, 2 lung, (B, 32, 32).
        point_yx_px: A point to center on, as pixel indices, (B, 2); NaN where a slice has none.
    """

    size_hw: Ints
    pixel_mm: Floats
    body: NDArray[np.uint8]
    point_yx_px: Floats


def place_crops(config: ViewConfig, uniforms: Floats, n_global: int, frames: SliceFrames) -> Floats:
    """Draw the crops of all views: global views first, local views behind them.

    Args:
        config: Extents and centers.
        uniforms: (V, B, UNIFORMS_PER_CROP) in [0, 1).
        n_global: How many of the V views are global.
        frames: The B slices.

    Returns:
        Top, left, height and width in pixels, (V, B, 4).
    """
    extent = uniforms[..., : 2 * TRIES]
    if config.shared_scale:
        extent = np.broadcast_to(extent[:1], extent.shape)
    size = crop_sizes(config, extent[:n_global], frames.size_hw, frames.pixel_mm, is_local=False)
    slices = np.concatenate([np.zeros_like(frames.size_hw), frames.size_hw], axis=-1).astype(float)
    boxes = _place(config, uniforms[:n_global], size, frames, slices)
    if n_global == len(uniforms):
        return boxes
    n_local = len(uniforms) - n_global
    if config.shared_scale:
        size = np.maximum(_snapped(config, size[:1] * (config.local_size_px / config.size_px)), 1.0)
        size = np.repeat(size, n_local, axis=0)
    else:
        size = crop_sizes(config, extent[n_global:], frames.size_hw, frames.pixel_mm, is_local=True)
    region = slices
    if config.center in ("point", "lung"):
        # Around a point the local views stay inside the first global view: outside it they would show something else.
        has_point = np.isfinite(frames.point_yx_px).all(axis=-1, keepdims=True)
        region = np.where(has_point | (config.center == "lung"), boxes[0], slices)
        size = np.minimum(size, region[:, 2:])
        config = replace(config, center="body")
    return np.concatenate([boxes, _place(config, uniforms[n_global:], size, frames, region)])


def _place(config: ViewConfig, uniforms: Floats, size: Floats, frames: SliceFrames, region: Floats) -> Floats:
    """Choose centers for crops of known size and return their boxes, (V, B, 4)."""
    is_anywhere = config.center == "uniform"
    cells = np.ones_like(frames.body, dtype=bool) if is_anywhere else frames.body > 0
    pick = uniforms[..., 2 * TRIES : 2 * TRIES + 3]
    margin_px = 0.5 if config.interpolation == "bicubic" else NO_ROOM_PX
    jitter_px = (2 * uniforms[..., -2:] - 1) * config.center_jitter_mm / frames.pixel_mm
    if config.center == "lung":
        is_lung = frames.body == LUNG
        cells = np.where(is_lung.any(axis=(-2, -1), keepdims=True), is_lung, cells)
        shared = centers_in_cells(cells, pick[:1], size[:1], frames.size_hw, region, margin_px)
        return boxes_around(config, shared + jitter_px, size, region)
    centers = centers_in_cells(cells, pick, size, frames.size_hw, region, margin_px)
    if config.center == "point":
        around_point = frames.point_yx_px + 0.5 + jitter_px
        centers = np.where(np.isfinite(around_point), around_point, centers)
    return boxes_around(config, centers, size, region)


def crop_flips(config: ViewConfig, uniforms: Floats) -> NDArray[np.bool_]:
    """Which views are mirrored left to right, (V, B)."""
    flips: NDArray[np.bool_] = (uniforms[..., 2 * TRIES + 3] < 0.5) & config.flip
    return flips


def body_share(boxes_yxhw: Floats, body: NDArray[np.uint8], size_hw: Ints) -> Floats:
    """Share of each crop's area that lies in body or lung cells of the grid, (V, B)."""
    top, left, height, width = np.moveaxis(boxes_yxhw, -1, 0)
    rows, _ = _overlap(top, top + height, size_hw[:, 0].astype(float))
    columns, _ = _overlap(left, left + width, size_hw[:, 1].astype(float))
    inside = np.einsum("vbi,bij,vbj->vb", rows, (body > 0).astype(float), columns)
    share: Floats = inside / (height * width)
    return share
