"""Weights of vision transformers under the names of others, translated to timm's, and the architecture they tell.

Known names: timm, DINO and MAE (timm's own), DINOv2, DINOv3, lightly, transformers' ViT, Dinov2 and DINOv3ViT, and
MONAI's ViT.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.backbone import BackboneError

ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight",
           "embeddings.patch_embeddings.weight", "patch_embedding.patch_embeddings.weight",
           "patch_embedding.patch_embeddings.1.weight")  # fmt: skip
"""Ends of the name of a ViT's patch embedding: what stands before is a wrapper's prefix."""

_RENAMED = [(re.compile(pattern), name) for pattern, name in (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 and DINOv3 in chunks
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"^(?:embeddings\.)?(?:register|storage)_tokens$", "reg_token"),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^(?:embeddings|patch_embedding)\.position_embeddings$", "pos_embed"),
    (r"^(?:embeddings|patch_embedding)\.patch_embeddings\.(?:projection\.|1\.)?", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.attention\.(?:attention\.)?(?:(q)uery|(k)ey|(v)alue|([qkv])_proj)\.", r"\1.attn.\2\3\4\5."),
    (r"^(blocks\.\d+)\.(?:attention\.output\.dense|attention\.o_proj|attn\.out_proj)\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+)\.(?:intermediate\.dense|mlp\.(?:linear1|weights_in|w12))\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.(?:output\.dense|mlp\.(?:linear2|weights_out|w3|down_proj))\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.mlp\.(?:w1|gate_proj)\.", r"\1.mlp.fc1_g."),
    (r"^(blocks\.\d+)\.mlp\.(?:w2|up_proj)\.", r"\1.mlp.fc1_x."),
)]  # fmt: skip
_KEPT = re.compile(r"^(cls_token$|reg_token$|pos_embed$|patch_embed\.|norm\.|norm_pre\.|blocks\.)")
_OF_TRAINING = re.compile(r"\.(bias_mask|cross_attn\..*|norm_cross_attn\..*)$")
"""In blocks, but no part of the network that encodes: read before, or never used."""


def translate(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Give a state timm's names, with queries, keys and values joined and class positions in the class token.

    Args:
        state: Tensors of one network, without a wrapper's prefix.
        source: Where they came from, for the error.

    Returns:
        The state, and what was done to it in words.

    Raises:
        BackboneError: If it is no ViT on images, or has no class token or no patch embedding.
    """
    named = {_timm_name(name): tensor for name, tensor in state.items()}
    left = sorted({name.partition(".")[0] for name in named if not _KEPT.match(name)})
    kept = {name: tensor for name, tensor in named.items() if _KEPT.match(name)}
    notes = [f"left out: {', '.join(left)}"] if left else []
    if "cls_token" not in kept:
        raise BackboneError(
            f"{source} holds a vision transformer without a class token, which is not read here"
        )
    joined = {name: tensor.float() for name, tensor in _joined(kept).items() if not _OF_TRAINING.search(name)}
    if "reg_token" in joined and not joined["reg_token"].numel():
        del joined["reg_token"]
    joined["patch_embed.proj.weight"] = _as_convolution(joined["patch_embed.proj.weight"], source)
    if "pos_embed" in joined:
        positions = joined["pos_embed"] = joined["pos_embed"].flatten(0, -2)[None]
        tokens, is_fitting = positions.shape[1], positions.shape[2] == joined["cls_token"].shape[-1]
        if is_fitting and tokens > 1 and math.isqrt(tokens - 1) ** 2 == tokens - 1:
            joined["cls_token"] = joined["cls_token"] + positions[:, :1]
            joined["pos_embed"] = positions[:, 1:]
        elif is_fitting and math.isqrt(tokens) ** 2 != tokens:
            raise BackboneError(
                f"{source} has {tokens} positions, which are no square of patches with a class token"
            )
    return joined, notes


def _timm_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join queries, keys and values; a missing bias is 0, and so is what DINOv3 masks."""
    joined = dict(state)
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        stem = name.removesuffix("q.weight")
        for kind in ("weight", "bias"):
            parts = [joined.pop(f"{stem}{one}.{kind}", None) for one in "qkv"]
            given = next((part for part in parts if part is not None), None)
            if given is not None:
                filled = [torch.zeros_like(given) if part is None else part for part in parts]
                joined[f"{stem}qkv.{kind}"] = torch.cat(filled)
    for name in [name for name in state if name.endswith(".attn.qkv.bias_mask")]:
        bias = name.removesuffix("_mask")
        joined[bias] = torch.where(state[name] == 1, joined[bias], 0.0)
    if "pos_embed" in joined:  # timm's DINOv2 joins the gate and what it opens
        for name in [name for name in joined if ".mlp.fc1_g." in name]:
            gate, opened = joined.pop(name), joined.pop(name.replace("fc1_g", "fc1_x"))
            joined[name.replace("fc1_g", "fc1")] = torch.cat([gate, opened])
    if not any(".mlp.fc1_g." in name for name in joined):  # transformers' names for an MLP without a gate
        joined = {name.replace(".mlp.fc1_x.", ".mlp.fc1."): tensor for name, tensor in joined.items()}
    return joined


def _as_convolution(weight: Tensor, source: str) -> Tensor:
    """Return a patch embedding as a convolution's weights (D, C, P, P); MONAI's perceptron has (D, P * P * C)."""
    if weight.ndim == 2:
        for channels in (1, 3):
            side = math.isqrt(weight.shape[1] // channels)
            if side * side * channels == weight.shape[1]:
                return weight.reshape(-1, side, side, channels).permute(0, 3, 1, 2).contiguous()
    if weight.ndim == 5:
        raise BackboneError(
            f"{source} holds a transformer on volumes: name it as encoder=, since backbone= reads slices"
        )
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise BackboneError(
            f"{source} holds a patch embedding of shape {tuple(weight.shape)}; patches must be square"
        )
    return weight


def architecture_of(state: Mapping[str, Tensor], source: str, heads: int = 0) -> tuple[str, dict[str, Any]]:
    """Tell timm's name and arguments of the architecture that a translated state belongs to.

    Args:
        state: As `translate` returns it.
        source: Where it came from, for the error.
        heads: Of attention, which no shape tells; 0: one for every 64 numbers of a token, as in most published ones.

    Raises:
        BackboneError: If blocks are missing, or the number of heads cannot be.
    """
    width, depth = (
        state["cls_token"].shape[-1],
        len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
    )
    gated, fc2 = "blocks.0.mlp.fc1_g.weight" in state, state.get("blocks.0.mlp.fc2.weight")
    fc1 = state.get(f"blocks.0.mlp.fc1{'_g' * gated}.weight")
    if fc1 is None or fc2 is None:
        raise BackboneError(f"{source} holds no blocks of attention and MLP under names that are known here")
    if width % (heads or 64):
        why = f"{heads} heads cannot share" if heads else "tell no number of heads"
        raise BackboneError(
            f"{source} has tokens of {width} numbers, which {why}; state it, FILE:heads=6, or the architecture by"
            " timm's name, FILE:vit_small_patch16_224"
        )
    ratio = fc1.shape[0] / width
    arguments: dict[str, Any] = {
        "patch_size": state["patch_embed.proj.weight"].shape[-1],
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads or width // 64,
        # so that timm's int(embed_dim * mlp_ratio) is the hidden width
        "mlp_ratio": ratio if int(width * ratio) == fc1.shape[0] else math.nextafter(ratio, math.inf),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in state else None,
    }
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    if "pos_embed" not in state:
        name = "vit_huge_plus_patch16_dinov3" if gated else "vit_small_patch16_dinov3"
        return name, arguments | {"num_reg_tokens": registers, "attn_type": "rope"}
    is_packed = fc1.shape[0] == 2 * fc2.shape[1]  # SwiGLU
    name = "vit_giant_patch14_reg4_dinov2" if is_packed else "vit_small_patch14_reg4_dinov2"
    return name, arguments | {"reg_tokens": registers, "no_embed_class": True}
