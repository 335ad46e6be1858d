"""Resizing of a crop, as one matrix for rows and one for columns.

On a GPU a whole batch is two dense batched products; on a CPU the matrices are kept sparse, where 2 to 10 of some
hundred weights are not zero.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from transforms.views.config import Interpolation
from transforms.views.line_weights import Band, bicubic_band, bicubic_sparse, bilinear_band


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
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


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
