"""Weights into a network: positions, patches and channels of another size are fitted to it; nothing else may differ."""

import math

import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

from models.backbone import Backbone, BackboneError
from models.stem import CENTER
from models.tensors import differing


def load_weights(backbone: Backbone, state: dict[str, Tensor], source: str) -> list[str]:
    """Load a state of the same architecture, fitted to the network's image size, patch and channels.

    Args:
        backbone: The model to fill.
        state: Tensors by timm's names; a classifier `head.*` that the network has not is left out.
        source: Where the state came from, for the error.

    Returns:
        What was fitted, in words.

    Raises:
        BackboneError: If a tensor is missing, unknown or of another shape.
    """
    own = backbone.vit.state_dict()
    fitted = {name: tensor for name, tensor in state.items() if name in own or not name.startswith("head.")}
    if not own.keys() <= fitted.keys():
        fitted = _renamed_for(own, fitted)
    notes = _fit_stem(own, fitted) + _fit_positions(backbone, own, fitted) + _fit_layers(own, fitted)
    if wrong := differing(own, fitted):
        raise BackboneError(
            f"the weights in {source} are of another architecture: {len(wrong)} tensors differ, first '{wrong[0]}'"
        )
    backbone.vit.load_state_dict(fitted)
    return notes


def _renamed_for(own: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name LayerScale as the network does; part the bias of queries, keys and values where it has none for keys.

    DINOv3's published biases are 0, and timm leaves them out.
    """
    renamed = {}
    for name, tensor in state.items():
        gamma = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        stem = name.removesuffix("qkv.bias")
        if name not in own and gamma in own:
            renamed[gamma] = tensor
        elif name not in own and f"{stem}q_bias" in own and not tensor.chunk(3)[1].any():
            renamed[f"{stem}q_bias"], _, renamed[f"{stem}v_bias"] = tensor.chunk(3)
        elif name in own or not name.endswith("qkv.bias") or tensor.any():
            renamed[name] = tensor
    return renamed


def _fit_stem(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    name, notes = "patch_embed.proj.weight", []
    given, wanted = state.get(name), own.get(name)
    if given is None or wanted is None or given.ndim != 4 or wanted.ndim != 4:
        return []
    if given.shape[1] == 1 < wanted.shape[1]:
        expanded = given.new_zeros(len(given), wanted.shape[1], *given.shape[2:])
        expanded[:, CENTER] = given[:, 0]
        given = expanded
        notes.append("its one channel reads the center slice, the neighbors have weight 0")
    if given.shape[2:] != wanted.shape[2:]:
        old, new = given.shape[-1], wanted.shape[-1]
        given = resample_patch_embed(given, list(wanted.shape[2:]))
        notes.append(f"patches of {old} px resampled to {new} px as FlexiViT does")
    state[name] = given
    return notes


def _fit_layers(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    name = "patch_embed.z_pos_embed"
    given, wanted = state.get(name), own.get(name)
    if given is None or wanted is None or given.shape[1] == wanted.shape[1]:
        return []
    state[name] = F.interpolate(given.mT, size=wanted.shape[1], mode="linear").mT
    return [f"positions of {given.shape[1]} layers along z resampled to {wanted.shape[1]}"]


def _fit_positions(backbone: Backbone, own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    given = state.get("pos_embed")
    if given is None or "pos_embed" not in own or given.shape == own["pos_embed"].shape:
        return []
    if given.ndim != 3 or given.shape[2] != own["pos_embed"].shape[2]:
        return []  # of another architecture
    prefix = 0 if backbone.vit.no_embed_class else backbone.vit.num_prefix_tokens
    tokens, notes = given.shape[1], []
    if prefix and math.isqrt(tokens) ** 2 == tokens:  # those of class token and registers are part of these
        given = torch.cat([given.new_zeros(1, prefix, given.shape[2]), given], dim=1)
    elif not prefix and "cls_token" in state and math.isqrt(tokens) ** 2 != tokens:
        state["cls_token"] = state["cls_token"] + given[:, :1]
        given = given[:, 1:]
        notes.append("the class token's position added to the class token")
    if given.shape != own["pos_embed"].shape:
        rows, columns = backbone.vit.patch_embed.grid_size
        notes.append(
            f"positions of {math.isqrt(given.shape[1] - prefix)}^2 patches resampled to {rows} x {columns}"
        )
        given = resample_abs_pos_embed(given, [rows, columns], num_prefix_tokens=prefix)
    state["pos_embed"] = given
    return notes
