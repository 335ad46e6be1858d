"""From a 2D network to a 3D one: the three slices of a triplet become the depth of a patch."""

from typing import Literal

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from models.backbone import Backbone, ConvBackbone
from models.stem import WhitenedStem
from models.timm_arguments import BackboneError
from models.volume import CubeEmbed

Inflate = Literal["centered", "averaged"]
_BELOW_TO_ABOVE = (-1, 0, 1)
"""Where the channels of a triplet lie along z, in slices from the middle one."""


@torch.no_grad()
def inflated_state(
    backbone: Backbone, flat: Backbone, how: Inflate, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state of a 2D network as that of a 3D one: a cube constant along z gives the tokens it had.

    Source: Carreira and Zisserman 2017, arXiv:1705.07750, for `averaged`; Zhang et al. 2023, arXiv:2302.04303, for
    transformers that read CT and MR.

    Args:
        backbone: The 3D network, with the mean and SD that its cubes are normalized by.
        flat: The 2D network, with those of its three channels.
        how: `centered` or `averaged`; see `BackboneConfig.inflate`.
        source: Name of the 2D network, for errors.

    Returns:
        The state, with positions along z of zero, and what was fitted, in words.

    Raises:
        BackboneError: If it has no linear patches, or another width or number of blocks.
    """
    if isinstance(flat, ConvBackbone) or isinstance(flat.stem, WhitenedStem):
        raise BackboneError(f"{source} has no linear patches that could become 3D ones; name a plain ViT")
    sizes = [(one.embed_dim, len(one.vit.blocks)) for one in (flat, backbone)]
    if sizes[0] != sizes[1]:
        raise BackboneError(
            "{} has tokens of {} numbers and {} blocks, this recipe asks for {} and {}; set embed_dim and depth to"
            " those of the weights, or arch to 'weights'".format(source, *sizes[0], *sizes[1])
        )
    cube: CubeEmbed = backbone.vit.patch_embed
    state, notes = dict(flat.vit.state_dict()), list[str]()
    kernels = state["patch_embed.proj.weight"].float()
    if kernels.shape[2:] != cube.patch_size:
        notes.append(
            f"patches of {kernels.shape[-1]} px resampled to {cube.patch_size[1]} px as FlexiViT does"
        )
        kernels = resample_patch_embed(kernels, list(cube.patch_size))
    # A channel saw (gray - mean) / SD of its own; a cube holds (gray - mean) / SD of all.
    mean, std = (torch.tensor(values, device=kernels.device) for values in (flat.mean, flat.std))
    shift = (kernels.sum((2, 3)) * (backbone.mean[0] - mean) / std).sum(1)
    kernels = kernels * (backbone.std[0] / std)[:, None, None]
    shares = depth_shares(cube.patch_depth_px, how).to(kernels.device)
    state["patch_embed.proj.weight"] = torch.einsum("ocyx,cz->ozyx", kernels, shares)[:, None]
    state["patch_embed.proj.bias"] = state.get("patch_embed.proj.bias", torch.zeros_like(shift)) + shift
    state["patch_embed.z_pos_embed"] = torch.zeros_like(cube.z_pos_embed)
    spread = "at the three middle voxels" if how == "centered" else "spread evenly"
    notes.append(f"its three slices became {cube.patch_depth_px} voxels of depth, {spread}")
    return state, notes


def depth_shares(depth: int, how: Inflate) -> Tensor:
    """Return the share of each channel of a triplet that goes to each voxel of depth, (3, depth); rows sum to one."""
    if how == "averaged":
        return torch.full((3, depth), 1 / depth)
    places = ((depth - 1) / 2 + torch.tensor(_BELOW_TO_ABOVE)).clamp(0, depth - 1)
    return (1 - (places[:, None] - torch.arange(depth)).abs()).clamp_min(0)


def told_nothing(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Complete a state from before a network took the spacing, so that its tokens stay what they were."""
    prefix = "spacing_embed."
    if not backbone.takes_spacing or any(name.startswith(prefix) for name in state):
        return state
    own = {name: one for name, one in backbone.vit.state_dict().items() if name.startswith(prefix)}
    last = f"{prefix}out."
    return state | {
        name: torch.zeros_like(one) if name.startswith(last) else one for name, one in own.items()
    }
