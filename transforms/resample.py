"""Antialiased bicubic resizing of a crop, as one matrix for rows and one for columns.

The weights are those of torch's `interpolate(mode="bicubic", antialias=True)` (Keys' cubic, a = -0.5, stretched
by the scale when shrinking, renormalised at the crop's edge), which are Pillow's. On a GPU a whole batch is two
dense batched products; on a CPU the matrices are kept sparse, where 4 to 10 of some hundred weights are not zero.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

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
def bicubic_band(n_in: int, n_out: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Weights that resize a line of `n_in` samples to `n_out`.

    Returns:
        The first input sample that each output sample reads, (n_out,), and the weights from there on,
        (n_out, taps); weights past the end of the line are zero. Each row sums to 1.
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


def resize_crop(
    image: NDArray[np.generic],
    box_yxhw: NDArray[np.integer],
    size_px: int,
    is_flipped: bool,
    out: NDArray[np.float32],
) -> None:
    """Crop, resize and flip one image on the CPU.

    Args:
        image: (C, H, W), integer or float.
        box_yxhw: Top, left, height and width of the crop in pixels, inside the image.
        size_px: Side of the result.
        is_flipped: Whether to mirror left and right.
        out: Receives the result, (C, size_px, size_px) float32.
    """
    top, left, height, width = (int(n) for n in box_yxhw)
    rows, columns = bicubic_sparse(height, size_px), bicubic_sparse(width, size_px)
    # Channel by channel, what lies between the two products stays in the processor's cache.
    for channel, resized in zip(image, out, strict=True):
        crop = channel[top : top + height, left : left + width].astype(np.float32)
        transposed = columns @ (rows @ crop).T
        resized[:] = transposed[::-1].T if is_flipped else transposed.T


def upload(values: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy an array to a device without waiting for it.

    From memory that is not pinned the copy would wait until a GPU has done all that is queued there, and what is
    rendered next would begin with an idle GPU.
    """
    host = torch.from_numpy(values)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def bicubic_matrices(
    starts: NDArray[np.integer], lengths: NDArray[np.integer], n_in: int, n_out: int, device: torch.device
) -> torch.Tensor:
    """Dense weights that crop and resize many lines at once.

    Args:
        starts: First sample of each crop, (N,).
        lengths: Samples of each crop, (N,).
        n_in: Length of the whole line.
        n_out: Length of the result.
        device: Where the matrices are built.

    Returns:
        (N, n_out, n_in) float32, zero outside each crop.
    """
    bands = [bicubic_band(int(length), n_out) for length in lengths]
    taps = max(weights.shape[1] for _, weights in bands)
    first = np.stack([start + band[0] for start, band in zip(starts, bands, strict=True)])
    weights = np.zeros((len(bands), n_out, taps), dtype=np.float32)
    for row, (_, band) in zip(weights, bands, strict=True):
        row[:, : band.shape[1]] = band
    index = upload(first, device)[:, :, None] + torch.arange(taps, device=device)
    # Room for the zero weights that reach past the line keeps every index distinct: the scatter is deterministic.
    dense = torch.zeros(len(bands), n_out, n_in + taps, device=device)
    return dense.scatter_(2, index, upload(weights, device))[:, :, :n_in]


def resize_batch(
    images: torch.Tensor, boxes_yxhw: NDArray[np.integer], size_px: int, is_flipped: NDArray[np.bool_]
) -> torch.Tensor:
    """Crop, resize and flip a batch as two batched matrix products: the form for a GPU.

    Args:
        images: (B, C, H, W) float32.
        boxes_yxhw: Top, left, height and width of each crop in pixels, (B, 4).
        size_px: Side of the result.
        is_flipped: Whether to mirror each, (B,).

    Returns:
        (B, C, size_px, size_px) float32.
    """
    n_images, n_channels, height, width = images.shape
    device = images.device
    rows = bicubic_matrices(boxes_yxhw[:, 0], boxes_yxhw[:, 2], height, size_px, device)
    columns = bicubic_matrices(boxes_yxhw[:, 1], boxes_yxhw[:, 3], width, size_px, device)
    mirror = upload(is_flipped, device)[:, None, None]
    columns = torch.where(mirror, columns.flip(1), columns)
    # HU reach into the thousands: bfloat16 would round them to 8 or 16 HU.
    with torch.autocast(device.type, enabled=False):
        narrow = torch.bmm(images.reshape(n_images, n_channels * height, width), columns.transpose(1, 2))
        narrow = narrow.reshape(n_images, n_channels, height, size_px)
        return torch.einsum("bsh,bchx->bcsx", rows, narrow)
