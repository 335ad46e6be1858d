"""Malignancy probe: frozen features of nodules beside baselines that need no backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone
from pipelines.nodule.diagnoses import read_diagnoses
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import HeadName, ProbeConfig
from pipelines.probing.figures import calibration_figure, decision_figure
from pipelines.probing.folds import Fold, fold_plan
from pipelines.probing.question import ask
from pipelines.probing.reading import FrozenFeatures
from pipelines.probing.setup import (
    ProbeError,
    account,
    labeled_nodules,
    log_scores,
    open_cohort,
    pixels_of,
    report_unknown_diameters,
    tag_probe,
)
from pipelines.probing.tables import short_table
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.evaluation import evaluate_nodules, headline
from probes.heads.attentive import AttentiveProbe
from probes.heads.linear import LinearProbe, Probe
from probes.heads.mlp import MlpProbe
from probes.pixels import PixelProbe
from probes.scoring import NoduleScores, score_nodules, shuffle_labels
from transforms.nodule_crop import CropSpec


def run_probe(config: ProbeConfig, run: Run) -> None:
    """Fit a probe on frozen features out of fold, and print it beside its baselines."""
    cohort = open_cohort(config)
    backbones = open_together(config)
    spec = CropSpec(size_mm=config.size_mm, out_px=backbones[0].backbone.image_px)
    diagnosis = read_diagnoses(config.diagnosis)
    nodules = labeled_nodules(config, cohort, spec, config.input == "whole_slice", diagnosis)
    report_unknown_diameters(nodules)
    plans = [fold_plan(config, loaded, nodules) for loaded in backbones]
    every_fold = [fold for plan in plans for fold in plan.folds]
    tested = account(run, nodules, every_fold)
    # Pooled scores are ranked together, so all folds share one prior and one shuffle of the labels.
    prior = float(nodules.labels[tested].mean())
    shuffled = shuffle_labels(nodules.labels, nodules.patient_ids, every_fold, config.seed)
    pixels = pixels_of(config, cohort, nodules, diagnosis)
    parts, readers = [], []
    for loaded, plan in zip(backbones, plans, strict=True):
        print(f"backbone {loaded.source}")
        tag_probe(run, cohort, loaded, plan.leak, nodules.mm_per_px)
        readers.append(FrozenFeatures(config, loaded, nodules))
        parts.append(score(config, readers[-1], pixels, plan.folds, prior, shuffled))
    run.set_tags(names_of(backbones))
    scores = pooled(parts)
    table = evaluate(config, nodules, scores)
    metrics = headline(table)
    print(short_table(table))
    meaning = "labels are those of the table of nodules"
    if config.rule not in ("given", "tcia_diagnosis"):
        meaning = "LIDC ratings are readers' suspicion, not cancer"
    print(f"{meaning}; intervals are over patients, conditional on training.")
    if config.features != "patches":  # The test needs one vector per nodule.
        answer = ask(config, cohort, nodules, readers, [plan.folds for plan in plans], diagnosis)
        if answer is not None:
            print(answer)
            metrics |= answer.metrics()
            run.log_table(answer.table(), "tables/question.csv")
    run.log_metrics(metrics)
    run.log_table(table, "tables/probe.csv")
    run.log_table(pd.concat([plan.table for plan in plans], ignore_index=True), "tables/splits.parquet")
    labels, drawn = log_scores(run, nodules, scores.rows)
    run.log_figure(calibration_figure(labels, drawn["features"]), "figures/calibration.png")
    run.log_figure(decision_figure(labels, drawn), "figures/decision_curve.png")


def open_together(config: ProbeConfig) -> list[LoadedBackbone]:
    """Open the backbones of the option `backbone`.

    Raises:
        ProbeError: If several have different input sizes.
    """
    names = [name.strip() for name in config.backbone.split(",")]
    backbones = [open_backbone(chosen_backbone(name), config.image_px or None) for name in names]
    sizes = {loaded.backbone.image_px for loaded in backbones}
    if len(sizes) > 1:
        raise ProbeError(f"cross-fitted backbones must have the same input size, got {sorted(sizes)} px")
    return backbones


def names_of(backbones: list[LoadedBackbone]) -> dict[Tag, str]:
    """Return tags with every backbone of a probe, separated by commas; `report` reads the first."""
    return {
        Tag.PROBED: ",".join(loaded.source for loaded in backbones),
        Tag.PROBED_RUN: ",".join(loaded.run_id for loaded in backbones),
        Tag.BACKBONE_SHA: ",".join(loaded.sha256 for loaded in backbones),
    }


def pooled(parts: list[NoduleScores]) -> NoduleScores:
    """Join the out-of-fold scores of backbones that tested different patients.

    Raises:
        ProbeError: If two of them tested the same nodule.
        ValueError: If they shuffled the labels differently.
    """
    if any((part.shuffled_labels != parts[0].shuffled_labels).any() for part in parts):
        raise ValueError("pooled scores have different shuffled labels; shuffle once for all")
    tested = np.stack([np.isfinite(part.rows["features"]) for part in parts])
    if (tested.sum(0) > 1).any():
        raise ProbeError(
            f"{int((tested.sum(0) > 1).sum())} nodules are tested by several backbones; cross-fit backbones whose"
            " held-out patients differ, such as holdout=half_a and holdout=half_b"
        )
    rows = {
        name: np.where(tested.any(0), np.nansum([part.rows[name] for part in parts], axis=0), np.nan)
        for name in parts[0].rows
    }
    return NoduleScores(rows, parts[0].shuffled_labels)


def score(
    config: ProbeConfig,
    reader: FrozenFeatures,
    pixels: NDArray[np.float32],
    folds: list[Fold],
    prior: float,
    shuffled: NDArray[np.int64],
) -> NoduleScores:
    """Return one out-of-fold score per nodule and row of the table; NaN where a nodule is never tested."""
    factory = probe_factory(config.head, config.seed, config.device)
    nodules = reader.nodules
    return score_nodules(
        factory,
        reader.learned(),
        nodules.labels,
        nodules.diameter_mm,
        nodules.patient_ids,
        folds,
        baselines={
            "random_weights": (factory, reader.twin(config.seed)),
            "pixels": (lambda: PixelProbe(seed=config.seed), pixels),
        },
        seed=config.seed,
        prior=prior,
        shuffled=shuffled,
    )


def probe_factory(head: HeadName, seed: int, device: str) -> Callable[[], Probe[Any]]:
    """Return a function that makes a new head for each fold."""
    chosen = choose_device(device)
    match head:
        case "logistic":
            return lambda: LinearProbe(seed=seed)
        case "mlp":
            return lambda: MlpProbe(seed=seed, device=chosen)
        case "attentive":
            return lambda: AttentiveProbe(seed=seed, device=chosen)


def evaluate(config: ProbeConfig, nodules: NoduleSet, scores: NoduleScores) -> pd.DataFrame:
    """Return the whole table: overall, inside 6-15 mm, by manufacturer, slice spacing and repeated neighbors."""
    spacing = pd.cut(
        nodules.table["spacing_z_mm"], [0, 1.25, 2.0, 100], labels=["to 1.25", "to 2", "above 2"]
    )
    groups: dict[str, list[str]] = {
        "manufacturer": nodules.table["manufacturer"].astype(str).tolist(),
        "slice spacing mm": spacing.astype(str).tolist(),
        "neighbors": ["repeated" if repeated else "whole" for repeated in nodules.is_replicated],
    }
    several = {name: values for name, values in groups.items() if len(set(values)) > 1}
    return evaluate_nodules(
        nodules.labels,
        scores,
        nodules.diameter_mm,
        nodules.patient_ids,
        several,
        config.n_bootstrap,
        config.seed,
    )
