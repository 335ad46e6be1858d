"""Networks trained on the labels, in the folds of the other probes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipelines.cohort.folder import Cohort, NoNodulesError
from pipelines.encoders.source import Source
from pipelines.nodule.labeled import NoduleSet, nodule_set
from pipelines.probing.config import SupervisedConfig
from pipelines.probing.fold_record import Claimed, FoldRecord, claimed, epoch_figure, epoch_table
from pipelines.probing.folds import Fold
from pipelines.probing.readers import ProbeError, Reader, open_backbones, readers_of
from pipelines.probing.setup import (
    among,
    labeled_nodules,
    log_scores,
    open_cohort,
    pixels_of,
    report_unknown_diameters,
    settled_folds,
    short_table,
)
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.run import Run
from probes.evaluation import evaluate_nodules, headline
from probes.heads.fitting import FitSettings
from probes.heads.linear import Probe, Samples, cross_fit
from probes.pixels import PixelProbe
from probes.supervised import SupervisedProbe
from transforms.hounsfield import WindowHU
from transforms.nodule_crop import CropSpec
from transforms.views.config import IMAGENET_MEAN, IMAGENET_STD
from transforms.window_policy import ARTICLE_LUNG_HU

Weights = Mapping[str, torch.Tensor]


def run_supervised(config: SupervisedConfig, run: Run) -> None:
    """Cross-fit the networks, or resume, and print them beside diameter and pixels on the same nodules and folds.

    Raises:
        Interrupted: With exit code 130 or 143; the last whole epoch of the fold is saved.
        Refusal: If the configuration, cohort or run to resume does not allow it.
    """
    cohort, weights = open_cohort(config), _weights(config.weights)
    with claimed(config, run, "supervised", cohort.sha256) as own:
        if own is not None:
            _train(config, own, cohort, weights)


def _train(config: SupervisedConfig, own: Claimed, cohort: Cohort, weights: Weights | None) -> None:
    run = own.run
    flat, cubes = inputs_of(config, cohort)
    report_unknown_diameters(flat)
    readers: list[Reader[Source] | None] = [None]
    if config.backbone:
        backbones = open_backbones(config.backbone)
        readers = [*readers_of(config.backbone, backbones, cohort, flat.patient_ids, config.leak)]
    folds = [fold for part in settled_folds(config, run, cohort, readers, flat) for fold in part]
    images = {} if config.networks == "3d" else {"supervised_2d": _gray_2d(flat)}
    if cubes is not None:
        images["supervised_3d"] = _gray_3d(cubes)
    pixels = pixels_of(config, cohort, flat)
    rows = {"pixels": _scores(lambda: PixelProbe(seed=config.seed), pixels, flat, folds)}
    for name, shown in images.items():
        print(
            f"training {name} on {tuple(shown.shape)}, {len(folds)} folds, at most {_epochs(config)} epochs"
        )
        records: list[FoldRecord] = []
        rows[name] = _scores(_factory(config, name, weights, own, records), shown, flat, folds)
        epochs = epoch_table(records)
        run.log_table(epochs, f"tables/{name}_epochs.csv")
        run.log_figure(epoch_figure(epochs), f"figures/{name}_epochs.png")
    table = evaluate_nodules(
        flat.labels, rows, flat.diameter_mm, flat.patient_ids, None, config.n_bootstrap, config.seed
    )
    print(short_table(table))
    if config.max_epochs == 0 and choose_device(config.device).type == "cpu":
        print("six epochs are few for a network with random initial weights; -P max_epochs=40 trains longer")
    run.log_metrics(headline(table) | {"probe/max_epochs": float(_epochs(config))})
    run.log_table(table, "tables/supervised.csv")
    log_scores(run, flat, rows)


def inputs_of(config: SupervisedConfig, cohort: Cohort) -> tuple[NoduleSet, NoduleSet | None]:
    """Return crops and cubes of the same nodules; None for the cubes, with a printed reason, if there are none.

    Raises:
        NoNodulesError: If there are no crops, or networks=3d and there are no cubes.
    """
    flat = labeled_nodules(config, cohort, CropSpec(size_mm=config.size_mm, out_px=config.image_px))
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
    with_cube = among(flat, cubes)
    return with_cube, among(cubes, with_cube)


def _factory(
    config: SupervisedConfig, name: str, weights: Weights | None, own: Claimed, records: list[FoldRecord]
) -> Callable[[], SupervisedProbe]:
    """Return what makes the probe of the next fold, followed by a record that is added to `records`."""
    settings = FitSettings(
        lr=config.lr, batch_size=config.batch_size, max_epochs=_epochs(config), patience=config.patience
    )
    is_3d = name == "supervised_3d"

    def next_fold() -> SupervisedProbe:
        place = own.folder.checkpoints / name / f"fold_{len(records):03d}"
        records.append(FoldRecord(place, len(records), f"{name}_", settings, own.run, own.stop))
        return SupervisedProbe(
            "resnet18_3d" if is_3d else "resnet18",
            None if is_3d else weights,
            settings=settings,
            seed=config.seed,
            device=choose_device(config.device),
            follower=records[-1],
        )

    return next_fold


def _epochs(config: SupervisedConfig) -> int:
    return config.max_epochs or (6 if choose_device(config.device).type == "cpu" else 40)


def _weights(path: str) -> Weights | None:
    if not path:
        return None
    if not Path(path).is_file():
        raise ProbeError(
            f"weights names {path}, which does not exist; give a .safetensors file of timm's resnet18"
        )
    state: Weights = load_file(path)
    return state


def _scores(
    factory: Callable[[], Probe[Any]], shown: Samples, nodules: NoduleSet, folds: list[Fold]
) -> NDArray[np.float64]:
    return cross_fit(factory, shown, nodules.labels, nodules.patient_ids, folds)


def _gray_2d(nodules: NoduleSet) -> torch.Tensor:
    """Return triplets in the lung window with ImageNet normalization, (n, 3, P, P)."""
    gray = WindowHU(*ARTICLE_LUNG_HU)(torch.from_numpy(nodules.crops_hu))
    return (gray - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def _gray_3d(nodules: NoduleSet) -> torch.Tensor:
    """Return cubes in the lung window, centered on mid-gray, (n, 1, P, P, P)."""
    return (WindowHU(*ARTICLE_LUNG_HU)(torch.from_numpy(nodules.crops_hu)) - 0.5) / 0.25
