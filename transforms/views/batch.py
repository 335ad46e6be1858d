"""Random views of triplets: drawn per sample by key, rendered per batch on the device that trains.

`draw_views` decides everything at random (crops, mirrors, windows) from a generator keyed by (seed, step,
sample), so the same step shows the same views for any number of workers, processes or interruptions.
`render_views` is arithmetic: crop, resize, mirror, window, normalize.

The window comes after the resize. Attenuation averages linearly, gray does not: a pixel that holds half bone and
half lung has the mean of their HU, and only then a gray. Clipping last also cuts the overshoot of the bicubic
kernel, so that views lie in [0, 1] exactly. Both forms (sparse per sample on a CPU, two batched matrix products
on a GPU) do the same sum, and agree to 1e-5 on [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from transforms.views.config import N_GLOBAL, Interpolation, ViewConfig
from transforms.views.crops import (
    UNIFORMS_PER_CROP,
    SliceFrames,
    body_share,
    crop_flips,
    place_crops,
)
from transforms.views.keyed import keyed_uniforms, keyed_windows
from transforms.views.resample import (
    gaussian_blur,
    jitter_brightness_contrast,
    resize_batch,
    resize_crop,
    upload,
)
from transforms.window_policy import CHANNEL_RANGES_HU

OUTSIDE_BODY_SHARE = 0.1
"""A view counts as outside the body when less than this share of its area lies in body or lung cells."""


@dataclass(frozen=True, slots=True)
class TripletBatch:
    """B triplets of neighboring slices in HU with the data needed to draw views.

    Attributes:
        triplets_hu: (B, 3, H, W) int16, channels (below, z, above), padded to the largest slice with -1024 HU at
            the bottom and right.
        size_hw: Height and width of each slice before padding, (B, 2) int.
        pixel_mm: Pixel spacing (y, x), (B, 2) float.
        slice_mm: Distance between slice centers, (B,) float.
        body: Grid over each slice, (B, 32, 32) uint8: 0 outside, 1 body, 2 lung.
        sample_keys: Identifies each sample in the random draws, (B,) int64, not negative.
        center_yx_px: A point to center on, as pixel indices, (B, 2) float; NaN where there is none.
        second_hu: Triplets that the second view shows in place of these, of the same volumes.
    """

    triplets_hu: torch.Tensor
    size_hw: torch.Tensor
    pixel_mm: torch.Tensor
    slice_mm: torch.Tensor
    body: torch.Tensor
    sample_keys: torch.Tensor
    center_yx_px: torch.Tensor
    second_hu: torch.Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TripletBatch":
        """Move the pixels; the rest stays on the CPU, where views are drawn."""
        return self._with_pixels(lambda hu: hu.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TripletBatch":
        """Pin the pixels for an asynchronous copy."""
        return self._with_pixels(torch.Tensor.pin_memory)

    def _with_pixels(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "TripletBatch":
        second_hu = None if self.second_hu is None else change(self.second_hu)
        return replace(self, triplets_hu=change(self.triplets_hu), second_hu=second_hu)


@dataclass(frozen=True, slots=True)
class ViewDraws:
    """Every random choice of V views (global first) of B samples.

    Attributes:
        boxes_yxhw: Top, left, height and width of the crops in pixels, (V, B, 4), whole where the kernel is bicubic.
        interpolation: The kernel that the boxes were drawn for.
        is_flipped: Mirrored left to right, (V, B).
        window_hu: Lower and upper edges in true HU, (V, B, 2).
        brightness: Factor, (V, B).
        contrast: Factor, (V, B).
        blur_px: Standard deviation of the blur in pixels of the view, (V, B).
    """

    boxes_yxhw: NDArray[np.float64]
    interpolation: Interpolation
    is_flipped: NDArray[np.bool_]
    window_hu: NDArray[np.float64]
    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    blur_px: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Views:
    """Rendered views, global first where V counts all.

    Attributes:
        global_views: (2, B, 3, S, S) float32, or (2, B, 1, D, S, S) of cubes, normalized, on the device of the voxels.
        local_views: (n_local, B, 3, s, s) float32, or (n_local, B, 1, d, s, s), or None.
        spacing_mm: Sides (z, y, x) of the voxels of each view, (V, B, 3) float32, on the CPU; z of a triplet is the
            distance of its slices.
        mm_per_pixel: Scale of each view (geometric mean of y and x), (V, B) float32, on the CPU.
        outside_body: Less than `OUTSIDE_BODY_SHARE` of the view shows body, (V, B) bool, on the CPU.
        window_hu: Lower and upper edges in true HU, (V, B, 2) float32, on the CPU.
    """

    global_views: torch.Tensor
    local_views: torch.Tensor | None
    spacing_mm: torch.Tensor
    mm_per_pixel: torch.Tensor
    outside_body: torch.Tensor
    window_hu: torch.Tensor


def draw_views(batch_meta: TripletBatch, config: ViewConfig, seed: int, step: int) -> ViewDraws:
    """Draw the views of a batch; each sample's draws depend on (seed, step, its key) and its frame alone.

    Args:
        batch_meta: The samples; pixels are not read.
        config: Settings of the views.
        seed: Seed of the run.
        step: Optimizer update.

    Returns:
        Draws of 2 + n_local views.
    """
    n_views = N_GLOBAL + config.n_local
    keys = batch_meta.sample_keys.tolist()
    crop = keyed_uniforms(keys, seed, step, "crop", (n_views, UNIFORMS_PER_CROP))
    frames = _frames(batch_meta)
    windows = keyed_windows(config.window, keys, seed, step, n_views)
    brightness = contrast = np.ones((n_views, len(keys)))
    blur_px = np.zeros((n_views, len(keys)))
    if any(config.color_jitter) or any(config.gaussian_blur):
        intensity = keyed_uniforms(keys, seed, step, "intensity", (n_views, 3))
        brightness, contrast = (
            1 + strength * (2 * intensity[..., i] - 1) for i, strength in enumerate(config.color_jitter)
        )
        low, high = config.gaussian_blur
        blur_px = low + (high - low) * intensity[..., 2]
    return ViewDraws(
        boxes_yxhw=place_crops(config, crop, N_GLOBAL, frames),
        interpolation=config.interpolation,
        is_flipped=crop_flips(config, crop),
        window_hu=windows,
        brightness=brightness,
        contrast=contrast,
        blur_px=blur_px,
    )


def _frames(batch_meta: TripletBatch) -> SliceFrames:
    return SliceFrames(
        size_hw=batch_meta.size_hw.numpy().astype(np.int64),
        pixel_mm=batch_meta.pixel_mm.numpy().astype(np.float64),
        body=batch_meta.body.numpy(),
        point_yx_px=batch_meta.center_yx_px.numpy().astype(np.float64),
    )


def render_views(batch: TripletBatch, draws: ViewDraws, config: ViewConfig) -> Views:
    """Crop, resize, mirror, window and normalize the drawn views, on the device of the triplets.

    Args:
        batch: The samples.
        draws: From `draw_views` of the same batch and config.
        config: Sizes and normalization.

    Returns:
        The views.
    """
    size_px = np.repeat([config.size_px, config.local_size_px], [N_GLOBAL, config.n_local])
    boxes = draws.boxes_yxhw
    frames = _frames(batch)
    sides_mm = boxes[..., 2:] * frames.pixel_mm
    side_mm = np.sqrt(sides_mm.prod(axis=-1))
    slice_mm = np.broadcast_to(batch.slice_mm.numpy()[:, None], (*side_mm.shape, 1))
    spacing_mm = np.concatenate([slice_mm, sides_mm / size_px[:, None, None]], axis=-1)
    outside_body = body_share(boxes, frames.body, frames.size_hw) < OUTSIDE_BODY_SHARE
    tone = _Tone(draws, config, batch.triplets_hu.device)
    is_cpu = batch.triplets_hu.device.type == "cpu"
    pixels = batch if is_cpu else batch._with_pixels(torch.Tensor.float)
    shown = [pixels.triplets_hu] * len(boxes)
    if pixels.second_hu is not None:
        shown[1] = pixels.second_hu
    render = partial(_render_per_sample if is_cpu else _render_batched, shown, draws, tone)
    return Views(
        global_views=render(slice(0, N_GLOBAL), config.size_px),
        local_views=render(slice(N_GLOBAL, None), config.local_size_px) if config.n_local else None,
        spacing_mm=torch.from_numpy(spacing_mm.astype(np.float32)),
        mm_per_pixel=torch.from_numpy((side_mm / size_px[:, None]).astype(np.float32)),
        outside_body=torch.from_numpy(outside_body),
        window_hu=torch.from_numpy(draws.window_hu.astype(np.float32)),
    )


class _Tone:
    """From resized HU to normalized input: window, intensity arms, mean and standard deviation."""

    def __init__(self, draws: ViewDraws, config: ViewConfig, device: torch.device) -> None:
        def constant(values: NDArray[np.float64] | tuple[float, ...]) -> torch.Tensor:
            return upload(np.array(values, dtype=np.float32, order="C"), device)

        low, high = draws.window_hu[..., None, None, None, :].transpose(5, 0, 1, 2, 3, 4)
        self.has_ranges = config.window.policy == "ranges"
        if self.has_ranges:
            edges = np.broadcast_to(CHANNEL_RANGES_HU / config.window.hu_scale, (*low.shape[:2], 3, 2))
            low, high = edges[..., None, None, :].transpose(5, 0, 1, 2, 3, 4)
        self.low, self.scale = constant(low), constant(1 / (high - low))
        self.mean = constant(config.mean)[:, None, None]
        self.inverse_std = 1 / constant(config.std)[:, None, None]
        self.has_jitter, self.has_blur = any(config.color_jitter), any(config.gaussian_blur)
        self.brightness, self.contrast = constant(draws.brightness), constant(draws.contrast)
        self.blur_px = constant(draws.blur_px)

    def apply_(self, resized_hu: torch.Tensor, view: int, samples: slice) -> None:
        """Turn resized HU of some samples of one view, (B, 3, S, S), into input, in place."""
        at = (view, samples)
        if self.has_ranges:
            resized_hu[:, ::2] = resized_hu[:, 1:2]
        gray = resized_hu.sub_(self.low[at]).mul_(self.scale[at]).clamp_(0.0, 1.0)
        if self.has_jitter:
            gray.copy_(jitter_brightness_contrast(gray, self.brightness[at], self.contrast[at]))
        if self.has_blur:
            gray.copy_(gaussian_blur(gray, self.blur_px[at]))
        gray.sub_(self.mean).mul_(self.inverse_std)


def _render_per_sample(
    shown: Sequence[torch.Tensor], draws: ViewDraws, tone: _Tone, views: slice, size_px: int
) -> torch.Tensor:
    """Render view by view: all steps on one view run while it is in the processor's cache."""
    boxes, is_flipped = draws.boxes_yxhw[views], draws.is_flipped[views]
    n_views, n_samples = is_flipped.shape
    rendered = torch.empty(n_views, n_samples, 3, size_px, size_px)
    out = rendered.numpy()
    for v in range(n_views):
        triplets = shown[views][v].numpy()
        for b in range(n_samples):
            resize_crop(
                triplets[b], boxes[v, b], size_px, bool(is_flipped[v, b]), out[v, b], draws.interpolation
            )
            tone.apply_(rendered[v, b : b + 1], views.start + v, slice(b, b + 1))
    return rendered


def _render_batched(
    shown: Sequence[torch.Tensor], draws: ViewDraws, tone: _Tone, views: slice, size_px: int
) -> torch.Tensor:
    """Render a whole view at a time as batched matrix products."""
    boxes, is_flipped = draws.boxes_yxhw[views], draws.is_flipped[views]
    rendered = shown[0].new_empty(len(boxes), len(shown[0]), 3, size_px, size_px)
    for v in range(len(boxes)):
        rendered[v] = resize_batch(shown[views][v], boxes[v], size_px, is_flipped[v], draws.interpolation)
        tone.apply_(rendered[v], views.start + v, slice(None))
    return rendered
