"""Open the folder of a network that reads cubes, or spacing, with timm alone; nothing of dinox-ct is needed."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F


def open_folder(folder: str | Path) -> Callable[..., torch.Tensor]:
    """Return tokens(images, spacing_mm): (B, 1 + registers + N, C), the class token first."""
    config, record = (json.loads((Path(folder) / f"{name}.json").read_text()) for name in ("config", "dinox"))
    state, own = load_file(Path(folder) / "model.safetensors"), record["backbone"]
    vit = timm.model_entrypoint(config["architecture"].split(".", 1)[1])(
        num_classes=0, **config["model_args"]
    )
    kept = vit.state_dict() if own["image_depth_px"] else {}  # timm's 2D patches, which cubes do not use
    flat = {name: one for name, one in kept.items() if name.startswith("patch_embed.")}
    vit.load_state_dict({name: one for name, one in state.items() if name in vit.state_dict()} | flat)
    vit, prefix = vit.eval(), vit.num_prefix_tokens

    @torch.no_grad()
    def tokens(images: torch.Tensor, spacing_mm: torch.Tensor | None = None) -> torch.Tensor:
        given = {}
        if own[
            "image_depth_px"
        ]:  # (B, 1, D, S, S): a layer of patches has timm's positions and its own along z
            kernel, bias, z = (
                state[f"patch_embed.{name}"] for name in ("proj.weight", "proj.bias", "z_pos_embed")
            )
            patches = F.conv3d(images, kernel, bias, stride=kernel.shape[2:]).permute(0, 2, 3, 4, 1)
            layers, plane = patches.shape[1], vit._pos_embed(torch.zeros_like(patches[:1, 0]))
            plane, rope = plane if isinstance(plane, tuple) else (plane, None)
            z = F.interpolate(z.mT, size=layers, mode="linear").mT[0, :, None]
            x = (patches.flatten(2, 3) + plane[:, None, prefix:] + z).flatten(1, 2)
            x = torch.cat([plane[:, :prefix].expand(len(x), -1, -1), x], dim=1)
            rope = rope if rope is None else torch.cat([rope] * layers, dim=-2)
            if own["inflated"]:
                given["attn_mask"] = torch.zeros(1, 1, 1, x.shape[1])
                given["attn_mask"][..., :prefix] = math.log(layers)
        else:  # (B, 3, S, S)
            placed = vit._pos_embed(vit.patch_embed(images))
            x, rope = placed if isinstance(placed, tuple) else (placed, None)
        if own["spacing"] == "tokens":  # (B, 3): mm per voxel along z, y and x
            logs, names = (
                torch.as_tensor(spacing_mm).log(),
                ("hidden.weight", "hidden.bias", "out.weight", "out.bias"),
            )
            turns = (logs[..., None] * math.pi / 4 * 2.0 ** torch.arange(6)).flatten(1)
            first, bias, last, end = (state[f"spacing_embed.{name}"] for name in names)
            waves = torch.cat([logs, turns.sin(), turns.cos()], dim=1)
            x = x + F.linear(F.gelu(F.linear(waves, first, bias)), last, end)[:, None]
        x = vit.norm_pre(x)
        for number, block in enumerate(vit.blocks):
            turned = {} if rope is None else {"rope": rope[number] if rope.ndim == 4 else rope}
            x = block(x, **given, **turned)
        normed: torch.Tensor = vit.norm(x)
        return normed

    return tokens
