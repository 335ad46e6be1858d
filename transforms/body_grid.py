"""A coarse map of where body and lung are: enough to place views, made once per volume."""

import numpy as np
from numpy.typing import NDArray

GRID = 32
OUTSIDE, BODY, LUNG = 0, 1, 2
BODY_ABOVE_HU = -500
LUNG_BELOW_HU = -500
_WORK = 128
"""Rows and columns, about, at which the slices are segmented: 4 mm for a full field of view."""


def body_grid(volume_hu: NDArray[np.int16], is_patch: bool = False) -> NDArray[np.uint8]:
    """Classify each cell of a 32 x 32 grid over each slice as outside, body or lung.

    The body is the largest connected component above -500 HU in a slice, holes filled; lung is everything below -500 HU
    within it (bowel gas and airways too: this map places views and is no measurement).

    Args:
        volume_hu: (Z, Y, X) HU, any in-plane size.
        is_patch: The volume is cut from within a body, so that nothing of it lies outside.

    Returns:
        (Z, 32, 32) uint8: 0 outside, 1 body, 2 lung; a cell takes the kind that fills at least half of it, body
        before lung where neither does.
    """
    grid = np.empty((len(volume_hu), GRID, GRID), dtype=np.uint8)
    for slice_hu, cells in zip(volume_hu, grid, strict=True):
        coarse = _block_mean(slice_hu)
        is_dense = coarse > BODY_ABOVE_HU
        is_body = np.ones_like(is_dense) if is_patch else _largest_filled(is_dense)
        body_share = _cell_shares(is_body)
        lung_share = _cell_shares(is_body & (coarse < LUNG_BELOW_HU))
        cells[...] = np.where(lung_share >= 0.5, LUNG, np.where(body_share >= 0.5, BODY, OUTSIDE))
    return grid


def _block_mean(slice_hu: NDArray[np.int16]) -> NDArray[np.float32]:
    """Mean over square blocks, so that a slice has about 128 rows and columns; what is left over is dropped."""
    step = max(1, min(slice_hu.shape) // _WORK)
    rows, columns = slice_hu.shape[0] // step, slice_hu.shape[1] // step
    blocks = slice_hu[: rows * step, : columns * step].reshape(rows, step, columns, step)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))


def _largest_filled(is_dense: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage  # Training reads grids that are there, on machines that may have no scipy.

    labels, n_pieces = ndimage.label(is_dense)
    if not n_pieces:
        return np.zeros_like(is_dense)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(labels == sizes.argmax()), dtype=np.bool_)


def _cell_shares(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Share of each grid cell that the mask covers, (32, 32), exact for sizes that 32 does not divide."""
    rows, columns = (_overlap(size) for size in mask.shape)
    return rows @ mask.astype(np.float32) @ columns.T


def _overlap(size: int) -> NDArray[np.float32]:
    """(32, size): the part of each cell that each row lies in; every cell sums to 1."""
    edges = np.arange(GRID + 1) * size / GRID
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    return np.asarray(overlap / (size / GRID), dtype=np.float32)
