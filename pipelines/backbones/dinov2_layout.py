"""A backbone as transformers' Dinov2: its weights under those names, its configuration and its image processor."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.backbone import Backbone, BackboneError
from models.stem import WhitenedStem
from pipelines.runtime.atomic import make_folder, write_atomically

_LAID_OUT = [(re.compile(pattern), name) for pattern, name in (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)]  # fmt: skip


def write_hugging_face(backbone: Backbone, folder: Path) -> None:
    """Write a ViT as transformers' Dinov2, with registers where it has some, and its image processor.

    Raises:
        BackboneError: If Dinov2 has no such architecture.
    """
    vit, state = backbone.vit, {name: one.detach().cpu() for name, one in backbone.vit.state_dict().items()}
    why = _no_dinov2(backbone, state)
    if why:
        raise BackboneError(f"transformers' Dinov2 has no such network: {why}; export it without hf=yes")
    width = backbone.embed_dim
    laid_out = {"embeddings.mask_token": torch.zeros(1, width)}
    for name, tensor in state.items():
        renamed = name
        for pattern, replacement in _LAID_OUT:
            renamed = pattern.sub(replacement, renamed)
        if ".attn.qkv." in name:
            for part, kind in zip(tensor.chunk(3), ("query", "key", "value"), strict=True):
                laid_out[renamed.replace("attn.qkv", f"attention.attention.{kind}")] = part
        else:
            laid_out[renamed] = tensor
    if vit.no_embed_class:  # its position is part of the class token
        positions = laid_out["embeddings.position_embeddings"]
        laid_out["embeddings.position_embeddings"] = torch.cat([torch.zeros(1, 1, width), positions], dim=1)
    for number in range(len(vit.blocks)):
        for scale in (1, 2):
            laid_out.setdefault(f"encoder.layer.{number}.layer_scale{scale}.lambda1", torch.ones(width))
    _write(folder, laid_out, _configuration(backbone), _processor(backbone))


def _configuration(backbone: Backbone) -> dict[str, Any]:
    vit, registers = backbone.vit, backbone.vit.num_prefix_tokens - 1
    return {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "mlp_ratio": vit.blocks[0].mlp.fc1.out_features // backbone.embed_dim,
        "image_size": backbone.image_px,
        "patch_size": backbone.patch_px,
        "layer_norm_eps": vit.norm.eps,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "use_swiglu_ffn": False,
    } | ({"num_register_tokens": registers} if registers else {})


def _processor(backbone: Backbone) -> dict[str, Any]:
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": False,
        "do_resize": True,
        "size": {"height": backbone.image_px, "width": backbone.image_px},
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
    }


def _write(
    folder: Path, state: Mapping[str, Tensor], configuration: dict[str, Any], processor: dict[str, Any]
) -> None:
    make_folder(folder)
    weights = save({name: tensor.contiguous() for name, tensor in state.items()}, {"format": "pt"})
    write_atomically(folder / "model.safetensors", lambda file: file.write(weights))
    for name, tree in (("config.json", configuration), ("preprocessor_config.json", processor)):
        text = json.dumps(tree, indent=2)
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]


def _no_dinov2(backbone: Backbone, state: Mapping[str, Tensor]) -> str:
    """Return why a network is no Dinov2; "" if it is."""
    if not isinstance(backbone.vit, VisionTransformer) or isinstance(backbone.stem, WhitenedStem):
        return "its attention turns with the position, or its stem is its own"
    block = r"(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|ls[12]\.gamma"
    known = re.compile(
        rf"cls_token|reg_token|pos_embed|(patch_embed\.proj|norm)\.(weight|bias)|blocks\.\d+\.({block})"
    )
    others = [name for name in state if not known.fullmatch(name)]
    if others or "blocks.0.attn.qkv.bias" not in state or "norm.weight" not in state:
        return (
            f"it has {others[0]}" if others else "it has no bias of queries, keys and values, or no last norm"
        )
    if state["blocks.0.mlp.fc1.weight"].shape[0] % backbone.embed_dim:
        return "its MLP is no whole number of times as wide as its tokens"
    if not backbone.vit.no_embed_class and "reg_token" in state:
        return "its registers have positions"
    return ""
