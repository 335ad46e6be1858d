"""Backbones of Hugging Face: `hf:DIR`, or `hf:OWNER/NAME`, which is downloaded because it was named.

Dinov2, Dinov2 with registers, DINOv3ViT and ViT are translated to timm's modules, with the image size, mean and
standard deviation of their processor. No code of a repository is run, and transformers is not needed.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from models.backbone import BackboneError
from models.translation import architecture_of, translate
from pipelines.backbones.foreign import Foreign, read_pickle, read_tensors, unwrapped
from pipelines.runtime.json_files import read_json
from pipelines.runtime.paths import inside

HF = "hf:"
KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
_REMEDY = "fetch it again"
_FILES = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int | float) else value


def _one_or_three(values: Sequence[float]) -> Sequence[float]:
    if len(values) not in (1, 3):
        raise ValueError("one value, or one for each of three channels")
    return values


_ONE_OR_THREE = AfterValidator(_one_or_three)
_Size = (
    PositiveInt
    | Annotated[list[PositiveInt], Field(min_length=1)]
    | Annotated[dict[str, PositiveInt], Field(min_length=1)]
)


class _Config(BaseModel):
    """What is read of config.json."""

    model_type: str
    num_attention_heads: PositiveInt = 1
    image_size: _Size = 224
    hidden_act: str = "gelu"
    use_gated_mlp: bool = False
    layer_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 100.0
    auto_map: Any = None


class _Processor(BaseModel):
    """What is read of preprocessor_config.json."""

    size: _Size | None = None
    crop_size: _Size | None = None
    do_center_crop: bool | None = None
    do_rescale: bool = True
    rescale_factor: PositiveFloat = 1 / 255
    do_normalize: bool = True
    image_mean: Annotated[Sequence[float], _ONE_OR_THREE, BeforeValidator(_listed)] = (0.5,)
    image_std: Annotated[Sequence[PositiveFloat], _ONE_OR_THREE, BeforeValidator(_listed)] = (0.5,)


M = TypeVar("M", _Config, _Processor)


def read_hugging_face(name: str, image_px: int | None) -> Foreign:
    """Read the network of `hf:DIR` or `hf:OWNER/NAME`.

    Args:
        name: With its `hf:`.
        image_px: Input size in place of the processor's; positions are resampled as transformers does.

    Raises:
        BackboneError: If it cannot be found, is no ViT of these kinds, or needs code of its own.
    """
    folder = _folder(name)
    for file in [*folder.glob("*.json"), *folder.glob("model*.safetensors"), folder / "pytorch_model.bin"]:
        inside(folder, file)
    config = _settings(_Config, folder / "config.json")
    kind = config.model_type
    if kind not in KINDS or config.auto_map:
        why = "needs code of its own, which is not run" if kind in KINDS else f"is of kind '{kind}'"
        raise BackboneError(f"{name} {why}; networks of kind {', '.join(KINDS)} are read")
    if config.hidden_act != ("silu" if config.use_gated_mlp else "gelu"):
        raise BackboneError(
            f"{name} has the activation '{config.hidden_act}', which timm's modules of this kind have not"
        )
    raw, _ = unwrapped(_tensors(folder, name), name)
    state, notes = translate(raw, name)
    architecture, arguments = architecture_of(state, name, config.num_attention_heads)
    if kind == "dinov3_vit":
        arguments["rope_temperature"] = config.rope_theta
    patch_px = arguments["patch_size"]
    found_px, mean, std, origin = _processor(folder, _side(config.image_size), kind)
    size_px = image_px or found_px
    if "pos_embed" in state and size_px % patch_px == 0:  # else it is refused when it is built
        has_antialias = kind == "dinov2_with_registers"
        state["pos_embed"] = _positions(state["pos_embed"], size_px // patch_px, has_antialias)
    notes.append(f"images of {size_px} px ({'as asked' if image_px else origin})")
    notes.append(f"gray values with mean {_shown(mean)} and SD {_shown(std)} ({origin})")
    return Foreign(state, architecture, arguments, size_px, mean, std, config.layer_norm_eps, notes)


def _settings(kind: type[M], file: Path) -> M:
    tree = read_json(file, (), _REMEDY)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:1])
        if first["type"] == "missing":
            raise BackboneError(
                f"{file} states no {key}, so transformers did not write it; a folder of timm's opens as"
                " timm:local-dir:FOLDER, one of this project by its path"
            ) from error
        raise BackboneError(
            f"{file} states {key} as {first['input']!r}, which cannot be; {_REMEDY}"
        ) from error


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
            f"there is no folder {given}; {HF} takes a folder, or OWNER/NAME of the Hugging Face Hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        folder = Path(snapshot_download(given, allow_patterns=_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(given, allow_patterns=["pytorch_model.bin"]))
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BackboneError(
            f"{given} cannot be downloaded from the Hugging Face Hub ({type(error).__name__}): check the name,"
            " the network, and `hf auth login` where its license must be accepted"
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
    said = _settings(_Processor, file)
    is_cropped = said.crop_size is not None if said.do_center_crop is None else said.do_center_crop
    size = said.crop_size if is_cropped else said.size
    # Values of 0..255 times this factor are normalized; those of 0..1 are 255 times smaller.
    factor = 255 * said.rescale_factor if said.do_rescale else 255.0
    mean, std = (said.image_mean, said.image_std) if said.do_normalize else ([0.0], [1.0])
    return _side(size) if size else own_px, _channels(mean, factor), _channels(std, factor), file.name


def _channels(values: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(value / factor for value in (values if len(values) == 3 else [*values] * 3))


def _side(size: _Size) -> int:
    """Return the side of an image, of a number, [height, width] or a mapping."""
    if isinstance(size, int):
        return size
    return next(iter(size.values())) if isinstance(size, dict) else size[0]


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
