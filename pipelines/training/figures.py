"""Figures of the tokens of a few fixed slices, comparable from step to step."""

from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional as F

from models.backbone import Backbone, class_attention
from pipelines.runtime.image_axes import image_axes
from pipelines.runtime.plot_style import new_figure, stroke
from pipelines.training.planes import Shown
from transforms.refusal import number_of
from transforms.views.config import ViewConfig

_HEADS_SHOWN = 6
_MOST_RANKED = 2**24  # torch ranks no more
_MOST_MAPPED = 128
"""Slices of the map of class tokens: the lines of a thousand hide each other."""
_MAP_TOP = 0.995
"""Quantile of all attention that the scale ends at; what is above has its last color."""


@torch.no_grad()
def token_figures(
    backbone: Backbone,
    images: torch.Tensor,
    views: ViewConfig,
    class_tokens: NDArray[np.float32],
    patient_ids: NDArray[np.str_],
    spacing_mm: torch.Tensor | None = None,
    directions: NDArray[np.float64] | None = None,
    window_hu: torch.Tensor | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Draw the tokens of a backbone for some views.

    Args:
        backbone: Run in evaluation mode; its mode is restored.
        images: A few normalized triplets (B, 3, S, S) or cubes (B, 1, D, S, S), on the backbone's device.
        views: How they were normalized.
        class_tokens: Both views of many slices, (2, n, D); with n = 0 the map is left out.
        patient_ids: Patient of each of these slices, (n,).
        spacing_mm: Of the views, (B, 3), for backbones that take it, and for proportions and scale bars.
        directions: Of the axes (z, y, x) of each view in the patient, RAS, (B, 3, 3), for the letters of its sides.
        window_hu: Lower and upper edges of each, (B, 2).

    Yields:
        Key and figure: class-token attention, PCA and Gram matrix of patch tokens, map of class tokens.
    """
    was_training = backbone.training
    backbone.eval()
    patch_tokens = backbone(images, spacing_mm=spacing_mm).patch_tokens.float().cpu()
    attention = class_attention(backbone, images, spacing_mm)
    backbone.train(was_training)
    shown = Shown.of(images, views, backbone.grid_of(images.shape), spacing_mm, directions, window_hu)
    if attention is not None:
        yield "tokens/attention", attention_figure(shown, attention.float().cpu())
    yield "tokens/pca", pca_figure(shown, patch_tokens)
    yield "tokens/gram", gram_figure(shown, patch_tokens)
    if class_tokens.size:
        yield "tokens/class_map", class_map_figure(class_tokens, patient_ids)


def attention_figure(shown: Shown, attention: torch.Tensor) -> Figure:
    """Show views, and over them the attention of their class token, (B, h, N): mean over heads, then some heads.

    All maps have one scale, in multiples of uniform attention, 1 / N; the range of each, over all patches of the view,
    is its title. Cubes take three rows, one a plane.
    """
    maps = torch.cat([attention.mean(1, keepdim=True), attention[:, :_HEADS_SHOWN]], dim=1)
    maps = maps * attention.shape[-1]
    names = ["mean", *(f"head {head + 1}" for head in range(maps.shape[1] - 1))]
    top = max(float(torch.quantile(maps.flatten()[:_MOST_RANKED], _MAP_TOP)), 1e-6)
    lines = [(view, plane) for view in range(len(shown)) for plane in range(len(shown.planes(view)))]
    figure, axes = _grid(
        len(lines), 1 + len(names), f"Attention of the class token, {number_of(len(shown), 'view')}"
    )
    for line, (view, plane) in zip(axes, lines, strict=True):
        on_patches = f"{float(attention[view].sum(-1).mean()):.0%} on patches"
        shown.planes(view)[plane].draw_ct(line[0], on_patches)
        for axis, name, one in zip(line[1:], names, maps[view], strict=True):
            shown.planes(view)[plane].draw_ct(axis)
            over = shown.maps(view, one)[plane]
            strength = np.clip(over.pixels / top, 0, 1)
            # Little attention is nearly transparent: the anatomy is seen, and where the network looks covers it.
            drawn = over.draw(axis, cmap="inferno", vmin=0, vmax=top, alpha=0.15 + 0.6 * strength)
            axis.set_title(
                f"{name}: {float(one.min()):.2g} .. {float(one.max()):.2g} x uniform", fontsize=5.5
            )
    bar = figure.colorbar(
        ScalarMappable(drawn.norm, drawn.cmap), ax=axes.ravel().tolist(), shrink=0.5, extend="max"
    )
    bar.set_label("attention, multiples of uniform (1 / patches)")
    return figure


def pca_figure(shown: Shown, patch_tokens: torch.Tensor) -> Figure:
    """Show views, and over them the first three components of all patch tokens, (B, N, D), as red, green and blue."""
    scores, shares = principal_components(patch_tokens.flatten(0, 1), 3)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]), dim=0)
    colors = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    colors = colors.view(*patch_tokens.shape[:2], -1)
    variance = ", ".join(f"{share:.0%}" for share in shares)
    title = f"PCA of patch tokens, {number_of(len(shown), 'view')}; red, green, blue: variance {variance}"
    figure, axes = _grid(len(shown), 2 * len(shown.planes(0)), title)
    for view, line in enumerate(axes):
        both = zip(shown.planes(view), shown.maps(view, colors[view]), line[::2], line[1::2], strict=True)
        for plane, color, left, right in both:
            plane.draw_ct(left)
            plane.draw_ct(right)
            color.draw(right, alpha=0.5)
    return figure


def gram_figure(shown: Shown, patch_tokens: torch.Tensor) -> Figure:
    """Show views beside the cosine Gram matrix of their patch tokens, (B, N, D), in a scale that a gray print keeps."""
    unit = F.normalize(patch_tokens, dim=-1)
    gram = unit @ unit.transpose(1, 2)
    title = f"Cosine of patch tokens, {number_of(len(shown), 'view')}"
    figure, axes = _grid(len(shown), 1 + len(shown.planes(0)), title)
    for view, line in enumerate(axes):
        for plane, axis in zip(shown.planes(view), line, strict=False):
            plane.draw_ct(axis)
        drawn = line[-1].imshow(gram[view].numpy(), cmap="cividis", vmin=-1, vmax=1)
        line[-1].set_title(f"all pairs, mean {float(gram[view].mean()):.2f}", fontsize=6.5)
    figure.colorbar(drawn, ax=axes[:, -1].tolist(), shrink=0.6, label="cosine of two patches")
    return figure


def class_map_figure(class_tokens: NDArray[np.float32], patient_ids: NDArray[np.str_]) -> Figure:
    """Show the class tokens of two views of each slice, (2, n, D), in their first two principal components.

    One color per patient. A line joins the two views of a slice: retrieval is good where lines are short and points of
    different slices are far apart.
    """
    scores, shares = principal_components(torch.from_numpy(class_tokens).flatten(0, 1), 2)
    points, given = scores.view(2, -1, 2).numpy(), len(patient_ids)
    drawn = np.linspace(0, given - 1, min(given, _MOST_MAPPED)).astype(np.int64)
    points, (patients, number) = points[:, drawn], np.unique(patient_ids[drawn], return_inverse=True)
    few = f"{len(drawn)} of " if len(drawn) < given else ""
    n = f"{few}{number_of(given, 'slice')}, {number_of(len(patients), 'patient')}"
    figure = new_figure(5.2, 4.6, f"Class tokens of two views of {n}")
    axis = figure.subplots()
    for i, patient in enumerate(number):
        own = stroke(int(patient))
        axis.plot(*points[:, i].T, color=own.color, linewidth=0.4, alpha=0.5)
        axis.scatter(points[:, i, 0], points[:, i, 1], color=own.color, s=9, marker=own.marker, linewidth=0)
    axis.set(title="one color and marker a patient, in turn; a line joins two views of a slice")
    axis.set_xlabel(f"principal component 1 ({shares[0]:.0%} of variance)")
    axis.set_ylabel(f"principal component 2 ({shares[1]:.0%} of variance)")
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


def _grid(rows: int, columns: int, title: str) -> tuple[Figure, NDArray[np.object_]]:
    figure = new_figure(1.35 * columns + 0.6, 1.5 * rows + 0.5, title)
    axes = image_axes(figure, rows, columns)
    return figure, axes
