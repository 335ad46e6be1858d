"""Masked autoencoding: pixels of hidden patches from the patches that are shown."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import MaeTarget
from models.losses.precision import wide


def patchify(images: Tensor, patch_px: int, patch_depth_px: int = 0) -> Tensor:
    """Cut images (B, 3, S, S), or cubes (B, 1, D, S, S), into flat patches (B, N, voxels), layers first, then rows."""
    if images.ndim == 5:
        cut = images[:, 0]
        for axis, side in enumerate((patch_depth_px, patch_px, patch_px), start=1):
            cut = cut.unfold(axis, side, side)
        return cut.flatten(4).flatten(1, 3)
    flat = F.unfold(images, kernel_size=patch_px, stride=patch_px)
    return flat.transpose(1, 2)


def mae_target(images: Tensor, patch_px: int, kind: MaeTarget, patch_depth_px: int = 0) -> Tensor:
    """Return what hidden patches are predicted as, (B, N, voxels of a patch), of triplets or cubes.

    `patch` divides each patch by its own deviation, after subtracting its own mean (He et al. 2022, arXiv:2111.06377,
    section 3), so that its attenuation is lost. `hu` keeps the values, which are linear in HU inside a fixed window.
    """
    target = patchify(wide(images), patch_px, patch_depth_px)
    if kind == "hu":
        return target
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    return (target - mean) / (variance + 1e-6).sqrt()


def mae_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error on hidden patches.

    Args:
        predicted: (B, N, voxels of a patch).
        target: Of the same shape.
        mask: (B, N) bool, true where the patch was hidden.

    Returns:
        Scalar.
    """
    error = (wide(predicted) - target).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp_min(1)


@torch.no_grad()
def mae_gain(loss: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the share of the variance inside hidden patches that is explained.

    0 for a prediction of each patch's mean (and where all patches are constant), 1 for the truth; negative below that.
    A window that clips makes constant patches, whose mean is the truth: they are no gain.
    """
    of_mean = mae_loss(target.mean(-1, keepdim=True), target, mask)
    return torch.where(of_mean > 0, 1.0 - loss / of_mean, torch.zeros_like(loss))


class MaskedDecoder(nn.Module):
    """A small transformer from encoded visible patches to the pixels of all."""

    def __init__(self, embed_dim: int, patches: int, voxels: int, width: int = 96, depth: int = 2) -> None:
        """Build for a fixed grid of `patches` with so many voxels each, of all channels."""
        super().__init__()
        self.enter = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, patches, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, num_heads=4, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, voxels)

    def forward(self, visible: Tensor, keep: Tensor, class_token: Tensor | None = None) -> Tensor:
        """Map tokens of shown patches (B, M, D), which lie at `keep` (B, M), to pixels (B, N, voxels).

        A class token (B, D) is added at every place, so that it learns what all patches of an image share.
        """
        shown = self.enter(visible)
        batch, patches, width = visible.shape[0], self.positions.shape[1], shown.shape[-1]
        canvas = self.mask_token.to(shown.dtype).expand(batch, patches, width)
        canvas = canvas.scatter(1, keep.unsqueeze(-1).expand(-1, -1, width), shown)
        if class_token is not None:
            canvas = canvas + self.enter(class_token).unsqueeze(1)
        pixels: Tensor = self.leave(self.norm(self.blocks(canvas + self.positions)))
        return pixels
