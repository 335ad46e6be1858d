"""Masked autoencoding: pixels of hidden patches from the patches that are shown."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from models.losses.precision import wide


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """Cut images (B, 3, S, S) into flat patches (B, N, 3 * patch_px ** 2), rows first."""
    flat = F.unfold(images, kernel_size=patch_px, stride=patch_px)
    return flat.transpose(1, 2)


def mae_loss(predicted: Tensor, images: Tensor, mask: Tensor, patch_px: int) -> Tensor:
    """Mean squared error on hidden patches, each patch normalized by its own mean and deviation.

    Args:
        predicted: (B, N, 3 * patch_px ** 2).
        images: (B, 3, S, S).
        mask: (B, N) bool, true where the patch was hidden.
        patch_px: Patch size in pixels.

    Returns:
        Scalar; 1.0 for a prediction of the mean.

    Source: He et al. 2022, arXiv:2111.06377, section 3.
    """
    target = patchify(wide(images), patch_px)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    error = (wide(predicted) - (target - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp_min(1)


class MaskedDecoder(nn.Module):
    """A small transformer from encoded visible patches to the pixels of all."""

    def __init__(self, embed_dim: int, patches: int, patch_px: int, width: int = 96, depth: int = 2) -> None:
        """Build for a fixed grid of `patches`."""
        super().__init__()
        self.enter = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, patches, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, num_heads=4, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, 3 * patch_px**2)

    def forward(self, visible: Tensor, keep: Tensor) -> Tensor:
        """Map tokens of shown patches (B, M, D), which lie at `keep` (B, M), to pixels (B, N, 3 p^2)."""
        shown = self.enter(visible)
        batch, patches, width = visible.shape[0], self.positions.shape[1], shown.shape[-1]
        canvas = self.mask_token.to(shown.dtype).expand(batch, patches, width)
        canvas = canvas.scatter(1, keep.unsqueeze(-1).expand(-1, -1, width), shown)
        pixels: Tensor = self.leave(self.norm(self.blocks(canvas + self.positions)))
        return pixels
