"""Networks trained on the labels themselves, in the folds of the other probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipelines.backbones.features import WINDOWS_HU
from pipelines.backbones.folder import open_backbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.kind import cohort_kind
from pipelines.ingest.default_cohort import ensure_cohort
from pipelines.nodule.labeled import NoduleSet, nodule_set, tell_of_doubtful_places
from pipelines.nodule.refusals import NoNodulesError
from pipelines.probing.config import SupervisedConfig
from pipelines.probing.figures import roc_figure
from pipelines.probing.setup import fold_plan, tag_probe, tell_of_unknown_diameters
from pipelines.probing.tables import short_table
from pipelines.probing.view_tokens import of_rows
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.evaluation import evaluate_nodules, headline
from probes.heads.fitting import FitSettings
from probes.heads.linear import Probe, Samples, cross_fit
from probes.pixels import PIXEL_OUT_PX, PIXEL_SIZE_MM, PixelProbe, pixel_features
from probes.splits import patient_folds
from probes.supervised import SupervisedProbe
from transforms.hounsfield import window_hu
from transforms.nodule_crop import CropSpec
from transforms.views.config import IMAGENET_MEAN, IMAGENET_STD


def run_supervised(config: SupervisedConfig, run: Run) -> None:
    """Cross-fit the networks and print them beside diameter and pixels on the same nodules and folds."""
    ensure_cohort(Path(config.cohort))
    cohort = Cohort.open(Path(config.cohort))
    flat, cubes = inputs_of(config, cohort)
    tell_of_doubtful_places(flat)
    tell_of_unknown_diameters(flat)
    folds = _folds(config, cohort, flat, run)
    images = {} if config.networks == "3d" else {"supervised_2d": _gray_2d(flat)}
    if cubes is not None:
        images["supervised_3d"] = _gray_3d(cubes)
    pixels = nodule_set(cohort, config.rule, CropSpec(size_mm=PIXEL_SIZE_MM, out_px=PIXEL_OUT_PX))
    same = np.isin(pixels.table["nodule_id"], flat.table["nodule_id"])
    rows = {
        "pixels": _scores(
            lambda: PixelProbe(seed=config.seed), pixel_features(pixels.crops_hu[same]), flat, folds
        )
    }
    for name, shown in images.items():
        print(
            f"training {name} on {tuple(shown.shape)}, {len(folds)} folds, at most {_epochs(config)} epochs"
        )
        rows[name] = _scores(_factory(config, name), shown, flat, folds)
    table = evaluate_nodules(
        flat.labels, rows, flat.diameter_mm, flat.patient_ids, None, config.n_bootstrap, config.seed
    )
    print(short_table(table))
    if config.max_epochs == 0 and choose_device(config.device).type == "cpu":
        print(
            "six epochs are few for a network that starts from random weights; -P max_epochs=40 gives it time"
        )
    run.log_metrics(headline(table) | {"probe/max_epochs": float(_epochs(config))})
    run.log_table(table, "tables/supervised.csv")
    tested = np.isfinite(rows["pixels"])
    kept = flat.table[["nodule_id", "patient_id", "diameter_mm", "is_malignant"]].assign(**rows)[tested]
    run.log_table(kept, "tables/predictions.parquet")
    shown_rows = rows | ({"diameter": flat.diameter_mm} if flat.has_diameters else {})
    curves = {name: values[tested] for name, values in shown_rows.items()}
    run.log_figure(roc_figure(flat.labels[tested], curves), "figures/roc.png")


def inputs_of(config: SupervisedConfig, cohort: Cohort) -> tuple[NoduleSet, NoduleSet | None]:
    """Return crops and cubes of the same nodules; no cubes where the cohort cannot give any, with a printed reason.

    Raises:
        ValueError: If there are no crops, or networks=3d and there are no cubes.
    """
    flat = nodule_set(cohort, config.rule, CropSpec(size_mm=config.size_mm, out_px=config.image_px))
    if config.networks == "2d":
        return flat, None
    try:
        cubes = nodule_set(
            cohort, config.rule, CropSpec(form="cube", size_mm=config.size_mm, out_px=config.cube_px)
        )
    except NoNodulesError as reason:
        if config.networks == "3d":
            raise
        print(f"supervised_3d: not measured: {reason}")
        return flat, None
    in_both = np.intersect1d(flat.table["nodule_id"], cubes.table["nodule_id"])
    if len(in_both) < len(flat.labels):
        print(f"{len(flat.labels) - len(in_both)} nodules have no cube and are left out of every row")
    return (
        of_rows(flat, np.flatnonzero(flat.table["nodule_id"].isin(in_both))),
        of_rows(cubes, np.flatnonzero(cubes.table["nodule_id"].isin(in_both))),
    )


def _folds(config: SupervisedConfig, cohort: Cohort, flat: NoduleSet, run: Run) -> list[Any]:
    if config.backbone:
        loaded = open_backbone(config.backbone)
        plan = fold_plan(config, loaded, flat)
        tag_probe(run, loaded, cohort, plan.leak, flat.mm_per_px)
        run.log_table(plan.table, "tables/splits.parquet")
        return plan.folds
    everyone = set(flat.patient_ids.tolist())  # no backbone has seen anybody
    splits = patient_folds(
        flat.patient_ids.tolist(),
        flat.labels,
        unseen=everyone,
        n_folds=config.folds,
        n_repeats=config.repeats,
        seed=config.seed,
    )
    run.set_tags({Tag.COHORT_SHA: cohort.sha256, Tag.COHORT_KIND: cohort_kind(cohort)})
    run.log_table(splits.table(), "tables/splits.parquet")
    return list(splits.folds)


def _factory(config: SupervisedConfig, name: str) -> Callable[[], SupervisedProbe]:
    device, epochs = choose_device(config.device), _epochs(config)
    settings = FitSettings(
        lr=config.lr, batch_size=config.batch_size, max_epochs=epochs, patience=config.patience
    )
    if name == "supervised_3d":
        return lambda: SupervisedProbe("resnet18_3d", None, settings, config.seed, device)
    weights = _weights(config.weights)
    return lambda: SupervisedProbe("resnet18", weights, settings, config.seed, device)


def _epochs(config: SupervisedConfig) -> int:
    return config.max_epochs or (6 if choose_device(config.device).type == "cpu" else 40)


def _weights(path: str) -> Mapping[str, torch.Tensor] | None:
    if not path:
        return None
    if not Path(path).is_file():
        raise ValueError(
            f"weights names {path}, which does not exist; give a .safetensors file of timm's resnet18"
        )
    state: Mapping[str, torch.Tensor] = load_file(path)
    return state


def _scores(
    factory: Callable[[], Probe[Any]], shown: Samples, nodules: NoduleSet, folds: list[Any]
) -> NDArray[np.float64]:
    return cross_fit(factory, shown, nodules.labels, nodules.patient_ids, folds)


def _gray_2d(nodules: NoduleSet) -> torch.Tensor:
    """Triplets under the lung window, normalized as ImageNet's networks expect, (n, 3, P, P)."""
    gray = window_hu(torch.from_numpy(nodules.crops_hu), *WINDOWS_HU["lung"])
    return (gray - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def _gray_3d(nodules: NoduleSet) -> torch.Tensor:
    """Cubes under the lung window, centered on mid-gray, (n, 1, P, P, P)."""
    return (window_hu(torch.from_numpy(nodules.crops_hu), *WINDOWS_HU["lung"]) - 0.5) / 0.25
