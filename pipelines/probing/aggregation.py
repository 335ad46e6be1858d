"""Does the third dimension add information, and which pooling keeps it?"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from models.aggregators import AggregatorName
from pipelines.backbones.features import encode
from pipelines.backbones.folder import LoadedBackbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.meta_volume import crop_at
from pipelines.nodule.labeled import NoduleSet, nodule_set, places_mm
from pipelines.probing.config import AggregationConfig
from pipelines.probing.readers import open_backbones, readers_of
from pipelines.probing.setup import among, labeled_nodules, open_cohort, settled_folds
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.run import Run
from probes.aggregation import AggregationPart, SliceTokens, compare_aggregators
from transforms.nodule_crop import CropSpec

_NAMES: tuple[AggregatorName, ...] = ("center", "mean", "center3_mean", "center3_max", "attention_z")


def run_aggregation(config: AggregationConfig, run: Run) -> None:
    """Encode slices and planes around each nodule, pool them, and test each pooling against the center slice.

    Raises:
        NoNodulesError: If the cohort holds patches only: their length in z is that of the nodule and reveals its label.
    """
    cohort, backbones = open_cohort(config), open_backbones(config.backbone)
    size_px, device = backbones[0].backbone.image_px, choose_device(config.device)
    everyone = labeled_nodules(config, cohort, CropSpec(size_mm=config.size_mm, out_px=size_px))
    cut = nodule_set(cohort, config.rule, CropSpec(form="planes", size_mm=config.size_mm, out_px=size_px))
    nodules = among(everyone, cut)
    print(f"backbone {config.backbone or backbones[0].source}; {len(nodules.labels)} nodules")
    readers = readers_of(config.backbone, backbones, cohort, nodules.patient_ids, config.leak)
    parts = [
        AggregationPart(
            slices_around(config, cohort, nodules, reader.loaded, device),
            folds,
            planes_through(config, among(cut, nodules), reader.loaded, device),
        )
        for reader, folds in zip(readers, settled_folds(config, run, cohort, readers, nodules), strict=True)
    ]
    labels, patients = nodules.labels, nodules.patient_ids
    table = compare_aggregators(parts, labels, patients, _NAMES, seed=config.seed, device=device)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    run.log_metrics(metrics_of(table))
    run.log_table(table, "tables/aggregation.csv")


def planes_through(
    config: AggregationConfig, nodules: NoduleSet, loaded: LoadedBackbone, device: torch.device
) -> SliceTokens:
    """Encode the axial, the coronal and the sagittal triplet through each nodule."""
    tokens = torch.from_numpy(
        np.stack([_encode(config, loaded, planes, device) for planes in nodules.crops_hu])
    )
    is_real = torch.ones(tokens.shape[:2], dtype=torch.bool)
    return SliceTokens(tokens, torch.zeros(tokens.shape[:2]), is_real)


def slices_around(
    config: AggregationConfig,
    cohort: Cohort,
    nodules: NoduleSet,
    loaded: LoadedBackbone,
    device: torch.device,
) -> SliceTokens:
    """Encode a triplet at every slice within the range of each nodule's center, padded to the longest.

    Beyond the end of a volume, or a gap, there is padding, no repeated slice. Nodules are encoded one by one, because
    the crops of all slices of all nodules would not fit into memory.
    """
    series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    tokens, positions = [], []
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
        crops = crop_at(cohort, row, center, spec).hu
        position_mm, is_there = places_mm(row, center, len(crops))
        tokens.append(torch.from_numpy(_encode(config, loaded, crops[is_there], device)))
        positions.append(torch.from_numpy(position_mm[is_there]).float())
    is_real = [torch.ones(len(of_nodule), dtype=torch.bool) for of_nodule in tokens]
    return SliceTokens(*(pad_sequence(part, batch_first=True) for part in (tokens, positions, is_real)))


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """Return `aggregation/<name>_auroc` with interval, and the gain over the center slice with Holm's p.

    Of `attention_z` also the difference from its own network on the center slice alone.
    """
    columns = {
        "auroc": "auroc",
        "auroc_ci_low": "auroc_ci_low",
        "auroc_ci_high": "auroc_ci_high",
        "minus_center": "gain",
        "minus_center_ci_low": "gain_ci_low",
        "minus_center_ci_high": "gain_ci_high",
        "p_holm": "gain_p_holm",
        "minus_own_center": "over_own_center",
        "minus_own_center_ci_low": "over_own_center_ci_low",
        "minus_own_center_ci_high": "over_own_center_ci_high",
        "own_center_p": "over_own_center_p",
    }
    metrics = {
        f"aggregation/{line['aggregator']}_{name}": float(line[column])
        for line in table.to_dict("records")
        for column, name in columns.items()
        if np.isfinite(line.get(column, np.nan))
    }
    return metrics | {"aggregation/n_nodules": float(table["n_nodules"].iloc[0])}


def _encode(
    config: AggregationConfig,
    loaded: LoadedBackbone,
    crops_hu: NDArray[np.float32],
    device: torch.device,
) -> NDArray[np.float32]:
    mm_per_px = config.size_mm / loaded.backbone.image_px
    return encode(
        loaded.backbone, crops_hu, mm_per_px, config.window, config.features, device, loaded.hu_scale
    )
