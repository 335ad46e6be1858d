"""What makes a ViT of timm read cubes, and what tells it millimeters: patches and positions in 3D, spacing of a view.

The blocks, class token, registers and in-plane positions stay timm's, under timm's names, so that weights of a 2D
network fit and a short loader without this project suffices (docs/decisions/0008-volumetric-tokens.md).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import BackboneConfig
from models.losses.precision import wide

_OCTAVES = 6
_SLOWEST = math.pi / 4
"""Frequency of the slowest wave of ln mm: no two spacings from 0.1 to 10 mm look the same."""


class CubeEmbed(nn.Module):
    """In the place of timm's PatchEmbed: cubes (B, 1, D, H, W) to tokens (B, layers, rows, columns, C).

    Attributes:
        patch_size, img_size, grid_size: Of one layer of patches, (y, x), as timm's PatchEmbed has them.
        depth_px, patch_depth_px: Voxels along z of a cube and of a patch.
        layers: Patches along z.
        num_patches: Of the whole cube.
        is_inflated: Whether class token and registers weigh `layers` times as much in every attention, as they must
            where the weights are those of a 2D network.
    """

    def __init__(
        self,
        embed_dim: int,
        cube_px: tuple[int, int, int],
        patch_px: tuple[int, int, int],
        is_inflated: bool = False,
    ) -> None:
        """Build for cubes and patches of (z, y, x) voxels, the first a multiple of the second.

        Positions along z start as timm's in-plane ones do.
        """
        super().__init__()
        self.depth_px, self.patch_depth_px = cube_px[0], patch_px[0]
        self.img_size, self.patch_size = cube_px[1:], patch_px[1:]
        self.layers = cube_px[0] // patch_px[0]
        self.grid_size = (cube_px[1] // patch_px[1], cube_px[2] // patch_px[2])
        self.num_patches = self.layers * self.grid_size[0] * self.grid_size[1]
        self.is_inflated = is_inflated
        self.proj = nn.Conv3d(1, embed_dim, patch_px, stride=patch_px)
        self.z_pos_embed = nn.Parameter(torch.empty(1, self.layers, embed_dim))
        nn.init.trunc_normal_(self.z_pos_embed, std=0.02)

    def forward(self, cubes: Tensor) -> Tensor:
        """Embed cubes of any multiple of the patch.

        Raises:
            ValueError: If the patch does not divide them.
        """
        patch = (self.patch_depth_px, *self.patch_size)
        if cubes.ndim != 5 or any(side % own for side, own in zip(cubes.shape[2:], patch, strict=True)):
            raise ValueError(f"cubes (B, 1, D, H, W) in patches of {patch} voxels, got {tuple(cubes.shape)}")
        tokens: Tensor = self.proj(cubes).permute(0, 2, 3, 4, 1)
        return tokens

    def z_positions(self, layers: int) -> Tensor:
        """Return the positions of `layers` layers of patches, (layers, 1, C); linear between those that it has."""
        table: Tensor = self.z_pos_embed
        if layers != self.layers:
            table = F.interpolate(wide(table).transpose(1, 2), size=layers, mode="linear").transpose(1, 2)
            table = table.to(self.z_pos_embed.dtype)
        return table[0, :, None]

    def attention_bias(self, layers: int, prefix: int, patches: int) -> Tensor | None:
        """Return what is added to attention logits, (1, 1, 1, prefix + patches); None for nothing.

        In a cube that is constant along z each patch of a slice appears `layers` times and would take that many times
        its share of the softmax; ln(layers) on the other tokens gives them theirs back.
        """
        if not self.is_inflated:
            return None
        bias = self.z_pos_embed.new_zeros(1, 1, 1, prefix + patches)
        bias[..., :prefix] = math.log(layers)
        return bias


class SpacingEmbed(nn.Module):
    """Millimeters per voxel (B, 3) along z, y and x, as one vector for every token of a view, (B, 1, C).

    Waves of ln mm, so that a ratio of two spacings looks the same at every scale, through two linear layers. In a warm
    start from weights without it the second begins at zero: the tokens are those of the weights.
    """

    frequencies: Tensor

    def __init__(self, embed_dim: int) -> None:
        """Build for tokens of this width."""
        super().__init__()
        self.register_buffer("frequencies", _SLOWEST * 2.0 ** torch.arange(_OCTAVES), persistent=False)
        self.hidden = nn.Linear(3 * (1 + 2 * _OCTAVES), embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, spacing_mm: Tensor) -> Tensor:
        """Embed spacings, in float32."""
        with torch.autocast(spacing_mm.device.type, enabled=False):
            logs = wide(spacing_mm).to(self.hidden.weight.dtype).log()
            turns = (logs[..., None] * self.frequencies).flatten(1)
            waves = torch.cat([logs, turns.sin(), turns.cos()], dim=1)
            embedded: Tensor = self.out(F.gelu(self.hidden(waves)))
        return embedded[:, None]


def extend(vit: Any, config: BackboneConfig) -> None:
    """Make a 2D ViT of timm read cubes, or the spacing of its views, as a configuration says."""
    flat = vit.patch_embed
    if config.image_depth_px:
        patch_px = (config.patch_depth_px or flat.patch_size[0], *flat.patch_size)
        cube_px = (config.image_depth_px, *flat.img_size)
        vit.patch_embed = CubeEmbed(vit.embed_dim, cube_px, patch_px, config.inflated)
    if config.spacing == "tokens":
        vit.spacing_embed = SpacingEmbed(vit.embed_dim)


def place_layers(vit: Any, patches: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return all tokens of cubes with their positions, (B, prefix + N, C), and the rotations of ViTs that have them.

    Every layer of patches gets the in-plane positions that timm gives to an empty slice, and its own along z.

    Args:
        vit: Of timm, with a `CubeEmbed`.
        patches: (B, layers, rows, columns, C).
    """
    layers, prefix = patches.shape[1], vit.num_prefix_tokens
    placed = vit._pos_embed(torch.zeros_like(patches[:1, 0]))
    plane, rope = placed if isinstance(placed, tuple) else (placed, None)
    places = plane[:, None, prefix:] + vit.patch_embed.z_positions(layers)
    first = plane[:, :prefix].expand(patches.shape[0], -1, -1)  # `len` would fix the batch of an ONNX graph
    tokens = torch.cat([first, (patches.flatten(2, 3) + places).flatten(1, 2)], dim=1)
    return tokens, None if rope is None else torch.cat([rope] * layers, dim=-2)
