"""What a fold's network learned, as files: adapters, head, or everything."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from pipelines.backbones.folder import LoadedBackbone, open_backbone
from pipelines.command.config import load_recipe
from pipelines.finetuning.config import FinetuneConfig
from pipelines.finetuning.network import AdapterError, Tuned
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.json_files import read_json
from probes.heads.fitting import learned

_WEIGHTS, _RECORD = "learned.safetensors", "finetuned.json"
_KEPT = ("mode", "lora_rank", "lora_targets", "features", "window", "size_mm")
"""Options that say how a network is built and read."""


def save_tuned(folder: Path, network: Tuned, loaded: LoadedBackbone) -> None:
    """Write what a network learned, less the backbone's frozen weights: with adapters below 1 MB for a ViT-S."""
    make_folder(folder)
    state = {name: one.detach().cpu().contiguous() for name, one in learned(network).items()}
    write_atomically(folder / _WEIGHTS, lambda file: file.write(save(state)))
    record = {name: getattr(network.config, name) for name in _KEPT}
    record |= {"mm_per_px": network.mm_per_px, "image_px": loaded.backbone.image_px}
    record |= {"backbone": loaded.source, "backbone_sha": loaded.sha256}
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(folder / _RECORD, lambda file: file.write(text.encode()))


def open_tuned(folder: Path, loaded: LoadedBackbone | None = None) -> Tuned:
    """Open what `save_tuned` wrote, on its backbone.

    Args:
        folder: Of the adapter.
        loaded: Its backbone; None: opened by the name that the folder states.

    Raises:
        AdapterError: If it was trained on another backbone, or one that is fetched from elsewhere.
    """
    needed = (*_KEPT, "mm_per_px", "image_px", "backbone", "backbone_sha")
    record: dict[str, Any] = read_json(folder / _RECORD, needed, "fine-tune again")
    if loaded is None:
        if str(record["backbone"]).startswith(("hf:", "timm:")):
            raise AdapterError(
                f"what was learned in {folder.name} belongs to backbone {record['backbone']}, which would be fetched"
                " because a file names it; open it yourself, and give it"
            )
        loaded = open_backbone(str(record["backbone"]), record["image_px"])
    if loaded.sha256 != record["backbone_sha"]:
        raise AdapterError(
            f"what was learned in {folder.name} belongs to backbone {record['backbone']}, whose weights are not those"
            f" of {loaded.source}; give that one"
        )
    config = load_recipe(FinetuneConfig, {name: record[name] for name in _KEPT})
    network = Tuned(loaded, config, record["mm_per_px"])
    network.load_state_dict(load_file(folder / _WEIGHTS), strict=False)
    return network.requires_grad_(False).eval()
