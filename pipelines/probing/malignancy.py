"""Malignancy probe: frozen features of nodules beside baselines that need no backbone."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.nodule.diagnoses import read_diagnoses
from pipelines.nodule.labeled import NoduleSet
from pipelines.nodule.reader_marks import marks_of
from pipelines.probing.config import HeadName, ProbeConfig
from pipelines.probing.external import Both, ask_frozen, few_shots, join_cohorts, open_test_cohort
from pipelines.probing.figures import calibration_figure, decision_figure, few_shot_figure, forest_figure
from pipelines.probing.known import ask_known, known_metrics, known_text, other_reader
from pipelines.probing.question import ask
from pipelines.probing.readers import readers_of
from pipelines.probing.reading import TableFeatures, input_px, open_sources, readable, vectors_of
from pipelines.probing.rows import Found, Inputs, find_nodules, gather_inputs, score_rows
from pipelines.probing.setup import (
    labeled_nodules,
    log_scores,
    open_cohort,
    report_unknown_diameters,
    settled_folds,
    short_table,
)
from pipelines.probing.target import RATED, aim_of, column_metrics
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.evaluation import PREFIXES, evaluate_nodules, headline, matched_by_size
from probes.heads.attentive import AttentiveProbe
from probes.heads.mlp import MlpProbe
from probes.scoring import Factory, Permuted, Target, score_permuted
from transforms.nodule_crop import CropSpec

PERMUTATIONS = 20
"""Of the labels; one for a head that is slow to train."""


def run_probe(config: ProbeConfig, run: Run) -> None:
    """Fit a probe on frozen features out of fold, and print it beside its baselines."""
    cohort = open_cohort(config)
    opened = open_sources(config)
    spec = CropSpec(size_mm=config.size_mm, out_px=input_px(opened))
    diagnosis = read_diagnoses(config.diagnosis)
    nodules = labeled_nodules(config, cohort, spec, config.input == "whole_slice", diagnosis)
    nodules = readable(cohort, opened, nodules)
    report_unknown_diameters(nodules)
    aim = aim_of(config, nodules)
    nodules = aim.nodules
    other = open_test_cohort(config, nodules)
    readers = readers_of(config.backbone, opened, cohort, nodules.patient_ids, config.leak)
    folds = settled_folds(config, run, cohort, readers, nodules)
    tested = np.unique(np.concatenate([test for own in folds for _, test in own]))
    print(f"features of {', '.join(reader.loaded.source for reader in readers)}")
    others = [] if other is None else [other]
    frozen = [vectors_of(config, reader.loaded, cohort, nodules, others) for reader in readers]
    found = find_nodules(config, cohort, nodules, diagnosis)
    inputs = gather_inputs(config, cohort, found, frozen, folds, diagnosis)
    for one in frozen:
        column = one.tells(nodules.labels) if isinstance(one, TableFeatures) else ""
        if column:
            run.set_tags({Tag.LEAK: "features hold the label"})
            print(
                f"leak (features hold the label): column {column} of {one.loaded.source} tells them apart alone"
            )
    if not inputs.twins:
        print(
            "no row of random weights: nothing here can be randomized, so nothing is said about what was learned"
        )
    target = aim.target(config, tested)
    factory = probe_factory(config.head, config.seed, config.device)
    scores = score_rows(inputs, target, nodules, found, factory)
    table = evaluate(config, nodules, scores, shuffled(config, target, inputs, factory))
    metrics = headline(table)
    print(short_table(table))
    meaning = "labels are those of the table of nodules"
    if config.rule in RATED:
        meaning = "LIDC ratings are readers' suspicion, not cancer"
    print(
        f"{meaning}; intervals are over patients, conditional on training; useless features lower what joins them."
    )
    if config.features != "patches":  # The test needs one vector per nodule.
        answer = ask(config, nodules, inputs, found, aim.asked)
        if answer is not None:
            print(answer)
            metrics |= answer.metrics()
            if answer.holds_rating:
                run.set_tags({Tag.LEAK: "features hold the rating"})
                print("leak (features hold the rating): no image predicts the readers so well")
            run.log_table(answer.table(), "tables/question.csv")
            metrics |= what_is_known(config, run, cohort, nodules, inputs, found, target)
    metrics |= column_metrics(config, aim, inputs, found)
    if other is not None:
        # Of `shipped:NAME`, whose other networks are for patients of the first cohort: `all`.
        first = [one for one in frozen if one.loaded is opened[0]]
        reader = first[0] if first else vectors_of(config, opened[0], cohort, nodules)
        metrics |= test_elsewhere(config, run, join_cohorts(config, cohort, other, reader, found, diagnosis))
    run.log_metrics(metrics)
    run.log_table(table, "tables/probe.csv")
    labels, drawn = log_scores(run, nodules, one_each(scores))
    run.log_figure(calibration_figure(labels, drawn["features"]), "figures/calibration.png")
    run.log_figure(decision_figure(labels, drawn), "figures/decision_curve.png")


def what_is_known(
    config: ProbeConfig,
    run: Run,
    cohort: Cohort,
    nodules: NoduleSet,
    inputs: Inputs,
    found: Found,
    target: Target,
) -> dict[str, float]:
    """Ask for the readers' characteristics, print and log what was found, and return its metrics."""
    marks = marks_of(cohort, nodules.table)
    if marks.empty:
        return {}
    known = ask_known(config, nodules, inputs, found, target, marks)
    metrics = known_metrics(known) | other_reader(config, nodules, inputs.pixels, marks)
    if len(known):
        print(known_text(known))
        run.log_table(known, "tables/known.csv")
        run.log_figure(forest_figure(known), "figures/known.png")
    if "probe/other_reader_auroc" in metrics:
        n, alone, gain = (
            metrics[f"probe/{name}"]
            for name in ("other_reader_n_nodules", "other_reader_auroc", "other_reader_gain_over_diameter")
        )
        print(
            f"ceiling, one other reader's marks on {n:.0f} nodules: AUROC {alone:.3f}, with diameter {gain:+.3f}"
        )
    return metrics


def test_elsewhere(config: ProbeConfig, run: Run, both: Both) -> dict[str, float]:
    """Score the test cohort with what was fitted on the first, print and log it, and return its metrics."""
    run.set_tags({Tag.TEST_COHORT_SHA: both.sha256} | ({Tag.LEAK: "unknown"} if both.unknown else {}))
    aim = aim_of(config, both.nodules)
    target = aim.target(config, both.fold[0])
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
