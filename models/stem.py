"""A patch embedding that starts from whitened patches: words compared with small dense patches, pooled to tokens.

Without training it is the baseline of whitened random words (`probes/dictionary.py`) as the entrance of a network, so
what a training adds to it was learned. It reads the center slice: features of the neighbors tell where a nodule ends
in z, and cost three times as much.

Source: Coates, Lee and Ng 2011, An analysis of single-layer networks in unsupervised feature learning.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.losses.precision import wide

FILTER_PX, STRIDE_PX, WORDS = 6, 2, 128
CENTER = 1
"""Channel of the center slice."""
_PAD_PX = (FILTER_PX - STRIDE_PX) // 2
_LEAST_VARIANCE = 0.1
"""Added to the variances of whitening, as a share of their mean, as `probes/dictionary.py` does."""


class WhitenedStem(nn.Module):
    """In the place of timm's PatchEmbed: images (B, 3, H, W) to tokens (B, rows, columns, D).

    Every 2 px a patch of 6 x 6 px is whitened and compared with 128 words (triangle activation); mean and maximum over
    the positions of a token enter a linear layer. Words start as random directions and learn; whitening is fitted once,
    by `fit`, and stays.

    Attributes:
        patch_size, img_size, grid_size, num_patches: As timm's PatchEmbed has them.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, image_px: int, patch_px: int, embed_dim: int) -> None:
        """Build with random words and no whitening yet."""
        super().__init__()
        self.img_size, self.patch_size = (image_px, image_px), (patch_px, patch_px)
        self.grid_size = (image_px // patch_px,) * 2
        self.num_patches = self.grid_size[0] ** 2
        self.register_buffer("mean", torch.zeros(FILTER_PX**2))
        self.register_buffer("whitening", torch.eye(FILTER_PX**2))
        self.words = nn.Parameter(torch.randn(WORDS, FILTER_PX**2))
        self.proj = nn.Linear(2 * WORDS, embed_dim)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)  # as timm begins its linear layers
        nn.init.zeros_(self.proj.bias)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Fit the whitening to images (N, 3, S, S) as the network gets them."""
        center = images[:, CENTER : CENTER + 1].double()
        patches = F.unfold(center, FILTER_PX, stride=FILTER_PX).transpose(1, 2).flatten(0, 1)
        variances, axes = torch.linalg.eigh(torch.cov(patches.T))
        least = _LEAST_VARIANCE * variances.mean().clamp_min(1e-12)
        scales = (variances.clamp_min(0) + least).rsqrt()
        self.mean.copy_(patches.mean(0))
        self.whitening.copy_((axes * scales) @ axes.T)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images; their sides are multiples of the patch."""
        with torch.autocast(images.device.type, enabled=False):
            center = F.pad(wide(images[:, CENTER : CENTER + 1]), (_PAD_PX,) * 4, mode="replicate")
            filters = self.whitening.T.reshape(-1, 1, FILTER_PX, FILTER_PX)
            patches = F.conv2d(center, filters, -self.mean @ self.whitening, stride=STRIDE_PX)
            patches = patches.contiguous(memory_format=torch.channels_last)  # half the time on a CPU
            squared = F.conv2d(patches, -2 * self.words[..., None, None], self.words.square().sum(1))
            distance = squared.add_(patches.square().sum(1, keepdim=True)).clamp_min_(1e-6).sqrt()
            active = (distance.mean(1, keepdim=True) - distance).relu_()
            side = self.patch_size[0] // STRIDE_PX
            pooled = torch.cat([F.avg_pool2d(active, side), F.max_pool2d(active, side)], dim=1)
        tokens: Tensor = self.proj(pooled.permute(0, 2, 3, 1))
        return tokens
