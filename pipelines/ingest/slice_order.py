"""Whether a volume lies as its affine says: its slices in order, its spine at the back."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from transforms.body_grid import OUTSIDE

_BONE_HU = 200
_HEIGHTS = (0.15, 0.3, 0.5, 0.7, 0.85)
"""Of the slices in which the spine is looked for, as a share of the volume."""
_FRONT, _BACK, _HALF_WIDTH = 0.3, 0.45, 0.08
"""Of the body's depth and width: where a sternum may lie, where a vertebra does, and how far from the middle."""


def order_figures(coronal_hu: NDArray[np.int16]) -> tuple[float, float]:
    """Compare slices with their neighbors and with those further away, by one coronal slice (z, x).

    Returns:
        Mean change between neighbors over that between slices four apart, about 1 if slices are shuffled; and the
        greatest change between neighbors over that between slices two apart, about 1 where two passes follow each
        other, NaN where no change stands out. NaN for fewer than forty slices, of which one may well differ.
    """
    if len(coronal_hu) < 40:
        return float("nan"), float("nan")
    rows = uniform_filter1d(np.clip(coronal_hu.astype(np.float32), -1000, 300), 9, axis=1)  # against noise
    one, two, four = (np.abs(rows[k:] - rows[:-k]).mean(axis=1) for k in (1, 2, 4))
    if not two.any() or not four.any():
        return float("nan"), float("nan")
    stands_out = one.max() > 3 * np.median(one)  # else it is noise
    return float(one.mean() / four.mean()), float(one.max() / two.max() if stands_out else np.nan)


def spine_at_back(volume_hu: NDArray[np.int16], body: NDArray[np.uint8], to_back: bool) -> float:
    """Say where the spine lies: the share of bone at the back of the middle of the body, of that at its back or front.

    A vertebra is in every slice; a sternum, or a heart full of contrast medium, is not. So the slice with the least
    bone counts, at either end.

    Args:
        volume_hu: (z, y, x).
        body: Kinds of tissue on the coarse grid, (z, 32, 32), see `transforms.body_grid`.
        to_back: Whether y runs to the back.

    Returns:
        0 to 1; below a half the front looks like the back. NaN where no bone is seen.
    """
    shares = []
    height, width = volume_hu.shape[1:]
    for z in (np.array(_HEIGHTS) * (len(volume_hu) - 1)).astype(int):
        inside = body[z] != OUTSIDE
        rows, columns = np.flatnonzero(inside.sum(axis=1) > 2), np.flatnonzero(inside.sum(axis=0) > 2)
        if not len(rows):
            continue
        # Cells of the grid are -(-side // 32) pixels.
        top, bottom = rows[0] * -(-height // 32), min((rows[-1] + 1) * -(-height // 32), height)
        left, right = columns[0] * -(-width // 32), min((columns[-1] + 1) * -(-width // 32), width)
        middle, reach = (left + right) // 2, max(round((right - left) * _HALF_WIDTH), 1)
        bone = np.asarray(volume_hu[z, top:bottom, middle - reach : middle + reach]) > _BONE_HU
        bone = bone if to_back else bone[::-1]
        front, back = round(len(bone) * _FRONT), round(len(bone) * _BACK)
        shares.append((bone[:front].mean(), bone[-back:].mean()))
    front_share, back_share = np.array(shares).reshape(-1, 2).min(axis=0, initial=1.0)
    total = front_share + back_share
    return float(back_share / total) if shares and total > 0 else float("nan")
