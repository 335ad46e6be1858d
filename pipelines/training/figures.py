"""Figures of a training run: views, curves, and the tokens of a few fixed slices, comparable from step to step."""

from collections.abc import Hashable, Iterator
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from monai.transforms.compose import Compose
from monai.transforms.utility.dictionary import CopyItemsd
from numpy.typing import NDArray
from torch.nn import functional as F

from models.backbone import Backbone, class_attention
from pipelines.cohort.meta_volume import mapped_volume
from pipelines.cohort.slices import SliceIndex
from pipelines.runtime.image_axes import image_axes
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan
from transforms.hounsfield import RandWindowHUd, WindowHU
from transforms.triplet import SliceTripletd
from transforms.views.batch import draw_views
from transforms.views.config import ViewConfig
from transforms.views.keyed import sample_state
from transforms.views.resample import gaussian_blur, jitter_brightness_contrast
from transforms.views.view_crop import RandViewCropd
from transforms.window_policy import CLINICAL_LUNG_HU

matplotlib.use("Agg")

Gray = NDArray[np.float32]
_HEADS_SHOWN = 6
_VIEWS = ("first", "second")
_CURVES = {
    "loss": ("loss/total", "loss/dino", "loss/simclr", "loss/mae", "loss/gram", "loss/koleo", "loss/ibot"),
    "entropy": ("teacher/entropy", "student/entropy", "teacher/gain"),
    "retrieval": (
        "retrieval/top1",
        "retrieval/top1_ci_low",
        "retrieval/top1_ci_high",
        "retrieval/student_top1",
    ),
}
_UNITS = {"loss": "loss (nats for DINO)", "entropy": "nats", "retrieval": "top-1"}


def view_sheet(
    index: SliceIndex, plan: BatchPlan, config: PretrainConfig, step: int, count: int = 6
) -> Figure:
    """Show slices of a step's batch beside the two views that the network gets, with pixel size and window."""
    rows = plan.rows(step * config.accumulation)[:count]
    figure = Figure(figsize=(7.5, 2.5 * len(rows)), layout="constrained")
    axes = image_axes(figure, len(rows), 3)
    for (first, *others), row in zip(axes, rows.tolist(), strict=True):
        shown = slice_and_views(index, row, config.views, config.seed, step)
        first.imshow(WindowHU(*CLINICAL_LUNG_HU)(shown["image"][1]).numpy(), cmap="gray", vmin=0, vmax=1)
        first.set_title("slice, {:.0f} .. {:.0f} HU".format(*CLINICAL_LUNG_HU), fontsize=8)
        for axis, view in zip(others, _VIEWS, strict=True):
            axis.imshow(shown[view][1].numpy(), cmap="gray", vmin=0, vmax=1)
            low, high = shown[f"{view}_window_hu"]
            title = f"{shown[f'{view}_mm_per_pixel']:.2f} mm/px, {low:.0f} .. {high:.0f} HU"
            axis.set_title(title, fontsize=8)
    return figure


def slice_and_views(
    index: SliceIndex, row: int, config: ViewConfig, seed: int, step: int
) -> dict[Hashable, Any]:
    """Cut one triplet and its two global views with MONAI transforms, with the random generators of the batched path.

    Returns:
        `image`: the triplet (3, H, W) in HU; `first` and `second`: gray in [0, 1], (3, S, S), each with
        `<view>_mm_per_pixel` and `<view>_window_hu`.
    """
    batch = index.read([row])
    (series,) = index.cohort.series[
        index.cohort.series["volume_id"] == index.volume_ids[index.volume[row]]
    ].to_dict("records")
    crop = RandViewCropd(_VIEWS, config, body_key="body", point_key="point")
    window = RandWindowHUd(_VIEWS, config.window)
    chain = Compose([SliceTripletd("image"), CopyItemsd("image", times=2, names=_VIEWS), crop, window])
    key = int(batch.sample_keys[0])  # after Compose, which seeds its transforms
    crop.set_random_state(state=sample_state(seed, step, key, "crop"))
    window.set_random_state(state=sample_state(seed, step, key, "window"))
    shown: dict[Hashable, Any] = chain(
        {
            "image": mapped_volume(index.cohort, series),
            "z": int(index.z[row]),
            "body": batch.body[0].numpy(),
            "point": batch.center_yx_px[0].numpy(),
        }
    )
    draws = draw_views(batch, config, seed, step)
    for number, view in enumerate(_VIEWS):
        gray = shown[view].as_tensor()[None]
        if any(config.color_jitter):
            brightness, contrast = (
                torch.from_numpy(drawn[number].astype(np.float32))
                for drawn in (draws.brightness, draws.contrast)
            )
            gray = jitter_brightness_contrast(gray, brightness, contrast)
        if any(config.gaussian_blur):
            gray = gaussian_blur(gray, torch.from_numpy(draws.blur_px[number].astype(np.float32)))
        shown[view] = gray[0]
    return shown


def curves(run: Run) -> Iterator[tuple[Figure, str]]:
    """Draw the run's loss, entropy and retrieval curves from its logged metrics."""
    for name, keys in _CURVES.items():
        drawn = {key: points for key in keys if (points := run.history(key))}
        if not drawn:
            continue
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        for key, points in drawn.items():
            axis.plot([step for step, _ in points], [value for _, value in points], label=key)
        axis.set_xlabel("step (optimizer updates)")
        axis.set_ylabel(_UNITS[name])
        axis.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
        yield figure, name


@torch.no_grad()
def token_figures(
    backbone: Backbone,
    images: torch.Tensor,
    views: ViewConfig,
    class_tokens: NDArray[np.float32],
    patient_ids: NDArray[np.str_],
    spacing_mm: torch.Tensor | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Draw the tokens of a backbone for some views.

    Args:
        backbone: Run in evaluation mode; its mode is restored.
        images: A few normalized views, (B, 3, S, S), on the backbone's device.
        views: How they were normalized.
        class_tokens: Both views of many slices, (2, n, D); with n = 0 the map is left out.
        patient_ids: Patient of each of these slices, (n,).
        spacing_mm: Of the views, (B, 3), for backbones that take it.

    Yields:
        Key and figure: class-token attention, PCA and Gram matrix of patch tokens, map of class tokens.
    """
    was_training = backbone.training
    backbone.eval()
    patch_tokens = backbone(images, spacing_mm=spacing_mm).patch_tokens.float().cpu()
    attention = class_attention(backbone, images, spacing_mm)
    backbone.train(was_training)
    mean, std = np.array(views.mean)[:, None, None], np.array(views.std)[:, None, None]
    gray = (images.float().cpu().numpy() * std + mean).clip(0, 1)[:, 1].astype(np.float32)
    if attention is not None:
        yield "tokens/attention", attention_figure(gray, attention.float().cpu())
    yield "tokens/pca", pca_figure(gray, patch_tokens)
    yield "tokens/gram", gram_figure(gray, patch_tokens)
    if class_tokens.size:
        yield "tokens/class_map", class_map_figure(class_tokens, patient_ids)


def attention_figure(gray: Gray, attention: torch.Tensor) -> Figure:
    """Show views beside the attention of their class token: mean over heads, then some heads; attention (B, h, N).

    Each map has its own colors; its range is given in multiples of uniform attention, 1 / N.
    """
    n_patches = attention.shape[-1]
    side = round(n_patches**0.5)
    maps = torch.cat([attention.mean(1, keepdim=True), attention[:, :_HEADS_SHOWN]], dim=1) * n_patches
    maps = maps.view(*maps.shape[:2], side, side)
    names = ["mean", *(f"head {head + 1}" for head in range(maps.shape[1] - 1))]
    figure, axes = _grid(len(gray), 1 + len(names))
    for row, view in enumerate(gray):
        axes[row, 0].imshow(view, cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_title(f"{float(attention[row].sum(-1).mean()):.0%} on patches", fontsize=7)
        for axis, name, one in zip(axes[row, 1:], names, maps[row], strict=True):
            axis.imshow(one.numpy(), cmap="viridis")
            axis.set_title(f"{name}: {float(one.min()):.2g} .. {float(one.max()):.2g} x uniform", fontsize=7)
    return figure


def pca_figure(gray: Gray, patch_tokens: torch.Tensor) -> Figure:
    """Show views beside the first three components of all their patch tokens, (B, N, D), as red, green and blue."""
    side = round(patch_tokens.shape[1] ** 0.5)
    scores, shares = principal_components(patch_tokens.flatten(0, 1), 3)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]), dim=0)
    colors = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    colors = colors.view(len(gray), side, side, -1)
    figure, axes = _grid(len(gray), 2)
    for row, view in enumerate(gray):
        axes[row, 0].imshow(view, cmap="gray", vmin=0, vmax=1)
        axes[row, 1].imshow(colors[row].numpy())
    axes[0, 1].set_title("PCA, variance " + ", ".join(f"{share:.0%}" for share in shares), fontsize=7)
    return figure


def gram_figure(gray: Gray, patch_tokens: torch.Tensor) -> Figure:
    """Show views beside the cosine Gram matrix of their patch tokens, (B, N, D)."""
    unit = F.normalize(patch_tokens, dim=-1)
    gram = unit @ unit.transpose(1, 2)
    figure, axes = _grid(len(gray), 2)
    for row, view in enumerate(gray):
        axes[row, 0].imshow(view, cmap="gray", vmin=0, vmax=1)
        drawn = axes[row, 1].imshow(gram[row].numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axes[row, 1].set_title(f"cosine of patches, mean {float(gram[row].mean()):.2f}", fontsize=7)
    figure.colorbar(drawn, ax=axes[:, 1].tolist(), shrink=0.6)
    return figure


def class_map_figure(class_tokens: NDArray[np.float32], patient_ids: NDArray[np.str_]) -> Figure:
    """Show the class tokens of two views of each slice, (2, n, D), in their first two principal components.

    One color per patient. A line joins the two views of a slice: retrieval is good where lines are short and points of
    different slices are far apart.
    """
    scores, shares = principal_components(torch.from_numpy(class_tokens).flatten(0, 1), 2)
    points = scores.view(2, -1, 2).numpy()
    patients, number = np.unique(patient_ids, return_inverse=True)
    palette = matplotlib.colormaps["tab10" if len(patients) <= 10 else "tab20"]
    colors = palette(number % palette.N)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    for i, color in enumerate(colors):
        axis.plot(*points[:, i].T, color=color, linewidth=0.4, alpha=0.5)
    for view, marker in enumerate("o^"):
        axis.scatter(points[view, :, 0], points[view, :, 1], c=colors, s=9, marker=marker)
    axis.set_title(
        f"class tokens, two views of {points.shape[1]} slices of {len(patients)} patients", fontsize=8
    )
    axis.set_xlabel(f"component 1 ({shares[0]:.0%} of variance)", fontsize=8)
    axis.set_ylabel(f"component 2 ({shares[1]:.0%} of variance)", fontsize=8)
    return figure


def principal_components(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, list[float]]:
    """Project rows (n, D), D >= count, on their first principal components.

    The largest loading of each component is positive, so that colors stay the same from step to step.

    Returns:
        Scores (n, count), and the share of the variance of each component.
    """
    centered = (rows - rows.mean(0)).double()
    variances, axes = torch.linalg.eigh(centered.T @ centered)
    variances, axes = variances.flip(0).clamp_min(0), axes.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    scores = centered @ (axes * torch.where(largest < 0, -1.0, 1.0))
    shares = variances[:count] / variances.sum().clamp_min(1e-12)
    return scores.float(), shares.tolist()


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[np.object_]]:
    figure = Figure(figsize=(1.6 * columns + 0.4, 1.75 * rows), layout="constrained")
    axes = image_axes(figure, rows, columns)
    return figure, axes
