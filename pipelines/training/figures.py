"""Figures of a training run: curves, and the tokens of a few fixed slices, comparable from step to step."""

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional as F

from models.backbone import Backbone, class_attention
from pipelines.runtime.image_axes import image_axes
from pipelines.tracking.run import Run
from pipelines.training.planes import Shown
from transforms.views.config import ViewConfig

_HEADS_SHOWN = 6
_GRAY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
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
        images: A few normalized triplets (B, 3, S, S) or cubes (B, 1, D, S, S), on the backbone's device.
        views: How they were normalized.
        class_tokens: Both views of many slices, (2, n, D); with n = 0 the map is left out.
        patient_ids: Patient of each of these slices, (n,).
        spacing_mm: Of the views, (B, 3), for backbones that take it and for proportions.

    Yields:
        Key and figure: class-token attention, PCA and Gram matrix of patch tokens, map of class tokens.
    """
    was_training = backbone.training
    backbone.eval()
    patch_tokens = backbone(images, spacing_mm=spacing_mm).patch_tokens.float().cpu()
    attention = class_attention(backbone, images, spacing_mm)
    backbone.train(was_training)
    shown = Shown.of(images, views, backbone.grid_of(images.shape), spacing_mm)
    if attention is not None:
        yield "tokens/attention", attention_figure(shown, attention.float().cpu())
    yield "tokens/pca", pca_figure(shown, patch_tokens)
    yield "tokens/gram", gram_figure(shown, patch_tokens)
    if class_tokens.size:
        yield "tokens/class_map", class_map_figure(class_tokens, patient_ids)


def attention_figure(shown: Shown, attention: torch.Tensor) -> Figure:
    """Show views beside the attention of their class token: mean over heads, then some heads; attention (B, h, N).

    Each map has its own colors; its range, over all patches of the view, is given in multiples of uniform attention,
    1 / N. Cubes take three rows, one a plane.
    """
    maps = torch.cat([attention.mean(1, keepdim=True), attention[:, :_HEADS_SHOWN]], dim=1)
    maps = maps * attention.shape[-1]
    names = ["mean", *(f"head {head + 1}" for head in range(maps.shape[1] - 1))]
    lines = [(view, plane) for view in range(len(shown)) for plane in range(len(shown.planes(view)))]
    figure, axes = _grid(len(lines), 1 + len(names))
    for line, (view, plane) in zip(axes, lines, strict=True):
        on_patches = f"{float(attention[view].sum(-1).mean()):.0%} on patches"
        shown.planes(view)[plane].draw(line[0], on_patches, **_GRAY)
        for axis, name, one in zip(line[1:], names, maps[view], strict=True):
            shown.maps(view, one)[plane].draw(axis, cmap="viridis")
            axis.set_title(f"{name}: {float(one.min()):.2g} .. {float(one.max()):.2g} x uniform", fontsize=7)
    return figure


def pca_figure(shown: Shown, patch_tokens: torch.Tensor) -> Figure:
    """Show views beside the first three components of all their patch tokens, (B, N, D), as red, green and blue."""
    scores, shares = principal_components(patch_tokens.flatten(0, 1), 3)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]), dim=0)
    colors = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    colors = colors.view(*patch_tokens.shape[:2], -1)
    figure, axes = _grid(len(shown), 2 * len(shown.planes(0)))
    for view, line in enumerate(axes):
        both = zip(shown.planes(view), shown.maps(view, colors[view]), line[::2], line[1::2], strict=True)
        for plane, color, left, right in both:
            plane.draw(left, **_GRAY)
            color.draw(right)
    axes[0, 1].set_title("PCA, variance " + ", ".join(f"{share:.0%}" for share in shares), fontsize=7)
    return figure


def gram_figure(shown: Shown, patch_tokens: torch.Tensor) -> Figure:
    """Show views beside the cosine Gram matrix of their patch tokens, (B, N, D)."""
    unit = F.normalize(patch_tokens, dim=-1)
    gram = unit @ unit.transpose(1, 2)
    figure, axes = _grid(len(shown), 1 + len(shown.planes(0)))
    for view, line in enumerate(axes):
        for plane, axis in zip(shown.planes(view), line, strict=False):
            plane.draw(axis, **_GRAY)
        drawn = line[-1].imshow(gram[view].numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        line[-1].set_title(f"cosine of patches, mean {float(gram[view].mean()):.2f}", fontsize=7)
    figure.colorbar(drawn, ax=axes[:, -1].tolist(), shrink=0.6)
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
