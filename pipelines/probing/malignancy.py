"""Malignancy probe: frozen features of nodules beside baselines that need no backbone."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone
from pipelines.nodule.diagnoses import read_diagnoses
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import HeadName, ProbeConfig
from pipelines.probing.external import Both, ask_frozen, few_shots, join_cohorts
from pipelines.probing.figures import calibration_figure, decision_figure, few_shot_figure
from pipelines.probing.folds import FoldPlan, fold_plan
from pipelines.probing.question import ask, rating_of
from pipelines.probing.reading import FrozenFeatures
from pipelines.probing.rows import Inputs, find_nodules, gather_inputs, score_rows
from pipelines.probing.setup import (
    ProbeError,
    account,
    labeled_nodules,
    log_scores,
    open_cohort,
    report_unknown_diameters,
    short_table,
    tag_probe,
)
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.evaluation import PREFIXES, evaluate_nodules, headline, matched_by_size
from probes.heads.attentive import AttentiveProbe
from probes.heads.mlp import MlpProbe
from probes.scoring import Factory, Permuted, Target, score_permuted
from transforms.nodule_crop import CropSpec

RATED = ("consensus", "article", "luna_fmcib")
"""Rules whose label sums up the readers' ratings."""
PERMUTATIONS = 20
"""Of the labels; one for a head that is slow to train."""


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
    refuse_shared(plans)
    readers = []
    for loaded, plan in zip(backbones, plans, strict=True):
        print(f"backbone {loaded.source}")
        tag_probe(run, cohort, loaded, plan.leak, nodules.mm_per_px)
        readers.append(FrozenFeatures(config, loaded, nodules))
    run.set_tags(names_of(backbones))
    found = find_nodules(config, cohort, nodules, diagnosis)
    inputs = gather_inputs(config, cohort, found, readers, [plan.folds for plan in plans], diagnosis)
    target = target_of(config, nodules, tested)
    factory = probe_factory(config.head, config.seed, config.device)
    scores = score_rows(inputs, target, nodules, found, factory)
    table = evaluate(config, nodules, scores, shuffled(config, target, inputs, factory))
    metrics = headline(table)
    print(short_table(table))
    meaning = "labels are those of the table of nodules"
    if config.rule in RATED:
        meaning = "LIDC ratings are readers' suspicion, not cancer"
    print(f"{meaning}; intervals are over patients, conditional on training.")
    if config.features != "patches":  # The test needs one vector per nodule.
        answer = ask(config, nodules, inputs, found)
        if answer is not None:
            print(answer)
            metrics |= answer.metrics()
            if answer.holds_rating:
                run.set_tags({Tag.LEAK: "features hold the rating"})
                print("leak (features hold the rating): no image predicts the readers so well")
            run.log_table(answer.table(), "tables/question.csv")
    if config.test_cohort:
        metrics |= test_elsewhere(config, run, join_cohorts(config, cohort, readers[0], found, diagnosis))
    run.log_metrics(metrics)
    run.log_table(table, "tables/probe.csv")
    run.log_table(pd.concat([plan.table for plan in plans], ignore_index=True), "tables/splits.parquet")
    labels, drawn = log_scores(run, nodules, one_each(scores))
    run.log_figure(calibration_figure(labels, drawn["features"]), "figures/calibration.png")
    run.log_figure(decision_figure(labels, drawn), "figures/decision_curve.png")


def test_elsewhere(config: ProbeConfig, run: Run, both: Both) -> dict[str, float]:
    """Score the test cohort with what was fitted on the first, print and log it, and return its metrics."""
    run.set_tags({Tag.TEST_COHORT_SHA: both.sha256} | ({Tag.LEAK: "unknown"} if both.unknown else {}))
    target = target_of(config, both.nodules, both.fold[0])
    scores = score_rows(both.inputs, target, both.nodules, both.found)
    table = evaluate(config, both.nodules, scores, [])
    run.log_table(table, "tables/external.csv")
    print(f"test cohort {config.test_cohort}, nothing fitted on it\n{short_table(table)}")
    metrics = headline(table)
    if config.features != "patches":
        answer = ask_frozen(config, both)
        print(answer)
        metrics |= answer.metrics()
        run.log_table(answer.table(), "tables/external_question.csv")
    shots = few_shots(config, both, target)
    if len(shots):
        run.log_table(shots, "tables/few_shots.csv")
        run.log_figure(few_shot_figure(shots), "figures/few_shots.png")
        points = shots.groupby(["row", "n_nodules"], as_index=False)["auroc"].agg(["mean", "min", "max"])
        for point in points.to_dict("records"):
            name = f"external/{PREFIXES.get(point['row'], point['row'] + '_')}few_shot_auroc"
            ends = {"": point["mean"], "_lowest": point["min"], "_highest": point["max"]}
            run.log_metrics({name + end: value for end, value in ends.items()}, step=point["n_nodules"])
    found = {f"external/{name.removeprefix('probe/')}": value for name, value in metrics.items()}
    return found | {"external/n_unknown_patients": float(both.unknown)}


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


def refuse_shared(plans: Sequence[FoldPlan]) -> None:
    """Refuse backbones that test the same nodules.

    Raises:
        ProbeError: If two of them do.
    """
    tested = np.concatenate([np.unique(np.concatenate([test for _, test in plan.folds])) for plan in plans])
    shared = len(tested) - len(np.unique(tested))
    if shared:
        raise ProbeError(
            f"{shared} nodules are tested by several backbones; cross-fit backbones whose"
            " held-out patients differ, such as holdout=half_a and holdout=half_b"
        )


def target_of(config: ProbeConfig, nodules: NoduleSet, tested: NDArray[np.int64]) -> Target:
    """Return what the rows are fitted to: the readers' mean rating where there is one, or the label.

    Raises:
        ProbeError: If ratings are asked for that not every nodule has.
    """
    has_ratings = all(len(one) for one in nodules.table["malignancy_ratings"])
    is_rating = config.target == "rating"
    if is_rating and not has_ratings:
        raise ProbeError("target=rating needs readers' ratings of every nodule; use target=label")
    if not config.target and config.head == "logistic" and config.input == "crop":
        is_rating = has_ratings and config.rule in RATED
    rating = rating_of(nodules) if is_rating else None
    # Scores are ranked together, so all folds share one prior.
    prior = float(nodules.labels[tested].mean())
    return Target(nodules.labels, nodules.patient_ids, prior, rating, config.seed)


def shuffled(config: ProbeConfig, target: Target, inputs: Inputs, factory: Factory | None) -> list[Permuted]:
    """Fit the features to permuted labels."""
    times = PERMUTATIONS if factory is None else 1
    repeats = config.repeats if config.split == "folds" else 1
    return score_permuted(target, inputs.features, config.seed, times, repeats, factory)


def one_each(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Return one score a nodule and row: of random weights the first seed; sizes and joined rows only with features."""
    kept = {name: np.atleast_2d(one)[0] for name, one in scores.items() if name != "image_diameter"}
    return {name: one for name, one in kept.items() if "_and_" not in name or name == "features_and_diameter"}


def probe_factory(head: HeadName, seed: int, device: str) -> Factory | None:
    """Return a function that makes a new head for each fold; None for linear ones, which the target makes."""
    chosen = choose_device(device)
    match head:
        case "logistic":
            return None
        case "mlp":
            return lambda: MlpProbe(seed=seed, device=chosen)
        case "attentive":
            return lambda: AttentiveProbe(seed=seed, device=chosen)


def evaluate(
    config: ProbeConfig,
    nodules: NoduleSet,
    scores: Mapping[str, NDArray[np.float64]],
    permuted: Sequence[Permuted],
) -> pd.DataFrame:
    """Return the whole table: overall, inside 6-15 mm, by manufacturer, slice spacing and repeated neighbors."""
    spacing = pd.cut(
        nodules.table["spacing_z_mm"], [0, 1.25, 2.0, 100], labels=["to 1.25", "to 2", "above 2"]
    )
    groups: dict[str, list[str]] = {
        "manufacturer": nodules.table["manufacturer"].astype(str).tolist(),
        "slice spacing mm": spacing.astype(str).tolist(),
        "neighbors": ["repeated" if repeated else "whole" for repeated in nodules.is_replicated],
    }
    if nodules.has_diameters:
        is_matched = matched_by_size(nodules.labels, nodules.diameter_mm)
        groups["size"] = ["matched 1:2" if one else "unmatched" for one in is_matched]
    several = {name: values for name, values in groups.items() if len(set(values)) > 1}
    return evaluate_nodules(
        nodules.labels,
        scores,
        nodules.diameter_mm,
        nodules.patient_ids,
        several,
        config.n_bootstrap,
        config.seed,
        permuted,
    )
