"""Weights that resize one line of samples: antialiased bicubic of whole samples, or bilinear of any stretch.

The bicubic weights are those of torch's `interpolate(mode="bicubic", antialias=True)` (Keys' cubic, a = -0.5, stretched
by the scale when shrinking, renormalized at the crop's edge), which are Pillow's.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Band = tuple[NDArray[np.int64], NDArray[np.float64]]
"""First input sample that each output sample reads, (n_out,), and its weights from there on, (n_out, taps)."""
CUBIC_A = -0.5
CUBIC_REACH = 2.0
"""Half width of Keys' cubic, in samples of the coarser of the two grids."""


def cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -0.5. Source: Keys 1981, doi:10.1109/TASSP.1981.1163711."""
    d = np.abs(distance)
    inner = ((CUBIC_A + 2) * d - (CUBIC_A + 3)) * d * d + 1
    outer = (((d - 5) * d + 8) * d - 4) * CUBIC_A
    kernel: NDArray[np.float64] = np.where(d < 1, inner, np.where(d < CUBIC_REACH, outer, 0.0))
    return kernel


@lru_cache(maxsize=1024)
def bicubic_band(n_in: int, n_out: int) -> Band:
    """Weights that resize a line of `n_in` samples to `n_out`.

    Returns:
        The band. Weights past the end of the line are zero; each row sums to 1.
    """
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    center = scale * (np.arange(n_out) + 0.5)
    first = np.maximum(np.floor(center - CUBIC_REACH * stretch + 0.5), 0).astype(np.int64)
    taps = int(np.ceil(2 * CUBIC_REACH * stretch)) + 1
    index = first[:, None] + np.arange(taps)
    weights = cubic((index + 0.5 - center[:, None]) / stretch)
    weights[index >= n_in] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    for shared in (first, weights):
        shared.setflags(write=False)  # every caller gets the same arrays
    return first, weights


@lru_cache(maxsize=1024)
def bicubic_sparse(n_in: int, n_out: int) -> sparse.csr_matrix:
    """The same weights as a sparse float32 matrix (n_out, n_in)."""
    first, weights = bicubic_band(n_in, n_out)
    rows = np.repeat(np.arange(n_out), weights.shape[1])
    columns = (first[:, None] + np.arange(weights.shape[1])).ravel()
    kept = weights.ravel() != 0
    entries = (weights.ravel()[kept].astype(np.float32), (rows[kept], columns[kept]))
    return sparse.csr_matrix(entries, shape=(n_out, n_in))


def bilinear_band(start: float, length: float, n_out: int) -> Band:
    """Weights that sample `n_out` points in the stretch of a line from `start` to `start + length`.

    Sample i of the line lies at i + 0.5, as in torch's `grid_sample(align_corners=False)`, and the line goes on beyond
    the samples that the stretch touches with the value of the last one (`padding_mode="border"` of that part).
    Like the bicubic kernel, this one never reads what lies outside the crop.

    Returns:
        The band, of two taps; its second tap may lie one past the last sample touched, with weight zero.
    """
    index = start + length / n_out * (np.arange(n_out) + 0.5) - 0.5
    # A sum of start and length that rounding puts slightly past the end of the line must not touch what lies there.
    index = np.clip(index, np.floor(start), np.ceil(start + length - 1e-6) - 1)
    first = np.floor(index)
    second = index - first
    return first.astype(np.int64), np.stack([1 - second, second], axis=-1)
