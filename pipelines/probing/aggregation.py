"""Does the third dimension tell anything, and which pooling keeps it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.aggregators import AggregatorName
from pipelines.backbones.features import encode
from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone
from pipelines.cohort.folder import Cohort
from pipelines.ingest.default_cohort import ensure_cohort
from pipelines.nodule.labeled import NoduleSet, nodule_set, places_mm, tell_of_doubtful_places
from pipelines.probing.config import AggregationConfig
from pipelines.probing.setup import fold_plan, tag_probe
from pipelines.probing.view_tokens import of_rows
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.run import Run
from probes.aggregation import SliceTokens, compare_aggregators
from transforms.nodule_crop import CropSpec, crop_nodule

_NAMES: tuple[AggregatorName, ...] = ("center", "mean", "center3_mean", "center3_max", "attention_z")


def run_aggregation(config: AggregationConfig, run: Run) -> None:
    """Encode slices and planes around each nodule, pool them in every way, and test each against the center slice.

    Raises:
        ValueError: If the cohort holds patches: they are as long as their nodules, and would tell the label.
    """
    ensure_cohort(Path(config.cohort))
    cohort = Cohort.open(Path(config.cohort))
    loaded = open_backbone(chosen_backbone(config.backbone))
    spec = CropSpec(size_mm=config.size_mm, out_px=loaded.backbone.image_px)
    everyone = nodule_set(cohort, config.rule, spec)
    tell_of_doubtful_places(everyone)
    nodules = with_planes(cohort, config, everyone, loaded.backbone.image_px)
    print(f"backbone {loaded.source}; {len(nodules.labels)} nodules")
    plan = fold_plan(config, loaded, nodules)
    tag_probe(run, loaded, cohort, plan.leak, nodules.mm_per_px)

    device = choose_device(config.device)
    table = compare_aggregators(
        slices_around(config, cohort, nodules, loaded, device),
        nodules.labels,
        nodules.patient_ids,
        plan.folds,
        _NAMES,
        planes_through(config, cohort, nodules, loaded, device),
        seed=config.seed,
        device=device,
    )
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    run.log_metrics(metrics_of(table))
    run.log_table(table, "tables/aggregation.csv")
    run.log_table(plan.table, "tables/splits.parquet")


def with_planes(cohort: Cohort, config: AggregationConfig, nodules: NoduleSet, out_px: int) -> NoduleSet:
    """Return the nodules that all three planes can be cut through, so that every row has the same ones.

    Raises:
        ValueError: If there are none.
    """
    cut = nodule_set(cohort, config.rule, CropSpec(form="planes", size_mm=config.size_mm, out_px=out_px))
    kept = np.flatnonzero(nodules.table["nodule_id"].isin(cut.table["nodule_id"]))
    if len(kept) < len(nodules.labels):
        print(
            f"{len(nodules.labels) - len(kept)} nodules have no coronal and sagittal plane and are left out"
        )
    return of_rows(nodules, kept)


def slices_around(
    config: AggregationConfig,
    cohort: Cohort,
    nodules: NoduleSet,
    loaded: LoadedBackbone,
    device: torch.device,
) -> SliceTokens:
    """Encode a triplet at every slice within the range of each nodule's center, padded to the longest.

    Beyond the end of a volume, or a gap, the place is padding: nothing is repeated there. Nodule by nodule, because the
    crops of all slices of all nodules would not fit into memory.
    """
    series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    encoded: list[tuple[NDArray[np.float32], NDArray[np.float64]]] = []
    for nodule in tqdm(
        nodules.table.to_dict("records"), desc="slices", unit="nodule", disable=None, leave=False
    ):
        row = series[str(nodule["volume_id"])]
        center = [float(nodule[f"{axis}_lps_mm"]) for axis in "xyz"]
        spec = CropSpec(
            form="slices",
            size_mm=config.size_mm,
            out_px=loaded.backbone.image_px,
            z_range_mm=config.z_range_mm,
        )
        crops = _crop(cohort, row, center, spec)
        position_mm, is_there = places_mm(row, center, len(crops))
        tokens = _encode(config, loaded, crops[is_there], device)
        encoded.append((tokens, position_mm[is_there]))
    longest = max(len(tokens) for tokens, _ in encoded)
    all_tokens = torch.zeros(len(encoded), longest, encoded[0][0].shape[1])
    positions, mask = torch.zeros(len(encoded), longest), torch.zeros(len(encoded), longest, dtype=torch.bool)
    for number, (tokens, position_mm) in enumerate(encoded):
        all_tokens[number, : len(tokens)] = torch.from_numpy(tokens)
        positions[number, : len(tokens)] = torch.from_numpy(position_mm).float()
        mask[number, : len(tokens)] = True
    return SliceTokens(all_tokens, positions, mask)


def planes_through(
    config: AggregationConfig,
    cohort: Cohort,
    nodules: NoduleSet,
    loaded: LoadedBackbone,
    device: torch.device,
) -> SliceTokens:
    """Encode the axial, the coronal and the sagittal triplet through each nodule."""
    series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    spec = CropSpec(form="planes", size_mm=config.size_mm, out_px=loaded.backbone.image_px)
    tokens = []
    for nodule in tqdm(
        nodules.table.to_dict("records"), desc="planes", unit="nodule", disable=None, leave=False
    ):
        center = [float(nodule[f"{axis}_lps_mm"]) for axis in "xyz"]
        crops = _crop(cohort, series[str(nodule["volume_id"])], center, spec)
        tokens.append(_encode(config, loaded, crops, device))
    stacked = torch.from_numpy(np.stack(tokens))
    return SliceTokens(
        stacked, torch.zeros(stacked.shape[:2]), torch.ones(stacked.shape[:2], dtype=torch.bool)
    )


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """`aggregation/<name>_auroc` with interval, and its gain over the center slice with p after Holm."""
    columns = {"auroc": "auroc", "auroc_ci_low": "auroc_ci_low", "auroc_ci_high": "auroc_ci_high"}
    columns |= {
        "minus_center": "gain",
        "minus_center_ci_low": "gain_ci_low",
        "minus_center_ci_high": "gain_ci_high",
    }
    columns |= {"p_holm": "gain_p_holm"}
    metrics = {
        f"aggregation/{line['aggregator']}_{name}": float(line[column])
        for line in table.to_dict("records")
        for column, name in columns.items()
        if np.isfinite(line.get(column, np.nan))
    }
    return metrics | {"aggregation/n_nodules": float(table["n_nodules"].iloc[0])}


def _crop(cohort: Cohort, row: Any, center: list[float], spec: CropSpec) -> NDArray[np.float32]:
    return crop_nodule(
        cohort.volume(str(row["volume_id"])),
        list(row["affine_ras"]),
        center,
        spec,
        [int(gap) for gap in row["gaps"]],
        list(row["slice_offsets_mm"]),
        is_patch=row["kind"] == "patch",
    ).hu


def _encode(
    config: AggregationConfig,
    loaded: LoadedBackbone,
    crops_hu: NDArray[np.float32],
    device: torch.device,
) -> NDArray[np.float32]:
    hu_scale, mm_per_px = float(loaded.record.get("hu_scale", 1.0)), config.size_mm / loaded.backbone.image_px
    return encode(loaded.backbone, crops_hu, mm_per_px, config.window, config.features, device, hu_scale)
