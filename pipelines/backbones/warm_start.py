"""First weights of a training: those of a backbone or of a file, in its own architecture or the recipe's."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.backbone import Backbone
from models.config import BackboneConfig
from models.loading import load_weights
from models.translation import translate
from pipelines.backbones.folder import LoadedBackbone, open_backbone
from pipelines.backbones.foreign import is_weight_file, read_state
from pipelines.backbones.hugging_face import HF


def resolved(config: BackboneConfig) -> BackboneConfig:
    """Return a configuration whose `arch` is no longer `weights` but what `weights` names, at the recipe's size.

    Raises:
        BackboneError: If it cannot be opened, or the recipe's images are no multiple of its patch.
    """
    if config.arch != "weights":
        return config
    # Silent: it is opened again, and what was chosen said, when its weights are loaded.
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = _opened(config)
    kept = {name: getattr(config, name) for name in ("weights", "image_px", "grad_checkpointing")}
    if loaded.config.arch != "timm":
        return dataclasses.replace(loaded.config, **kept)
    stated = loaded.timm_config["model_args"]
    arguments = {
        name: value for name, value in stated.items() if name not in ("img_size", "dynamic_img_size")
    }
    named = dataclasses.replace(config, arch="timm", timm_name=loaded.timm_config["architecture"])
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
    if opened is None and is_weight_file(source) and not Path(source).is_dir():
        state, notes = read_state(source)
        if not backbone.vit.state_dict().keys() <= state.keys():
            state, more = translate(state, source)
            notes += more
    else:
        opened = opened or _opened(config)
        state = dict(opened.backbone.vit.state_dict())
        backbone.mean, backbone.std = opened.backbone.mean, opened.backbone.std
    notes += load_weights(backbone, state, source)
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
