"""What the probes share: cohort, backbone, nodules, folds, tags of the run, and tables as text."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone, tag_scale
from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import Cohort
from pipelines.encoders.source import Source
from pipelines.figures.scores import roc_figure
from pipelines.ingest.default_cohort import ensure_cohort
from pipelines.nodule.labeled import NoduleSet, nodule_set, warn_of_doubtful_places
from pipelines.probing.config import FoldedProbe, NoduleProbe, ProbeBase
from pipelines.probing.folds import Fold, fold_plan
from pipelines.probing.readers import ProbeError, Reader
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.pixels import PIXEL_OUT_PX, PIXEL_SIZE_MM, pixel_features
from probes.statistics.estimate import Estimate
from transforms.nodule_crop import CropSpec
from transforms.refusal import number_of


def open_cohort(config: ProbeBase) -> Cohort:
    """Open the cohort of a probe; a default cohort is made if it is missing."""
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
    nodules = nodule_set(cohort, config.rule, spec, whole_slice, diagnosis, config.labels_needed)
    print(nodules.labeled.counts)
    warn_of_doubtful_places(nodules)
    return nodules


def of_rows(nodules: NoduleSet, rows: NDArray[np.int64], dropped: pd.DataFrame) -> NoduleSet:
    """Return the nodules at these rows, in this order; `dropped` holds the reasons for the others."""
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
    """Return the nodules that are also in `others`, which were cropped in another way."""
    ids = nodules.table["nodule_id"]
    is_shared = ids.isin(others.table["nodule_id"]).to_numpy()
    reasons = others.dropped[others.dropped["nodule_id"].isin(ids[~is_shared])]
    return nodules if is_shared.all() else of_rows(nodules, np.flatnonzero(is_shared), reasons)


def left_out(nodules: NoduleSet, is_left_out: NDArray[np.bool_], reason: str) -> pd.DataFrame:
    """Return rows of `NoduleSet.dropped` for nodules left out for one reason."""
    ids = nodules.table["nodule_id"][is_left_out]
    return pd.DataFrame({"nodule_id": ids, "reason": reason, "kind": reason})


def account(run: Run, nodules: NoduleSet, folds: Sequence[Fold]) -> NDArray[np.int64]:
    """Print, and log as tables/dropped.parquet, how many nodules are tested and why the others are left out.

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
    """Return the input of the pixel baseline for the same nodules."""
    spec = CropSpec(size_mm=PIXEL_SIZE_MM, out_px=PIXEL_OUT_PX)
    pixels = nodule_set(cohort, config.rule, spec, diagnosis=diagnosis)
    return pixel_features(among(pixels, nodules).crops_hu)


def settled_folds(
    config: FoldedProbe,
    run: Run,
    cohort: Cohort,
    readers: Sequence[Reader[Source] | None],
    nodules: NoduleSet,
) -> list[list[Fold]]:
    """Make the folds of each backbone, write them into the run, and tag it with cohort and backbones.

    Args:
        config: How to split.
        run: Of the probe.
        cohort: Of the nodules.
        readers: The backbones; one None without a backbone.
        nodules: To split, by patient.

    Raises:
        ProbeError: If several backbones test the same nodules.
    """
    plans = [fold_plan(config, reader, nodules) for reader in readers]
    account(run, nodules, [fold for plan in plans for fold in plan.folds])
    refuse_shared([plan.folds for plan in plans])
    for reader in readers:
        loaded, leak = (None, "") if reader is None else (reader.loaded, reader.leak)
        tag_probe(run, cohort, loaded, leak, nodules.mm_per_px)
    run.set_tags(names_of([reader.loaded for reader in readers if reader is not None]))
    run.log_table(pd.concat([plan.table for plan in plans], ignore_index=True), "tables/splits.parquet")
    return [plan.folds for plan in plans]


def names_of(backbones: Sequence[Source]) -> dict[Tag, str]:
    """Return tags with every backbone of a probe, separated by commas; `report` reads the first."""
    tags = {
        Tag.PROBED: ",".join(loaded.source for loaded in backbones),
        Tag.PROBED_RUN: ",".join(loaded.run_id for loaded in backbones),
        Tag.BACKBONE_SHA: ",".join(loaded.sha256 for loaded in backbones),
    }
    return tags if backbones else {}


def refuse_shared(folds: Sequence[Sequence[Fold]]) -> None:
    """Refuse backbones that test the same nodules.

    Raises:
        ProbeError: If two of them do.
    """
    tested = np.concatenate([np.unique(np.concatenate([test for _, test in own])) for own in folds])
    shared = len(tested) - len(np.unique(tested))
    if shared:
        raise ProbeError(
            f"several backbones test the same {number_of(shared, 'nodule')}; cross-fit backbones whose"
            " held-out patients differ, such as holdout=half_a and holdout=half_b"
        )


def log_scores(
    run: Run, nodules: NoduleSet, rows: Mapping[str, NDArray[np.float64]]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Log the out-of-fold scores of each row of a probe's table, and draw their ROC curves beside diameter.

    Returns:
        Labels of the tested nodules, and their scores by row.
    """
    tested = np.isfinite(next(iter(rows.values())))
    columns = ["nodule_id", "patient_id", "diameter_mm", "is_malignant"]
    run.log_table(nodules.table[columns].assign(**rows)[tested], "tables/predictions.parquet")
    labels = nodules.labels[tested]
    drawn = {name: values[tested] for name, values in rows.items()}
    diameter = {"diameter": nodules.diameter_mm[tested]} if nodules.has_diameters else {}
    run.log_figure(roc_figure(labels, drawn | diameter, nodules.patient_ids[tested]), "figures/roc.png")
    return labels, drawn


def tag_probe(
    run: Run,
    cohort: Cohort,
    loaded: Source | None,
    leak: str,
    mm_per_px: NDArray[np.float64] | None = None,
) -> None:
    """Tag the run with cohort and backbone, and warn of a leak or of a pixel size outside the pretraining's range."""
    tags: dict[Tag, str] = {Tag.COHORT_SHA: cohort.sha256, Tag.COHORT_KIND: cohort.kind}
    if loaded is not None:
        tags |= {
            Tag.PROBED: loaded.source,
            Tag.PROBED_RUN: loaded.run_id,
            Tag.BACKBONE_SHA: loaded.sha256,
            Tag.PROBED_RECIPE: str(loaded.record.get("recipe", "")),
        }
        if "opened" in loaded.record:
            tags[Tag.OPENED] = "; ".join(loaded.record["opened"])
    if leak:
        tags[Tag.LEAK] = leak
        name = loaded.source if loaded is not None else "the backbone"
        print(f"leak ({leak}): {name} may have seen patients that are tested here")
    drawn_by = "" if loaded is None else loaded.record.get("nodules_sha", "")
    is_same_ct = loaded is not None and loaded.record.get("cohort_sha") == cohort.sha256
    if drawn_by and is_same_ct and drawn_by != cohort.nodules_sha256:
        tags[Tag.NODULES] = "changed"
        print(
            f"the table of nodules of {cohort.root} has changed since the pretraining, which drew its views by it"
        )
    run.set_tags(tags)
    counts = {"volumes": len(cohort.series), "nodules": len(cohort.nodules)}
    run.log_dataset(cohort.root.name, cohort.sha256, {"kind": cohort.kind} | counts, "evaluation")
    if isinstance(loaded, LoadedBackbone) and mm_per_px is not None:
        read = cohort.series[cohort.series["volume_id"].isin(cohort.nodules["volume_id"])]
        # Cubes are resampled to the voxels of the pretraining; triplets keep the distance of their slices.
        is_told = loaded.backbone.takes_spacing and not loaded.backbone.image_depth_px and not read.empty
        tag_scale(run, loaded, mm_per_px, read["spacing_mm"].str[0].to_numpy(float) if is_told else None)


def report_unknown_diameters(nodules: NoduleSet) -> None:
    """Print what rows with a diameter leave out, or that there are none, where the table of nodules lacks some."""
    n_unknown = int(np.isnan(nodules.diameter_mm).sum())
    if n_unknown:
        consequence = "the table has no diameter row and no stratum of 6-15 mm"
        if nodules.has_diameters:
            consequence = "rows with the diameter and the stratum of 6-15 mm are without them"
        print(
            f"no diameter for {n_unknown} of {number_of(len(nodules.labels), 'nodule')}: {consequence}; entry point"
            " nodules measures a diameter from the image"
        )


def short_table(table: pd.DataFrame) -> str:
    """Return the rows overall and for 6-15 mm as text: AUROC and difference to diameter with intervals."""
    lines = [f"{'stratum':10} {'row':28} {'n':>5} {'mal.':>5}  {'AUROC [95%]':24} minus diameter [95%]"]
    for line in table.to_dict("records"):
        if ":" in str(line["stratum"]) or not np.isfinite(line.get("auroc", np.nan)):
            continue
        gap = ""
        if np.isfinite(line.get("minus_diameter", np.nan)):
            low, high, p = (line[f"minus_diameter_{end}"] for end in ("ci_low", "ci_high", "p"))
            gap = f"{line['minus_diameter']:+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.2g}"
        counts = f"{line['n_nodules']:>5} {line['n_positive']:>5}"
        area = _interval(line, "auroc")
        if line["row"] == "shuffled_labels":
            area = f"{line['auroc']:.3f} ({line['auroc_lowest']:.3f} to {line['auroc_highest']:.3f})"
        lines.append(f"{line['stratum']:10} {line['row']:28} {counts}  {area:24} {gap}".rstrip())
    return "\n".join(lines)


def short_retrieval_table(table: pd.DataFrame) -> str:
    """Return the table as text: top-1 with its interval over patients, and the other shares."""
    heads = ("network", "token", "top-1 [95% over patients]", "top-5", "hits", "not adjacent", "same series")
    lines = ["{:9} {:12} {:27} {:>6} {:>5}  {:12}  {:11}".format(*heads).rstrip()]
    for row in table.to_dict("records"):
        lines.append(
            f"{row['network']:9} {row['token']:12} {_interval(row, 'top1'):27} {row['top5']:6.3f} {row['ratio']:5.0f}"
            f"  {row['top1_not_adjacent']:12.3f}  {row['same_series_top1']:11.3f}"
        )
    return "\n".join(lines)


def _interval(row: Mapping[Hashable, Any], name: str) -> str:
    return str(Estimate(row[name], row[f"{name}_ci_low"], row[f"{name}_ci_high"]))
