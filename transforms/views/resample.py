"""Resizing of a crop, as one matrix for rows and one for columns; then the arms on gray views, off by default.

On a GPU a whole batch is two dense batched products; on a CPU the matrices are kept sparse, where 2 to 10 of some
hundred weights are not zero.

The weights are antialiased bicubic of whole samples, or bilinear of any stretch. The bicubic ones are those of torch's
`interpolate(mode="bicubic", antialias=True)` (Keys' cubic, a = -0.5, stretched by the scale when shrinking,
renormalized at the crop's edge), which are Pillow's.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from transforms.views.config import Interpolation

if TYPE_CHECKING:
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
def bicubic_sparse(n_in: int, n_out: int) -> "sparse.csr_matrix":
    """The same weights as a sparse float32 matrix (n_out, n_in)."""
    from scipy import sparse  # Views are rendered on GPUs without it.

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


def resize_crop(
    image: NDArray[np.generic],
    box_yxhw: NDArray[np.floating],
    size_px: int,
    is_flipped: bool,
    out: NDArray[np.float32],
    interpolation: Interpolation = "bicubic",
) -> None:
    """Crop, resize and flip one image on the CPU.

    Args:
        image: (C, H, W), integer or float.
        box_yxhw: Top, left, height and width of the crop in pixels, inside the image; whole if bicubic.
        size_px: Side of the result.
        is_flipped: Whether to mirror left and right.
        out: Receives the result, (C, size_px, size_px) float32.
        interpolation: The kernel.
    """
    if interpolation == "bilinear":
        _sample_crop(image, box_yxhw, is_flipped, out)
        return
    top, left, height, width = (int(n) for n in box_yxhw)
    rows, columns = bicubic_sparse(height, size_px), bicubic_sparse(width, size_px)
    # Channel by channel, what lies between the two products stays in the processor's cache.
    for channel, resized in zip(image, out, strict=True):
        crop = channel[top : top + height, left : left + width].astype(np.float32)
        transposed = columns @ (rows @ crop).T
        resized[:] = transposed[::-1].T if is_flipped else transposed.T


def _sample_crop(
    image: NDArray[np.generic], box_yxhw: NDArray[np.floating], is_flipped: bool, out: NDArray[np.float32]
) -> None:
    """Bilinear crop of one image: two rows, then two columns, for each of the result."""
    top, left, height, width = (float(n) for n in box_yxhw)
    row, row_weights = bilinear_band(top, height, out.shape[1])
    column, column_weights = bilinear_band(left, width, out.shape[2])
    if is_flipped:
        column, column_weights = column[::-1], column_weights[::-1]
    upper, lower = row_weights.astype(np.float32).T[..., None]
    before, after = column_weights.astype(np.float32).T
    # The second tap may lie past the image, with weight zero.
    last_row, last_column = image.shape[1] - 1, image.shape[2] - 1
    rows = image[:, row] * upper + image[:, np.minimum(row + 1, last_row)] * lower
    out[:] = rows[..., column] * before + rows[..., np.minimum(column + 1, last_column)] * after


def upload(values: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy an array to a device without waiting for it.

    From memory that is not pinned the copy would wait until a GPU has done all that is queued there, and what is
    rendered next would begin with an idle GPU.
    """
    host = torch.from_numpy(values)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def line_bands(
    starts: NDArray[np.floating], lengths: NDArray[np.floating], n_out: int, interpolation: Interpolation
) -> list[Band]:
    """Weights that crop and resize many lines, each with its place on the whole line.

    Args:
        starts: Where each crop begins, (N,).
        lengths: Length of each crop in samples, (N,).
        n_out: Length of the result.
        interpolation: The kernel; the bicubic one needs whole starts and lengths.

    Returns:
        N bands.
    """
    lines = zip(starts.tolist(), lengths.tolist(), strict=True)
    if interpolation == "bilinear":
        return [bilinear_band(start, length, n_out) for start, length in lines]
    bands = [(int(start), bicubic_band(int(length), n_out)) for start, length in lines]
    return [(start + first, weights) for start, (first, weights) in bands]


def dense_matrices(bands: list[Band], n_in: int, device: torch.device) -> torch.Tensor:
    """Write bands out as matrices.

    Args:
        bands: Weights of N lines of the same length.
        n_in: Length of the line that they read.
        device: Where the matrices are built.

    Returns:
        (N, n_out, n_in) float32, zero outside each band.
    """
    taps = max(weights.shape[1] for _, weights in bands)
    first = np.stack([first for first, _ in bands])
    n_out = first.shape[1]
    weights = np.zeros((len(bands), n_out, taps), dtype=np.float32)
    for row, (_, band) in zip(weights, bands, strict=True):
        row[:, : band.shape[1]] = band
    index = upload(first, device)[:, :, None] + torch.arange(taps, device=device)
    # Extra columns for the zero weights past the end of the line keep the indices distinct, the scatter deterministic.
    dense = torch.zeros(len(bands), n_out, n_in + taps, device=device)
    return dense.scatter_(2, index, upload(weights, device))[:, :, :n_in]


def resize_batch(
    images: torch.Tensor,
    boxes_yxhw: NDArray[np.floating],
    size_px: int,
    is_flipped: NDArray[np.bool_],
    interpolation: Interpolation = "bicubic",
) -> torch.Tensor:
    """Crop, resize and flip a batch as two batched matrix products: the form for a GPU.

    Args:
        images: (B, C, H, W) float32.
        boxes_yxhw: Top, left, height and width of each crop in pixels, (B, 4); whole if bicubic.
        size_px: Side of the result.
        is_flipped: Whether to mirror each, (B,).
        interpolation: The kernel.

    Returns:
        (B, C, size_px, size_px) float32.
    """
    n_images, n_channels, height, width = images.shape
    device = images.device
    top, left, tall, wide = boxes_yxhw.T
    rows = dense_matrices(line_bands(top, tall, size_px, interpolation), height, device)
    columns = dense_matrices(line_bands(left, wide, size_px, interpolation), width, device)
    mirror = upload(is_flipped, device)[:, None, None]
    columns = torch.where(mirror, columns.flip(1), columns)
    # HU reach into the thousands: bfloat16 would round them to 8 or 16 HU.
    with torch.autocast(device.type, enabled=False):
        narrow = torch.bmm(images.reshape(n_images, n_channels * height, width), columns.transpose(1, 2))
        narrow = narrow.reshape(n_images, n_channels, height, size_px)
        return torch.einsum("bsh,bchx->bcsx", rows, narrow)


def jitter_brightness_contrast(
    views: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor
) -> torch.Tensor:
    """Scale gray values, then stretch them about each view's mean; clip to [0, 1] after each.

    Args:
        views: Gray in [0, 1], (B, C, S, S).
        brightness: Factor per view, (B,).
        contrast: Factor per view, (B,).

    Returns:
        Gray in [0, 1], same shape.
    """
    views = (views * brightness[:, None, None, None]).clamp(0.0, 1.0)
    mean = views.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (views - mean) * contrast[:, None, None, None]).clamp(0.0, 1.0)


def gaussian_blur(views: torch.Tensor, sigma_px: torch.Tensor) -> torch.Tensor:
    """Blur each view with a Gaussian of its own width, renormalized at the edge.

    Args:
        views: (B, C, S, S) float32.
        sigma_px: Standard deviation in pixels per view, (B,); 0 leaves a view as it is.

    Returns:
        Same shape.
    """
    position = torch.arange(views.shape[-1], device=views.device, dtype=views.dtype)
    distance = (position[:, None] - position[None, :])[None] / sigma_px.clamp_min(1e-3)[:, None, None]
    weights = torch.exp(-0.5 * distance.square())
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights[:, None] @ views @ weights[:, None].transpose(-1, -2)
