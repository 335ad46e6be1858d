"""Two training-style views of many slices through frozen backbones: what retrieval and representation look at."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.backbone import Backbone
from pipelines.backbones.folder import LoadedBackbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import load_recipe, read_yaml
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.setup import unseen_patients
from pipelines.tracking.store import client
from pipelines.training.config import PretrainConfig
from transforms.views.batch import draw_views, render_views
from transforms.views.config import ViewConfig

TokenName = Literal["class_token", "mean_patch"]
Tokens = dict[TokenName, NDArray[np.float32]]

_VIEW_SEED = 2**31 - 1
"""Views of an evaluation are the same in every run."""


@dataclass(frozen=True)
class SliceSample:
    """Some slices of some patients, spread evenly over all that these patients have.

    Attributes:
        index: All slices of the patients.
        rows: Those chosen, (N,).
        views: How a view is drawn.
    """

    index: SliceIndex
    rows: NDArray[np.int64]
    views: ViewConfig

    @property
    def patient_ids(self) -> NDArray[np.str_]:
        """Patient of each slice, (N,)."""
        return np.array(self.index.patient_ids)[self.index.volume[self.rows]]

    @property
    def series_ids(self) -> NDArray[np.str_]:
        """Volume of each slice, (N,)."""
        return np.array(self.index.volume_ids)[self.index.volume[self.rows]]

    @property
    def slice_index(self) -> NDArray[np.int32]:
        """Place of each slice in its volume, (N,)."""
        return np.asarray(self.index.z[self.rows], dtype=np.int32)


def sample_slices(cohort: Cohort, patients: set[str], views: ViewConfig, n_slices: int) -> SliceSample:
    """Choose up to `n_slices` slices of `patients`, evenly over their volumes.

    Raises:
        ValueError: If they have fewer than two slices.
    """
    index = SliceIndex(cohort, patients)
    if len(index) < 2:
        raise ValueError(
            f"{len(patients)} held-out patients have {len(index)} slices in cohort {cohort.root}; retrieval needs two"
        )
    rows = np.linspace(0, len(index) - 1, min(n_slices, len(index))).astype(np.int64)
    return SliceSample(index, rows, dataclasses.replace(views, n_local=0))


def patients_to_test(
    loaded: LoadedBackbone, cohort: Cohort, leak: Literal["avoid", "allow"]
) -> tuple[set[str], str]:
    """Return the patients to test on, and what that leaks: those that the backbone did not see, if that is known."""
    everyone = cohort.series["patient_id"].to_numpy(dtype=np.str_)
    unseen = unseen_patients(loaded, everyone)
    all_patients = {str(patient) for patient in everyone}
    if leak == "allow":
        return all_patients, "" if unseen == all_patients else "allowed"
    if unseen is None:
        return all_patients, "unknown"
    return (unseen, "") if unseen else (all_patients, "no_holdout")


def of_rows(nodules: NoduleSet, rows: NDArray[np.int64]) -> NoduleSet:
    """Return the nodules at these rows, in this order."""
    return dataclasses.replace(
        nodules,
        table=nodules.table.iloc[rows].reset_index(drop=True),
        crops_hu=nodules.crops_hu[rows],
        is_replicated=nodules.is_replicated[rows],
        mm_per_px=nodules.mm_per_px[rows],
        place_mm=None if nodules.place_mm is None else nodules.place_mm[rows],
    )


def training_views(loaded: LoadedBackbone) -> tuple[ViewConfig, str]:
    """Return how the views of a backbone's pretraining were drawn, and where that is known from.

    A backbone that is no run's has the default views of its input size.
    """
    if not loaded.source.startswith("runs:/"):
        (r, g, b), (r_std, g_std, b_std) = loaded.backbone.mean, loaded.backbone.std
        views = ViewConfig(size_px=loaded.backbone.image_px, mean=(r, g, b), std=(r_std, g_std, b_std))
        return views, "default views"
    with tempfile.TemporaryDirectory() as folder:
        run_id = loaded.source.removeprefix("runs:/").partition("/")[0]
        file = client().download_artifacts(run_id, "config.yaml", folder)
        views = load_recipe(PretrainConfig, read_yaml(Path(file))).views
    return dataclasses.replace(views, size_px=loaded.backbone.image_px), "views of its pretraining"


@torch.no_grad()
def encode_views(
    sample: SliceSample, backbones: Mapping[str, Backbone], device: torch.device, batch_size: int = 64
) -> dict[str, Tokens]:
    """Encode both views of every slice with every backbone; each view is rendered once.

    Returns:
        By backbone and token: (2, N, D). Memory is bounded by the batch, beside these.
    """
    parts: dict[str, dict[TokenName, list[torch.Tensor]]] = {
        name: {"class_token": [], "mean_patch": []} for name in backbones
    }
    networks = {name: backbone.to(device).eval() for name, backbone in backbones.items()}
    starts = range(0, len(sample.rows), batch_size)
    for start in tqdm(starts, desc="views", unit="batch", disable=None, leave=False):
        views = render_rows(sample, sample.rows[start : start + batch_size], device)
        for name, network in networks.items():
            tokens = network(views.flatten(0, 1))
            both = {"class_token": tokens.class_token, "mean_patch": tokens.patch_tokens.mean(dim=1)}
            for token, lists in parts[name].items():
                lists.append(both[token].unflatten(0, views.shape[:2]).float().cpu())
    return {
        name: {token: torch.cat(lists, dim=1).numpy() for token, lists in found.items()}
        for name, found in parts.items()
    }


def render_rows(sample: SliceSample, rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Render the two views of some slices, (2, B, 3, S, S): the same views whenever they are asked for."""
    batch = sample.index.read(rows)
    draws = draw_views(batch, sample.views, _VIEW_SEED, 0)
    return render_views(batch.to(device), draws, sample.views).global_views
