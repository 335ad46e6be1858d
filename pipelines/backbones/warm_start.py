"""First weights of a training: those of a backbone or of a file, in its own architecture or the recipe's."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.backbone import Backbone, BackboneError
from models.config import BackboneConfig
from models.inflation import inflated_state, told_nothing
from models.loading import load_weights
from models.translation import translate
from pipelines.backbones.folder import LoadedBackbone, open_backbone, timm_name_of
from pipelines.backbones.foreign import is_weight_file, read_state
from pipelines.backbones.hugging_face import HF
from pipelines.command.config import load_recipe


def resolved(config: BackboneConfig) -> BackboneConfig:
    """Return a configuration whose `arch` is no longer `weights` but what `weights` names, at the recipe's size.

    That of a 3D network says too whether its weights are inflated.

    Raises:
        BackboneError: If it cannot be opened, or is a 3D network and the recipe is not.
        RecipeError: If the recipe's images are no multiple of its patch.
    """
    if config.arch != "weights" and not (config.image_depth_px and config.weights):
        return config
    # Silent: it is opened again, and what was chosen said, when its weights are loaded.
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = _opened(config)
    if loaded.config.image_depth_px and not config.image_depth_px:
        raise BackboneError(
            f"{config.weights} reads cubes of {loaded.config.image_depth_px} voxels along z; set image_depth_px, and"
            " views.depth_px, to read cubes here too"
        )
    inflated = loaded.config.inflated if loaded.config.image_depth_px else config.image_depth_px > 0
    config = dataclasses.replace(config, inflated=inflated)
    if config.arch != "weights":
        return config
    config = dataclasses.replace(
        config,
        patch_depth_px=config.patch_depth_px or loaded.config.patch_depth_px,
        spacing="tokens" if "tokens" in (config.spacing, loaded.config.spacing) else "off",
    )
    names = (
        "weights",
        "image_px",
        "grad_checkpointing",
        "image_depth_px",
        "patch_depth_px",
        "inflate",
        "inflated",
    )
    kept = {name: getattr(config, name) for name in (*names, "spacing")}
    if loaded.config.arch != "timm":
        return load_recipe(BackboneConfig, dataclasses.asdict(loaded.config) | kept)
    stated = loaded.timm_config["model_args"]
    arguments = {
        name: value for name, value in stated.items() if name not in ("img_size", "dynamic_img_size")
    }
    named = dataclasses.replace(config, arch="timm", timm_name=timm_name_of(loaded))
    return dataclasses.replace(named, timm_args=json.dumps(arguments), norm_eps=loaded.config.norm_eps)


def _opened(config: BackboneConfig) -> LoadedBackbone:
    """Open what `weights` names; positions of others are resampled as their authors do, ours by `load_weights`."""
    return open_backbone(config.weights, config.image_px if config.weights.startswith(HF) else None)


def load_first_weights(
    backbone: Backbone, config: BackboneConfig, opened: LoadedBackbone | None = None
) -> Mapping[str, Sequence[str]]:
    """Load `weights` of a configuration, and print what was fitted.

    Args:
        backbone: Built from the configuration.
        config: Its `weights` is neither "" nor "timm".
        opened: What they name, where it is open already.

    Returns:
        The ids that they were trained on, {} if no one is known.

    Raises:
        BackboneError: If they cannot be opened or are of another architecture.
    """
    source, notes = config.weights, list[str]()
    is_file = opened is None and is_weight_file(source) and not Path(source).is_dir()
    if is_file and not backbone.image_depth_px:
        state, notes = read_state(source)
        if not backbone.vit.state_dict().keys() <= state.keys():
            state, more = translate(state, source)
            notes += more
    else:
        opened = opened or _opened(config)
        if backbone.image_depth_px and not opened.backbone.image_depth_px:
            state, notes = inflated_state(backbone, opened.backbone, config.inflate, source)
        else:
            state = dict(opened.backbone.vit.state_dict())
            backbone.mean, backbone.std = opened.backbone.mean, opened.backbone.std
    notes += load_weights(backbone, told_nothing(backbone, state), source)
    seen: Mapping[str, Sequence[str]] = opened.record.get("trained_on", {}) if opened else {}
    if not seen:
        notes.append("which patients these weights have seen is unknown")
    if notes:
        print(f"{source}: {'; '.join(notes)}")
    return seen


def first_weights(config: BackboneConfig, seen: Mapping[str, Sequence[str]]) -> str:
    """Say for the record whether it is known whom the first weights have seen; those of timm saw natural images."""
    if config.weights in ("", "timm"):
        return ""
    return "known" if seen else "unknown"
