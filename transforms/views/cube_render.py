"""From raw int16 boxes to normalized cubes: one matrix per axis, then mirror, window and normalization.

The kernel of every axis is a triangle, stretched to the voxel of the cube where that is the larger one: linear
interpolation, antialiased. Each row of a matrix sums to 1. Beyond the box, which ends early only at the edge of the
volume or at a gap, its last voxel is repeated. On a CPU each cube is rendered from its own box; on a GPU the boxes of
one view are padded and rendered together. Both do the same sum, and agree to 1e-5 on [0, 1].
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from transforms.views.batch import OUTSIDE_BODY_SHARE, Views
from transforms.views.config import N_GLOBAL, ViewConfig
from transforms.views.cubes import CubeDraws, CubePlaces
from transforms.views.resample import upload

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CubeBatch:
    """The raw boxes of V cubes of B samples.

    Attributes:
        voxels_hu: The boxes one behind the other, all samples of the first view first, flat int16 HU.
        body_share: Share of each cube's middle slice that lies in body or lung, (V, B). No tensor: between processes
            each of those costs a file.
    """

    voxels_hu: torch.Tensor
    body_share: NDArray[np.float64]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CubeBatch":
        """Move the voxels; the rest stays on the CPU."""
        return replace(self, voxels_hu=self.voxels_hu.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "CubeBatch":
        """Pin the voxels for an asynchronous copy."""
        return replace(self, voxels_hu=self.voxels_hu.pin_memory())


def line_weights(
    start: float, length: float, n_out: int, first: int, end: int, is_flipped: bool = False
) -> Floats32:
    """Weights that sample `n_out` places of a line, from the voxels `first` to `end - 1` of it.

    Args:
        start: Where the stretch begins, in voxel edges.
        length: Its length in voxels.
        n_out: Samples.
        first: First voxel that may be read.
        end: One past the last one.
        is_flipped: Whether to sample from the far end.

    Returns:
        (n_out, end - first). What the kernel weighs beyond is added to the outermost voxel.
    """
    step = length / n_out
    reach = max(step, 1.0)
    places = start + step * (np.arange(n_out) + 0.5) - 0.5
    low = min(first, int(np.floor(places[0] - reach)))
    high = max(end, int(np.ceil(places[-1] + reach)) + 1)
    weights = np.maximum(1.0 - np.abs(np.arange(low, high) - places[:, None]) / reach, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    inside = weights[:, first - low : end - low].copy()
    inside[:, 0] += weights[:, : first - low].sum(axis=1)
    inside[:, -1] += weights[:, end - low :].sum(axis=1)
    return (inside[::-1] if is_flipped else inside).astype(np.float32)


def cube_weights(places: CubePlaces, view: int, sample: int, shape: tuple[int, int, int]) -> list[Floats32]:
    """The matrices (z, y, x) of one cube, mirrored in x where it is."""
    at = (view, sample)
    starts, lengths, read = places.start_zyx[at], places.length_zyx[at], places.read_zyx[at]
    mirrored = (False, False, bool(places.is_flipped[at]))
    axes = zip(starts.tolist(), lengths.tolist(), shape, *read.T.tolist(), mirrored, strict=True)
    return [line_weights(*axis) for axis in axes]


def resize_box(box_hu: NDArray[np.generic], weights: list[Floats32], out: Floats32) -> None:
    """Resample one box (z, y, x) by its three matrices into `out`, (D, S, S) float32."""
    along_z, along_y, along_x = weights
    box = along_y @ (box_hu.astype(np.float32) @ along_x.T)
    np.matmul(along_z, box.reshape(len(box), -1), out=out.reshape(len(out), -1))


def render_cubes(batch: CubeBatch, draws: CubeDraws, config: ViewConfig) -> Views:
    """Resample, mirror, window and normalize the drawn cubes, on the device of the voxels.

    Args:
        batch: The raw boxes.
        draws: From `draw_cubes` of the same samples and config.
        config: Sizes and normalization.

    Returns:
        The views.
    """
    places, shapes = draws.places, config.view_shapes()
    boxes = list(_boxes(batch.voxels_hu, places))
    gray = _Gray(draws, config, batch.voxels_hu.device)
    render = _render_each if batch.voxels_hu.device.type == "cpu" else _render_together

    def group(views: range) -> torch.Tensor:
        shape = shapes[views.start]
        cubes = batch.voxels_hu.new_empty(len(views), len(boxes[0]), 1, *shape, dtype=torch.float32)
        for view, own in zip(views, cubes, strict=True):
            weights = [cube_weights(places, view, b, shape) for b in range(len(own))]
            render(boxes[view], weights, own[:, 0], gray, view)
        return cubes

    mm_per_pixel = np.sqrt(places.spacing_mm[..., 1] * places.spacing_mm[..., 2])
    return Views(
        global_views=group(range(N_GLOBAL)),
        local_views=group(range(N_GLOBAL, len(shapes))) if config.n_local else None,
        spacing_mm=torch.from_numpy(places.spacing_mm.astype(np.float32)),
        mm_per_pixel=torch.from_numpy(mm_per_pixel.astype(np.float32)),
        outside_body=torch.from_numpy(batch.body_share < OUTSIDE_BODY_SHARE),
        window_hu=torch.from_numpy(draws.window_hu.astype(np.float32)),
    )


class _Gray:
    """From resampled HU to normalized input: window, mean and standard deviation, as one product, one sum, two ends."""

    def __init__(self, draws: CubeDraws, config: ViewConfig, device: torch.device) -> None:
        (mean,), (std,) = config.channel_mean, config.channel_std
        low, high = np.moveaxis(draws.window_hu, -1, 0)
        scale = 1 / ((high - low) * std)
        self.scale, self.shift = (
            upload(values.astype(np.float32), device)[..., None, None, None]
            for values in (scale, -low * scale - mean / std)
        )
        self.ends = -mean / std, (1 - mean) / std

    def apply_(self, cubes_hu: torch.Tensor, view: int, samples: slice) -> None:
        """Turn resampled HU of some samples of one view, (B, D, S, S), into input, in place."""
        cubes_hu.mul_(self.scale[view, samples]).add_(self.shift[view, samples]).clamp_(*self.ends)


def _boxes(voxels_hu: torch.Tensor, places: CubePlaces) -> Iterator[list[torch.Tensor]]:
    """The boxes (z, y, x) of each view's samples, as parts of the flat voxels."""
    shapes = np.diff(places.read_zyx, axis=-1)[..., 0]
    ends = shapes.prod(axis=-1).cumsum().reshape(shapes.shape[:2])
    begin = 0
    for own_shapes, own_ends in zip(shapes.tolist(), ends.tolist(), strict=True):
        boxes = []
        for shape, end in zip(own_shapes, own_ends, strict=True):
            boxes.append(voxels_hu[begin:end].view(shape))
            begin = end
        yield boxes


def _render_each(
    boxes: list[torch.Tensor], weights: list[list[Floats32]], out: torch.Tensor, gray: _Gray, view: int
) -> None:
    """Render cube by cube: all steps on one run while it is in the processor's cache."""
    for b, (box, own) in enumerate(zip(boxes, weights, strict=True)):
        resize_box(box.numpy(), own, out[b].numpy())
        gray.apply_(out[b : b + 1], view, slice(b, b + 1))


def _render_together(
    boxes: list[torch.Tensor], weights: list[list[Floats32]], out: torch.Tensor, gray: _Gray, view: int
) -> None:
    """Render all samples of a view as batched matrix products."""
    out.copy_(resize_together(boxes, weights))
    gray.apply_(out, view, slice(None))


def resize_together(boxes: list[torch.Tensor], weights: list[list[Floats32]]) -> torch.Tensor:
    """Resample boxes of unequal size as batched matrix products: the form for a GPU.

    Args:
        boxes: B raw boxes (z, y, x).
        weights: Their matrices (z, y, x).

    Returns:
        (B, D, S, S) float32.
    """
    device = boxes[0].device
    largest = [max(box.shape[axis] for box in boxes) for axis in range(3)]
    padded = torch.zeros(len(boxes), *largest, device=device)
    for row, box in zip(padded, boxes, strict=True):
        z, y, x = box.shape
        row[:z, :y, :x] = box
    matrices = []
    for axis, length in enumerate(largest):
        dense = np.zeros((len(boxes), len(weights[0][axis]), length), dtype=np.float32)
        for row, own in zip(dense, weights, strict=True):
            row[:, : own[axis].shape[1]] = own[axis]
        matrices.append(upload(dense, device))
    along_z, along_y, along_x = matrices
    # HU reach into the thousands: bfloat16 would round them to 8 or 16 HU.
    with torch.autocast(device.type, enabled=False):
        narrow = torch.bmm(padded.flatten(1, 2), along_x.transpose(1, 2))
        flat = torch.matmul(along_y[:, None], narrow.view(*padded.shape[:3], -1)).flatten(2)
        return torch.bmm(along_z, flat).view(len(boxes), *(len(axis) for axis in weights[0]))
