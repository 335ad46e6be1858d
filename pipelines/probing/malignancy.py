"""Malignancy probe: frozen features of nodules beside baselines that need no backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.cube_tokens import CubeTokens
from pipelines.cohort.folder import Cohort
from pipelines.encoders.source import Source
from pipelines.figures.nodule_pictures import errors_figure
from pipelines.figures.scores import (
    calibration_figure,
    decision_figure,
    few_shot_figure,
    known_figure,
    rows_figure,
)
from pipelines.nodule.diagnoses import read_diagnoses
from pipelines.nodule.labeled import NoduleSet
from pipelines.nodule.reader_marks import marks_of
from pipelines.probing.config import HeadName, ProbeConfig
from pipelines.probing.external import Both, ask_frozen, few_shots, join_cohorts, open_test_cohort
from pipelines.probing.known import ask_known, known_metrics, known_text, other_reader
from pipelines.probing.question import Answer, ask
from pipelines.probing.readers import readers_of
from pipelines.probing.reading import (
    NoduleVectors,
    TableFeatures,
    input_px,
    open_sources,
    readable,
    vectors_of,
)
from pipelines.probing.rows import SPEC as FOUND_IN, Found, Inputs, find_nodules, gather_inputs, score_rows
from pipelines.probing.setup import (
    labeled_nodules,
    log_scores,
    open_cohort,
    report_unknown_diameters,
    settled_folds,
    short_table,
)
from pipelines.probing.target import RATED, Aim, aim_of, column_metrics
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.items import RESIDUALS
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.evaluation import PREFIXES, evaluate_nodules, headline, matched_by_size
from probes.heads.attentive import AttentiveProbe
from probes.heads.mlp import MlpProbe
from probes.scoring import Factory, Permuted, Target, among_known, score_permuted
from probes.statistics.metrics import auroc_with_interval
from transforms.nodule_crop import CropSpec

PERMUTATIONS = 20
"""Of the labels; one for a head that is slow to train."""


@dataclass(frozen=True)
class Probed:
    """What a probe found, before what it logs.

    Attributes:
        cohort: Of the nodules.
        frozen: Their vectors, of each backbone that is cross-fitted.
        aim: What is predicted of each.
        found: The nodules in their images.
        inputs: Of the rows.
        target: What the rows are fitted to.
        scores: Out-of-fold scores by row.
        table: As `evaluate` returns it.
        answer: To the primary question; None where it cannot be asked.
    """

    cohort: Cohort
    frozen: Sequence[NoduleVectors]
    aim: Aim
    found: Found
    inputs: Inputs
    target: Target
    scores: dict[str, NDArray[np.float64]]
    table: pd.DataFrame
    answer: Answer | None

    @property
    def nodules(self) -> NoduleSet:
        """The nodules of the probe."""
        return self.aim.nodules


def run_probe(config: ProbeConfig, run: Run) -> None:
    """Fit a probe on frozen features out of fold, and print and log it beside its baselines."""
    cohort, opened = open_cohort(config), open_sources(config)
    probed = probe(config, run, cohort, opened)
    nodules, found, inputs = probed.nodules, probed.found, probed.inputs
    metrics = headline(probed.table)
    if probed.answer is not None:
        metrics |= probed.answer.metrics()
        run.log_table(probed.answer.table(), "tables/question.csv")
        log_residuals(run, nodules, probed.answer.residuals)
        if config.baselines == "all":
            metrics |= what_is_known(config, run, cohort, nodules, inputs, found, probed.target)
    metrics |= column_metrics(config, probed.aim, inputs, found)
    metrics |= told_others_spacing(config, probed)
    other = open_test_cohort(config, nodules)
    if other is not None:
        # Of `shipped:NAME`, whose other networks are for patients of the first cohort: `all`.
        first = [one for one in probed.frozen if one.loaded is opened[0]]
        reader = first[0] if first else vectors_of(config, opened[0], cohort, nodules)
        both = join_cohorts(config, cohort, other, reader, found, read_diagnoses(config.diagnosis))
        metrics |= test_elsewhere(config, run, both)
    # MLflow's compare page opens on the metric that was logged first.
    opens_on = {name: metrics[name] for name in ("probe/gain_over_diameter",) if name in metrics}
    run.log_metrics(opens_on | metrics)
    run.log_table(probed.table, "tables/probe.csv")
    log_scores(run, nodules, one_each(probed.scores))
    log_figures(run, probed)


def log_residuals(run: Run, nodules: NoduleSet, residuals: pd.DataFrame) -> None:
    """Log what is observed and predicted of each nodule beyond size and attenuation, for paired comparisons."""
    ids = nodules.table[["nodule_id", "patient_id"]].iloc[residuals["index"]].reset_index(drop=True)
    run.log_table(ids.join(residuals.drop(columns="index").reset_index(drop=True)), RESIDUALS)


def log_figures(run: Run, probed: Probed) -> None:
    """Draw the rows' AUROC, calibration, net benefit, and the most confident errors of the features."""
    nodules, scores = probed.nodules, one_each(probed.scores)
    if "pixels_and_diameter" in probed.scores:  # Enough diameters are known to fit to.
        size = np.log(nodules.diameter_mm)[:, None]
        parts = among_known([(size, folds) for _, folds in probed.inputs.features], nodules.diameter_mm)
        scores["diameter"] = probed.target.score(parts)  # as probabilities, which millimeters are not
    tested = np.isfinite(scores["features"])
    labels, patients = nodules.labels[tested], nodules.patient_ids[tested]
    drawn = {name: one[tested] for name, one in scores.items()}
    if (forest := rows_figure(probed.table)) is not None:
        run.log_figure(forest, "figures/rows.png")
    run.log_figure(calibration_figure(labels, drawn["features"], patients), "figures/calibration.png")
    run.log_figure(decision_figure(labels, drawn, patients), "figures/decision_curve.png")
    slices_hu = probed.found.slices_hu[tested]
    errors = errors_figure(nodules.table[tested], slices_hu, FOUND_IN.size_mm, drawn["features"])
    run.log_figure(errors, "figures/errors.png")


def probe(config: ProbeConfig, run: Run, cohort: Cohort, opened: Sequence[Source]) -> Probed:
    """Read the nodules, fit every row out of fold, print the table and ask the primary question.

    Args:
        config: Configuration of the probe.
        run: It gets tags, folds, and the table of what is left out.
        cohort: Of the nodules.
        opened: Where their vectors come from, see `open_sources`.
    """
    spec = CropSpec(size_mm=config.size_mm, out_px=input_px(opened))
    diagnosis = read_diagnoses(config.diagnosis)
    nodules = labeled_nodules(config, cohort, spec, config.input == "whole_slice", diagnosis)
    nodules = readable(config, cohort, opened, nodules)
    report_unknown_diameters(nodules)
    aim = aim_of(config, nodules)
    nodules = aim.nodules
    other = open_test_cohort(config, nodules)
    readers = readers_of(config.backbone, opened, cohort, nodules.patient_ids, config.leak)
    folds = settled_folds(config, run, cohort, readers, nodules)
    print(f"features of {', '.join(reader.loaded.source for reader in readers)}")
    others = [] if other is None else [other]
    frozen = [vectors_of(config, reader.loaded, cohort, nodules, others) for reader in readers]
    found = find_nodules(config, cohort, nodules, diagnosis)
    inputs = gather_inputs(config, cohort, found, frozen, folds, diagnosis)
    say_what_rows_mean(run, frozen, nodules, inputs)
    target = aim.target(config, np.unique(np.concatenate([test for own in folds for _, test in own])))
    factory = probe_factory(config.head, config.seed, config.device)
    scores = score_rows(inputs, target, nodules, found, factory)
    table = evaluate(config, nodules, scores, shuffled(config, target, inputs, factory))
    print(short_table(table))
    meaning = "labels are those of the table of nodules"
    if config.rule in RATED:
        meaning = "LIDC ratings are readers' suspicion, not cancer"
    print(
        f"{meaning}; intervals are over patients, conditional on training; useless features lower what joins them."
    )
    answer = None
    if config.features != "patches":  # The test needs one vector per nodule.
        answer = ask(config, nodules, inputs, found, aim.asked)
    if answer is not None:
        print(answer)
        if answer.holds_rating:
            run.set_tags({Tag.LEAK: "features hold the rating"})
            print("leak (features hold the rating): no image predicts the readers so well")
    return Probed(cohort, frozen, aim, found, inputs, target, scores, table, answer)


def say_what_rows_mean(run: Run, frozen: Sequence[NoduleVectors], nodules: NoduleSet, inputs: Inputs) -> None:
    """Print, and tag, that a table holds the label; print that there are no random weights."""
    for one in frozen:
        column = one.tells(nodules.labels) if isinstance(one, TableFeatures) else ""
        if column:
            run.set_tags({Tag.LEAK: "features hold the label"})
            print(f"leak (features hold the label): column {column} of {one.loaded.source} tells it alone")
    if not inputs.twins:
        print("no random weights: nothing here can be randomized, so nothing is said about what was learned")


def told_others_spacing(config: ProbeConfig, probed: Probed) -> dict[str, float]:
    """Score the features of networks that take the spacing when each nodule is told another's: a control.

    Returns:
        `probe/others_spacing_auroc` with its interval; empty where no network takes it.
    """
    told = [one.misinformed(config.seed) if isinstance(one, CubeTokens) else None for one in probed.frozen]
    parts = [
        (vectors, folds)
        for vectors, (_, folds) in zip(told, probed.inputs.features, strict=True)
        if vectors is not None
    ]
    if len(parts) < len(told):
        return {}
    scores = probed.target.score(parts, probe_factory(config.head, config.seed, config.device))
    tested = np.isfinite(scores)
    labels, patients = probed.target.labels[tested], probed.target.patient_ids[tested]
    area = auroc_with_interval(labels, scores[tested], patients, config.n_bootstrap, config.seed)
    print(f"told the spacing of other nodules: AUROC {area}")
    return area.named("probe/others_spacing_auroc")


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
        run.log_figure(known_figure(known), "figures/known.png")
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
        known, is_matched = np.isfinite(nodules.diameter_mm), np.zeros(len(nodules.labels), bool)
        is_matched[known] = matched_by_size(nodules.labels[known], nodules.diameter_mm[known])
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
