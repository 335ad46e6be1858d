"""Backbones of Hugging Face: `hf:DIR`, or `hf:OWNER/NAME`, which is downloaded because it was named.

Dinov2, Dinov2 with registers, DINOv3ViT and ViT are translated to timm's modules, with the image size, mean and
standard deviation of their processor. No code of a repository is run, and transformers is not needed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from models.backbone import BackboneError
from models.translation import architecture_of, translate
from pipelines.backbones.foreign import Foreign, read_pickle, read_tensors, unwrapped
from pipelines.runtime.json_files import read_json

HF = "hf:"
KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
_REMEDY = "fetch it again"
_FILES = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]


def read_hugging_face(name: str, image_px: int | None) -> Foreign:
    """Read the network of `hf:DIR` or `hf:OWNER/NAME`.

    Args:
        name: With its `hf:`.
        image_px: Input size in place of the processor's; positions are resampled as transformers does.

    Raises:
        BackboneError: If it cannot be found, is no ViT of these kinds, or needs code of its own.
    """
    folder = _folder(name)
    config = read_json(folder / "config.json", ("model_type", "patch_size", "num_attention_heads"), _REMEDY)
    kind = config["model_type"]
    if kind not in KINDS or "auto_map" in config:
        why = "needs code of its own, which is not run" if kind in KINDS else f"is of kind '{kind}'"
        raise BackboneError(f"{name} {why}; networks of kind {', '.join(KINDS)} are read")
    activation = config.get("hidden_act", "gelu")
    if activation not in ("gelu", "silu") or (activation == "silu") != bool(config.get("use_gated_mlp")):
        raise BackboneError(
            f"{name} has the activation '{activation}', which timm's modules of this kind have not"
        )
    raw, _ = unwrapped(_tensors(folder, name), name)
    state, notes = translate(raw, name)
    architecture, arguments = architecture_of(state, name, int(config["num_attention_heads"]))
    if kind == "dinov3_vit":
        arguments["rope_temperature"] = config.get("rope_theta", 100.0)
    patch_px, own_px = arguments["patch_size"], _side(config.get("image_size", 224))
    found_px, mean, std, origin = _processor(folder, own_px, kind)
    size_px = image_px or found_px
    if "pos_embed" in state:
        has_antialias = kind == "dinov2_with_registers"
        state["pos_embed"] = _positions(state["pos_embed"], size_px // patch_px, has_antialias)
    notes.append(f"images of {size_px} px ({'as asked' if image_px else origin})")
    notes.append(f"gray values with mean {_shown(mean)} and SD {_shown(std)} ({origin})")
    epsilon = float(config.get("layer_norm_eps", 1e-6))
    return Foreign(state, architecture, arguments, size_px, mean, std, epsilon, notes)


def _folder(name: str) -> Path:
    given = name.removeprefix(HF)
    if Path(given).is_dir():
        if not (Path(given) / "config.json").is_file():
            raise BackboneError(
                f"folder {given} holds no config.json of transformers; give the folder of a whole model"
            )
        return Path(given)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", given) or given.startswith("."):
        raise BackboneError(
            f"there is no folder {given}; {HF} takes a folder, or OWNER/NAME of huggingface.co"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        folder = Path(snapshot_download(given, allow_patterns=_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(given, allow_patterns=["pytorch_model.bin"]))
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BackboneError(
            f"{given} cannot be downloaded from huggingface.co ({type(error).__name__}): check the name, the network,"
            " and `hf auth login` where its license must be accepted"
        ) from error
    print(f"{name}: revision {folder.name}")
    return folder


def _tensors(folder: Path, name: str) -> Any:
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return {key: tensor for file in files for key, tensor in read_tensors(file).items()}
    if not (folder / "pytorch_model.bin").is_file():
        raise BackboneError(f"{name} holds neither model.safetensors nor pytorch_model.bin")
    return read_pickle(folder / "pytorch_model.bin")


def _processor(folder: Path, own_px: int, kind: str) -> tuple[int, tuple[float, ...], tuple[float, ...], str]:
    """Return the image size, and mean and standard deviation of gray values in 0..1, of the image processor."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        usual = ((0.5,) * 3, (0.5,) * 3) if kind == "vit" else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        return own_px, *usual, f"there is no {file.name}: as usual for {kind}"
    said = read_json(file, (), _REMEDY)
    is_cropped = said.get("do_center_crop", "crop_size" in said)
    size_px = _side(said.get("crop_size" if is_cropped else "size") or own_px)
    # Values of 0..255 times this factor are normalized; those of 0..1 are 255 times smaller.
    factor = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    is_normalized = said.get("do_normalize", True)
    mean, std = (
        said.get(key, 0.5) if is_normalized else other
        for key, other in (("image_mean", 0.0), ("image_std", 1.0))
    )
    return size_px, _channels(mean, factor), _channels(std, factor), file.name


def _channels(values: Any, factor: float) -> tuple[float, ...]:
    listed = list(values) if isinstance(values, list) else [values]
    return tuple(float(value) / factor for value in (listed * 3 if len(listed) == 1 else listed))


def _side(size: Any) -> int:
    """Return the side of an image, of a number, [height, width] or a mapping."""
    if isinstance(size, Mapping):
        size = next(iter(size.values()), 224)
    return int(size[0] if isinstance(size, list) else size)


def _positions(positions: Tensor, side: int, antialias: bool) -> Tensor:
    """Resample positions as transformers does in every forward pass at another size: without antialias in Dinov2."""
    if side * side == positions.shape[1]:
        return positions
    with torch.no_grad():
        resampled: Tensor = resample_abs_pos_embed(
            positions, [side, side], num_prefix_tokens=0, antialias=antialias
        )
    return resampled


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in dict.fromkeys(values))
