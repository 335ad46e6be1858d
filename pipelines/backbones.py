"""Backbones on disk and by name: saved as safetensors that plain timm opens, found by run, folder or timm name."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from models.backbone import Backbone, BackboneConfig, build_backbone, load_weights
from pipelines import tracking
from transforms.view_config import IMAGENET_MEAN, IMAGENET_STD

ARTIFACT = "backbone"
_WEIGHTS, _TIMM, _RECORD = "model.safetensors", "config.json", "dinox.json"


@dataclass(frozen=True)
class LoadedBackbone:
    """A frozen backbone with what is known of its past.

    Attributes:
        backbone: In evaluation, without gradient.
        source: How it was named.
        record: The pretraining record (recipe, holdout, mm per pixel, window policy ...); empty when none came along.
        sha256: Hash of the weights.
    """

    backbone: Backbone
    config: BackboneConfig
    source: str
    record: dict[str, Any]
    sha256: str

    @property
    def run_id(self) -> str:
        """The run that made it; "" when unknown."""
        return str(self.record.get("run_id", ""))


def save_backbone(folder: Path, backbone: Backbone, config: BackboneConfig, record: dict[str, Any]) -> None:
    """Write weights, timm's config and our record into a folder.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` opens it without this project.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.vit.state_dict().items()}
    save_file(state, folder / _WEIGHTS)
    (folder / _TIMM).write_text(json.dumps(_timm_config(backbone, config), indent=2), encoding="utf-8")
    fields = {name: getattr(config, name) for name in BackboneConfig.__slots__}
    (folder / _RECORD).write_text(json.dumps(record | {"backbone": fields}, indent=2), encoding="utf-8")


def _timm_config(backbone: Backbone, config: BackboneConfig) -> dict[str, Any]:
    vit, size = backbone.vit, backbone.image_px
    arguments: dict[str, Any] = {"img_size": size}
    match config.arch:
        case "vit_small" | "vit_large":
            name = f"{config.arch}_patch14_reg4_dinov2"
            if config.weights != "timm":
                arguments["init_values"] = None
        case "custom":
            name = "vit_tiny_patch16_224"
            arguments |= {
                "patch_size": config.patch_px,
                "embed_dim": config.embed_dim,
                "depth": config.depth,
                "num_heads": config.heads,
                "reg_tokens": config.registers,
                "no_embed_class": True,
            }
        case _:
            name = config.timm_name.split(".")[0].split(":")[-1]
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": vit.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "num_classes": 0,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "interpolation": "bicubic",
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def open_backbone(name: str, image_px: int | None = None) -> LoadedBackbone:
    """Open a backbone by `runs:/<id>/backbone`, a folder, or `timm:<name>`.

    Args:
        name: How it is named; a bare `runs:/<id>` means its `backbone`.
        image_px: Build it for this input instead of its own; positions are interpolated.

    Raises:
        ValueError: If the run, folder or timm name does not exist or holds no backbone.
    """
    if name.startswith("runs:/"):
        run_id, _, path = name.removeprefix("runs:/").partition("/")
        with tempfile.TemporaryDirectory() as folder:
            return _from_folder(
                name, tracking.fetch_artifact(run_id, path or ARTIFACT, Path(folder)), image_px
            )
    if name.startswith("timm:"):
        return _from_timm(name, image_px)
    if not Path(name).is_dir():
        raise ValueError(
            f"backbone '{name}' is no folder; give runs:/<run id>/backbone, a folder or timm:<name>"
        )
    return _from_folder(name, Path(name), image_px)


def _from_folder(source: str, folder: Path, image_px: int | None) -> LoadedBackbone:
    if not (folder / _RECORD).is_file():
        raise ValueError(
            f"backbone '{source}' holds no {_RECORD}; open other timm folders as timm:local-dir:FOLDER"
        )
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    fields = record["backbone"] | {"weights": "", "grad_checkpointing": False}
    if image_px is not None:
        fields["image_px"] = image_px
    config = BackboneConfig(**fields)
    backbone = build_backbone(config)
    load_weights(backbone, load_file(folder / _WEIGHTS), source)
    with (folder / _WEIGHTS).open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return LoadedBackbone(_frozen(backbone), config, source, record, digest)


def _from_timm(source: str, image_px: int | None) -> LoadedBackbone:
    name = source.removeprefix("timm:")
    config = BackboneConfig(arch="timm", timm_name=name, weights="timm", image_px=image_px or 224)
    backbone = _frozen(build_backbone(config))
    digest = hashlib.sha256()
    for key, tensor in sorted(backbone.vit.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().numpy().tobytes())
    return LoadedBackbone(backbone, config, source, {}, digest.hexdigest())


def chosen_backbone(name: str) -> str:
    """Return the name given, else that of the newest finished pretrain run.

    Raises:
        ValueError: If none was given and there is none.
    """
    if name:
        return name
    newest = tracking.newest_backbone_run()
    if newest is None:
        raise ValueError(
            f"there is no finished pretrain run in {tracking.tracking_uri()} to probe; first run"
            " `mlflow run . -e pretrain`, or give -P backbone=timm:<name>"
        )
    return f"runs:/{newest}/backbone"


def random_twin(loaded: LoadedBackbone, seed: int) -> Backbone:
    """Return the same architecture with random weights: the floor of every probe."""
    import torch

    fields = {name: getattr(loaded.config, name) for name in BackboneConfig.__slots__}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = build_backbone(BackboneConfig(**(fields | {"weights": ""})))
    return _frozen(twin)


def _frozen(backbone: Backbone) -> Backbone:
    return backbone.requires_grad_(False).eval()
