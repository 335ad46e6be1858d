"""What every probe of a frozen backbone begins with: cohort, backbone, nodules, folds, and tags of what it rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone
from pipelines.backbones.scale import tag_scale
from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import Cohort
from pipelines.cohort.kind import cohort_kind
from pipelines.ingest.default_cohort import ensure_cohort
from pipelines.nodule.labeled import NoduleSet, nodule_set, tell_of_doubtful_places
from pipelines.probing.config import FoldedProbe, NoduleProbe, ProbeBase
from pipelines.probing.figures import roc_figure
from pipelines.probing.folds import Fold, fold_plan
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.pixels import PIXEL_OUT_PX, PIXEL_SIZE_MM, pixel_features
from transforms.nodule_crop import CropSpec
from transforms.refusal import Refusal


class ProbeError(Refusal):
    """What a probe was asked cannot be answered with this backbone and this cohort."""


def open_cohort(config: ProbeBase) -> Cohort:
    """Open the cohort of a probe; an embedded one is made where it is missing."""
    ensure_cohort(Path(config.cohort))
    return Cohort.open(Path(config.cohort))


def open_both(config: ProbeBase) -> tuple[Cohort, LoadedBackbone]:
    """Open the cohort and the backbone of a probe."""
    return open_cohort(config), open_backbone(chosen_backbone(config.backbone))


def labeled_nodules(
    config: NoduleProbe,
    cohort: Cohort,
    spec: CropSpec,
    whole_slice: bool = False,
    diagnosis: pd.DataFrame | None = None,
) -> NoduleSet:
    """Label and crop the nodules of a probe."""
    nodules = nodule_set(cohort, config.rule, spec, whole_slice, diagnosis)
    print(nodules.labeled.counts)
    tell_of_doubtful_places(nodules)
    return nodules


def of_rows(nodules: NoduleSet, rows: NDArray[np.int64], dropped: pd.DataFrame) -> NoduleSet:
    """Return the nodules at these rows, in this order; `dropped` says of the others why they are left out."""
    Accounting.of("nodules", len(nodules.labels), "kept", len(rows), dropped["kind"])
    return dataclasses.replace(
        nodules,
        dropped=pd.concat([nodules.dropped, dropped], ignore_index=True),
        table=nodules.table.iloc[rows].reset_index(drop=True),
        crops_hu=nodules.crops_hu[rows],
        is_replicated=nodules.is_replicated[rows],
        mm_per_px=nodules.mm_per_px[rows],
        place_mm=None if nodules.place_mm is None else nodules.place_mm[rows],
    )


def among(nodules: NoduleSet, others: NoduleSet) -> NoduleSet:
    """Return those nodules that others, cropped in another way, hold too."""
    ids = nodules.table["nodule_id"]
    is_shared = ids.isin(others.table["nodule_id"]).to_numpy()
    reasons = others.dropped[others.dropped["nodule_id"].isin(ids[~is_shared])]
    return nodules if is_shared.all() else of_rows(nodules, np.flatnonzero(is_shared), reasons)


def left_out(nodules: NoduleSet, is_left_out: NDArray[np.bool_], reason: str) -> pd.DataFrame:
    """Rows of `NoduleSet.dropped` for nodules that one reason leaves out."""
    ids = nodules.table["nodule_id"][is_left_out]
    return pd.DataFrame({"nodule_id": ids, "reason": reason, "kind": reason})


def account(run: Run, nodules: NoduleSet, folds: Sequence[Fold]) -> NDArray[np.int64]:
    """Print, and log as tables/dropped.parquet, what became of every nodule that the label rule looked at.

    Returns:
        Rows of the nodules that some fold tests, ascending.
    """
    tested, fitted = (np.unique(np.concatenate([fold[part] for fold in folds])) for part in (1, 0))
    rows = np.arange(len(nodules.labels))
    untested, is_fitted = ~np.isin(rows, tested), np.isin(rows, fitted)
    reasons = (
        left_out(nodules, untested & is_fitted, "fitted on, never tested"),
        left_out(nodules, untested & ~is_fitted, "neither fitted on nor tested"),
    )
    dropped = pd.concat([nodules.dropped, *reasons], ignore_index=True)
    n_given = nodules.labeled.counts.n_given
    print(Accounting.of("nodules", n_given, "tested", len(tested), dropped["kind"]))
    run.log_table(dropped, "tables/dropped.parquet")
    return tested


def pixels_of(
    config: NoduleProbe, cohort: Cohort, nodules: NoduleSet, diagnosis: pd.DataFrame | None = None
) -> NDArray[np.float32]:
    """Return what the baseline of pixels reads of the same nodules."""
    spec = CropSpec(size_mm=PIXEL_SIZE_MM, out_px=PIXEL_OUT_PX)
    pixels = nodule_set(cohort, config.rule, spec, diagnosis=diagnosis)
    return pixel_features(among(pixels, nodules).crops_hu)


def settled_folds(
    config: FoldedProbe, run: Run, cohort: Cohort, loaded: LoadedBackbone | None, nodules: NoduleSet
) -> list[Fold]:
    """Make the folds of a probe, write them into its run, and tag the run with what its figures rest on."""
    plan = fold_plan(config, loaded, nodules)
    tag_probe(run, cohort, loaded, plan.leak, nodules.mm_per_px)
    account(run, nodules, plan.folds)
    run.log_table(plan.table, "tables/splits.parquet")
    return plan.folds


def log_scores(
    run: Run, nodules: NoduleSet, rows: Mapping[str, NDArray[np.float64]]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Write the out-of-fold scores of each row of a probe's table, and draw their ROC curves beside diameter.

    Returns:
        Labels of the nodules that were tested, and their scores by row; shuffled labels are not drawn.
    """
    tested = np.isfinite(next(iter(rows.values())))
    columns = ["nodule_id", "patient_id", "diameter_mm", "is_malignant"]
    run.log_table(nodules.table[columns].assign(**rows)[tested], "tables/predictions.parquet")
    labels = nodules.labels[tested]
    drawn = {name: values[tested] for name, values in rows.items() if name != "shuffled_labels"}
    diameter = {"diameter": nodules.diameter_mm[tested]} if nodules.has_diameters else {}
    run.log_figure(roc_figure(labels, drawn | diameter), "figures/roc.png")
    return labels, drawn


def tag_probe(
    run: Run,
    cohort: Cohort,
    loaded: LoadedBackbone | None,
    leak: str,
    mm_per_px: NDArray[np.float64] | None = None,
) -> None:
    """Tag the run with what its figures rest on, and warn of a leak or of a scale that was never seen."""
    tags: dict[Tag, str] = {Tag.COHORT_SHA: cohort.sha256, Tag.COHORT_KIND: cohort_kind(cohort)}
    if loaded is not None:
        tags |= {
            Tag.PROBED: loaded.source,
            Tag.PROBED_RUN: loaded.run_id,
            Tag.BACKBONE_SHA: loaded.sha256,
            Tag.PROBED_RECIPE: str(loaded.record.get("recipe", "")),
        }
    if leak:
        tags[Tag.LEAK] = leak
        print(f"leak ({leak}): the backbone may have seen patients that are tested here")
    run.set_tags(tags)
    if loaded is not None and mm_per_px is not None:
        tag_scale(run, loaded, mm_per_px)


def tell_of_unknown_diameters(nodules: NoduleSet) -> None:
    """Print which rows a probe has to do without where a table of nodules states no diameter."""
    if not nodules.has_diameters:
        print(
            f"{int(np.isnan(nodules.diameter_mm).sum())} of {len(nodules.labels)} nodules have no diameter: no row of"
            " diameter and no stratum inside 6-15 mm; entry point nodules measures one from the image"
        )
