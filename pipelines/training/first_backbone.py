"""The network that a training begins with: built, given its first weights, checked against the views."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from models.backbone import Backbone, BackboneError, build_backbone
from models.stem import WhitenedStem
from pipelines.backbones.folder import LoadedBackbone, open_backbone
from pipelines.backbones.shipped import NETWORKS, is_box, sight_of
from pipelines.backbones.view_retrieval import render_rows, sample_slices
from pipelines.backbones.warm_start import load_first_weights
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.training.config import PretrainConfig


def first_backbone(
    config: PretrainConfig, cohort: Cohort, index: SliceIndex, held_out: Sequence[str]
) -> tuple[Backbone, Mapping[str, Sequence[str]]]:
    """Build the backbone with its first weights; return the ids that these were trained on, {} if no one is known."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.backbone)
    seen: Mapping[str, Sequence[str]] = {}
    if isinstance(backbone.stem, WhitenedStem):
        backbone.stem.fit(_first_views(config, index))
    # Checked here: the patch of a timm model is known only when it is built.
    for name, patch_px in (("local_size_px", backbone.patch_px), ("local_depth_px", backbone.patch_depth_px)):
        side_px = getattr(config.views, name)
        if config.views.n_local and patch_px and side_px % patch_px:
            raise BackboneError(f"views.{name} {side_px} is not a multiple of the patch of {patch_px} px")
    mean, std = config.views.channel_mean, config.views.channel_std
    if (
        backbone.image_depth_px
    ):  # 2D weights are fitted to it, so that they see the gray values that they know.
        backbone.mean, backbone.std = mean, std
    source = config.backbone.weights
    if source not in ("", "timm"):
        box = _box_network(source, cohort, held_out) if is_box(source) else None
        seen = load_first_weights(backbone, config.backbone, box)
        if (backbone.mean, backbone.std) != (mean, std):
            print(
                f"{source} was given gray values with mean {backbone.mean} and SD {backbone.std}; views.mean and"
                f" views.std of this recipe are {mean} and {std}"
            )
    # Probes normalize images as in training.
    backbone.mean, backbone.std = mean, std
    return backbone, seen


def _box_network(source: str, cohort: Cohort, held_out: Sequence[str]) -> LoadedBackbone:
    """Open the first network of `shipped:NAME` that saw none of the patients who are held out here."""
    networks = [open_backbone(f"{source}/{name}") for name in NETWORKS]
    sight = sight_of(cohort, held_out, [one.record["trained_on"] for one in networks])
    for number, one in enumerate(networks):
        if len(sight.unseen(number)) == len(held_out):
            return one
    raise BackboneError(
        f"every network of {source} was trained on patients that this run holds out; give holdout=half_a,"
        " half_b or 0"
    )


def _first_views(config: PretrainConfig, index: SliceIndex, at_most: int = 256) -> torch.Tensor:
    """Render views of evenly chosen training slices, (N, 3, S, S), on the CPU: the same in every process."""
    sample, cpu = sample_slices(index, config.views, at_most), torch.device("cpu")
    parts = np.array_split(sample.rows, max(len(sample.rows) // 32, 1))
    return torch.cat([render_rows(sample, rows, cpu).flatten(0, 1) for rows in parts])
