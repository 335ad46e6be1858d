"""Does the third dimension add information, and which pooling keeps it?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from models.aggregators import AggregatorName
from pipelines.backbones.cube_features import encode_nodule_cubes
from pipelines.backbones.cube_tokens import CUBES_AT_ONCE, cube_spec
from pipelines.backbones.features import encode
from pipelines.backbones.folder import LoadedBackbone, random_twin
from pipelines.cohort.folder import Cohort
from pipelines.cohort.meta_volume import crop_at
from pipelines.nodule.cubes import Cubes
from pipelines.nodule.labeled import NoduleSet, nodule_set, places_mm
from pipelines.probing.config import AggregationConfig
from pipelines.probing.readers import ProbeError, Reader, open_backbones, readers_of
from pipelines.probing.setup import among, labeled_nodules, open_cohort, settled_folds
from pipelines.runtime.distributed import choose_device
from pipelines.runtime.progress import progress
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.aggregation import (
    VOLUMETRIC,
    VOLUMETRIC_RANDOM,
    AggregationPart,
    SliceTokens,
    compare_aggregators,
)
from transforms.nodule_crop import CropSpec
from transforms.refusal import number_of

_NAMES: tuple[AggregatorName, ...] = ("center", "mean", "max", "center3_mean", "center3_max", "attention_z")


def run_aggregation(config: AggregationConfig, run: Run) -> None:
    """Encode slices and planes around each nodule, pool them, and test each pooling against the center slice.

    With `volumetric`, so are the vectors that a 3D backbone gives to the cube around each nodule.

    Raises:
        NoNodulesError: If the cohort holds patches only: their length in z is that of the nodule and reveals its label.
        ProbeError: If slices are asked of a 3D backbone, or cubes of a 2D one.
    """
    cohort, backbones = open_cohort(config), open_backbones(config.backbone)
    if backbones[0].backbone.image_depth_px:
        raise ProbeError(
            f"{backbones[0].source} reads cubes, so there are no slices of it to pool; name it by volumetric="
            " and a 2D backbone by backbone="
        )
    size_px, device = backbones[0].backbone.image_px, choose_device(config.device)
    everyone = labeled_nodules(config, cohort, CropSpec(size_mm=config.size_mm, out_px=size_px))
    cut = nodule_set(cohort, config.rule, CropSpec(form="planes", size_mm=config.size_mm, out_px=size_px))
    nodules = among(everyone, cut)
    print(f"backbone {config.backbone or backbones[0].source}; {number_of(len(nodules.labels), 'nodule')}")
    readers = readers_of(config.backbone, backbones, cohort, nodules.patient_ids, config.leak)
    volumes = volumes_beside(config, readers, cohort, nodules)
    together = [joined(*pair) for pair in zip(readers, volumes, strict=True)] if volumes else readers
    all_folds = settled_folds(config, run, cohort, together, nodules)
    if volumes:
        run.set_tags({Tag.PROBED_VOLUMES: ",".join(one.loaded.source for one in volumes)})
    parts = [
        AggregationPart(
            slices_around(config, cohort, nodules, reader.loaded, device),
            folds,
            planes_through(config, among(cut, nodules), reader.loaded, device),
            volumetric_vectors(config, cohort, nodules, volumes[number].loaded) if volumes else {},
        )
        for number, (reader, folds) in enumerate(zip(readers, all_folds, strict=True))
    ]
    labels, patients = nodules.labels, nodules.patient_ids
    table = compare_aggregators(parts, labels, patients, _NAMES, seed=config.seed, device=device)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    run.log_metrics(metrics_of(table))
    run.log_table(table, "tables/aggregation.csv")


def volumes_beside(
    config: AggregationConfig, readers: Sequence[Reader[LoadedBackbone]], cohort: Cohort, nodules: NoduleSet
) -> list[Reader[LoadedBackbone]]:
    """Open the 3D backbones of the option `volumetric`, one beside each reader of slices.

    Raises:
        ProbeError: If there are more or fewer, one reads no cubes, or no patient is left that both may test.
    """
    if not config.volumetric:
        return []
    opened = open_backbones(config.volumetric)
    flat = [loaded.source for loaded in opened if not loaded.backbone.image_depth_px]
    if flat:
        raise ProbeError(f"volumetric={flat[0]} reads slices; name a 3D backbone, or leave it out")
    found = readers_of(config.volumetric, opened, cohort, nodules.patient_ids, config.leak)
    if len(found) != len(readers):
        raise ProbeError(
            f"volumetric names {len(found)} backbones and backbone {len(readers)}; name as many, in one order"
        )
    for one, other in zip(readers, found, strict=True):
        if not one.tested & other.tested:
            raise ProbeError(
                f"no patient may be tested by both {one.loaded.source} and {other.loaded.source}; pretrain both with"
                " one holdout"
            )
    return found


def joined(slices: Reader[LoadedBackbone], volumes: Reader[LoadedBackbone]) -> Reader[LoadedBackbone]:
    """Return the reader of slices with the patients that both may test, and the leaks of both."""
    leaks = dict.fromkeys(filter(None, (slices.leak, volumes.leak)))
    return Reader(slices.loaded, slices.tested & volumes.tested, "; ".join(leaks))


def volumetric_vectors(
    config: AggregationConfig, cohort: Cohort, nodules: NoduleSet, loaded: LoadedBackbone
) -> dict[str, NDArray[np.float64]]:
    """Return the vectors of the cubes of a 3D backbone and of its random twin, (n, D) each.

    Raises:
        ProbeError: If slices are missing inside a cube.
    """
    cubes = Cubes.around(cohort, nodules.table, cube_spec(loaded, config.size_mm))
    missing = int((~cubes.can_be_cut()).sum())
    if missing:
        raise ProbeError(
            f"slices are missing inside the cubes of {number_of(missing, 'nodule')}, so that not all rows are of"
            " the same ones; take a smaller size_mm"
        )
    device = choose_device(config.device)
    networks = {VOLUMETRIC: loaded.backbone, VOLUMETRIC_RANDOM: random_twin(loaded, config.seed)}
    return {
        name: encode_nodule_cubes(
            network, cubes.batches(CUBES_AT_ONCE), config.window, config.features, device, loaded.hu_scale
        ).astype(np.float64)
        for name, network in networks.items()
    }


def planes_through(
    config: AggregationConfig, nodules: NoduleSet, loaded: LoadedBackbone, device: torch.device
) -> SliceTokens:
    """Encode the axial, the coronal and the sagittal triplet through each nodule."""
    tokens = torch.from_numpy(
        np.stack(
            [
                _encode(config, loaded, planes, device, float(slice_mm))
                for planes, slice_mm in zip(nodules.crops_hu, nodules.table["spacing_z_mm"], strict=True)
            ]
        )
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
    for nodule in progress(nodules.table.to_dict("records"), desc="slices", unit="nodule", leave=False):
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
        slice_mm = float(row["spacing_mm"][0])
        tokens.append(torch.from_numpy(_encode(config, loaded, crops[is_there], device, slice_mm)))
        positions.append(torch.from_numpy(position_mm[is_there]).float())
    is_real = [torch.ones(len(of_nodule), dtype=torch.bool) for of_nodule in tokens]
    return SliceTokens(*(pad_sequence(part, batch_first=True) for part in (tokens, positions, is_real)))


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """Return `aggregation/<name>_auroc` with interval, and the gain over the center slice with Holm's p.

    Of `attention_z` also the difference from its own network on the center slice alone, of `volumetric` that from
    random weights.
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
        "minus_random": "over_random",
        "minus_random_ci_low": "over_random_ci_low",
        "minus_random_ci_high": "over_random_ci_high",
        "random_p": "over_random_p",
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
    slice_mm: float,
) -> NDArray[np.float32]:
    mm_per_px = config.size_mm / loaded.backbone.image_px
    return encode(
        loaded.backbone,
        crops_hu,
        mm_per_px,
        config.window,
        config.features,
        device,
        loaded.hu_scale,
        slice_mm=slice_mm,
    )
