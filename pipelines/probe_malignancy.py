"""Entry point `probe_malignancy`: what a frozen backbone knows of nodules, beside what needs no backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from pipelines import tracking
from pipelines.backbones import LoadedBackbone, open_backbone, random_twin
from pipelines.cli import main
from pipelines.cohort import Cohort
from pipelines.default_cohort import ensure_cohort
from pipelines.distributed import choose_device
from pipelines.nodule_set import FeatureName, NoduleSet, WindowName, encode, nodule_set
from pipelines.tracking import Run
from probes.labels import LabelRule
from probes.linear import LinearProbe, cross_fit
from probes.metrics import auroc_difference, auroc_with_interval
from probes.splits import Splits, is_held_out, patient_folds
from transforms.nodule import CropSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """A malignancy probe of one backbone on one cohort."""

    cohort: str = "cohorts/phantom"
    backbone: str = ""
    """runs:/<id>/backbone, a folder, or timm:<name>; "" takes the newest finished pretrain run."""
    rule: LabelRule = "consensus"
    size_mm: float = 50.0
    """Side of the crop; at the backbone's input size this fixes the mm per pixel."""
    window: WindowName = "lung"
    features: FeatureName = "class_token"
    folds: int = 5
    repeats: int = 5
    n_bootstrap: int = 2000
    seed: int = 0
    device: str = "auto"


def run_probe(config: ProbeConfig, run: Run) -> None:
    """Fit a logistic regression on frozen features out of fold, and print it beside its floors."""
    ensure_cohort(Path(config.cohort))
    cohort = Cohort.open(Path(config.cohort))
    loaded = open_backbone(chosen_backbone(config.backbone))
    print(f"backbone {loaded.source}")
    spec = CropSpec(size_mm=config.size_mm, out_px=loaded.backbone.image_px)
    nodules = nodule_set(cohort, config.rule, spec)
    print(nodules.labelled.counts)
    splits = patient_folds(
        nodules.patient_ids.tolist(),
        nodules.labels,
        unseen=unseen_patients(loaded, cohort),
        n_folds=config.folds,
        n_repeats=config.repeats,
        seed=config.seed,
    )
    tag(run, loaded, cohort, splits, spec)
    scores = score(config, loaded, nodules, splits)
    tested = np.isfinite(scores["features"])
    table, metrics = compare(config, nodules, scores, tested)
    print(table.to_string(index=False))
    run.log_metrics(metrics)
    run.log_table(table, "tables/probe.csv")
    predictions = nodules.table[["nodule_id", "patient_id", "diameter_mm", "is_malignant"]].assign(**scores)
    run.log_table(predictions[tested], "tables/predictions.parquet")
    run.log_table(nodules.dropped, "tables/dropped.parquet")
    run.log_table(splits.table(), "tables/splits.parquet")
    run.log_figure(
        roc_figure(nodules.labels[tested], {k: v[tested] for k, v in scores.items()}), "figures/roc.png"
    )


def chosen_backbone(name: str) -> str:
    """Return the name given, else that of the newest finished pretrain run.

    Raises:
        ValueError: If none was given and there is none.
    """
    if name:
        return name
    newest = tracking.newest_backbone_run()
    if newest is None:
        raise ValueError(
            f"there is no finished pretrain run in {tracking.tracking_uri()} to probe; first run"
            " `mlflow run . -e pretrain`, or give -P backbone=timm:<name>"
        )
    return f"runs:/{newest}/backbone"


def unseen_patients(loaded: LoadedBackbone, cohort: Cohort) -> set[str] | None:
    """Return the patients of the cohort that the backbone did not see; None when nobody knows."""
    everyone = {str(patient) for patient in cohort.nodules["patient_id"]}
    if loaded.source.startswith("timm:"):
        return everyone
    if "holdout" not in loaded.record:
        return None
    if loaded.record.get("leak"):
        return set()
    return {patient for patient in everyone if is_held_out(patient, loaded.record["holdout"])}


def tag(run: Run, loaded: LoadedBackbone, cohort: Cohort, splits: Splits, spec: CropSpec) -> None:
    """Tag the run with where its figures come from, and warn of a leak or of a scale never seen."""
    tags = {
        "dinox.cohort_sha": cohort.sha256,
        "dinox.probed": loaded.source,
        "dinox.probed_run": loaded.run_id,
        "dinox.backbone_sha": loaded.sha256,
        "dinox.probed_recipe": str(loaded.record.get("recipe", "")),
    }
    if splits.leak:
        tags["dinox.leak"] = splits.leak
        print(f"leak: {splits.leak}: the backbone may have seen the test patients")
    scale = loaded.record.get("mm_per_pixel")
    if scale and not scale[0] <= spec.mm_per_px <= scale[1]:
        tags["dinox.scale"] = "out of distribution"
        print(
            f"scale: crops at {spec.mm_per_px:.2f} mm per pixel lie outside the {scale[0]:.2f} .. {scale[1]:.2f}"
            " that the backbone was pretrained on"
        )
    run.set_tags(tags)


def score(
    config: ProbeConfig, loaded: LoadedBackbone, nodules: NoduleSet, splits: Splits
) -> dict[str, NDArray[np.float64]]:
    """Return one out-of-fold score per nodule and row of the table; NaN where a nodule is never tested."""
    device = choose_device(config.device)
    diameter = np.log(nodules.table["diameter_mm"].to_numpy(dtype=np.float64))[:, None]
    hu_scale = float(loaded.record.get("hu_scale", 1.0))

    def features(backbone_of: LoadedBackbone | None) -> NDArray[np.float32]:
        backbone = backbone_of.backbone if backbone_of else random_twin(loaded, config.seed)
        return encode(backbone, nodules.crops_hu, config.window, config.features, device, hu_scale)

    def out_of_fold(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return cross_fit(
            lambda: LinearProbe(seed=config.seed), values, nodules.labels, nodules.patient_ids, splits.folds
        )

    learned = features(loaded).astype(np.float64)
    return {
        "features": out_of_fold(learned),
        "diameter": out_of_fold(diameter),
        "random": out_of_fold(features(None).astype(np.float64)),
        "features_and_diameter": out_of_fold(np.hstack([learned, diameter])),
    }


def compare(
    config: ProbeConfig, nodules: NoduleSet, scores: dict[str, NDArray[np.float64]], tested: NDArray[np.bool_]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the printed table and the metrics: every AUROC with its interval, overall and inside 6-15 mm."""
    labels, patients = nodules.labels, nodules.patient_ids
    diameter = nodules.table["diameter_mm"].to_numpy(dtype=np.float64)
    names = {"features": "probe/auroc", "diameter": "probe/diameter_auroc", "random": "probe/random_auroc"}
    names["features_and_diameter"] = "probe/features_and_diameter_auroc"
    rows, metrics = [], {"probe/n_nodules": float(tested.sum())}
    metrics["probe/n_patients"] = float(len(np.unique(patients[tested])))
    for suffix, stratum in (("", tested), ("_6_15mm", tested & (diameter >= 6) & (diameter <= 15))):
        positives = int(labels[stratum].sum())
        if not 0 < positives < stratum.sum():
            continue
        for name, metric in names.items():
            found = auroc_with_interval(
                labels[stratum], scores[name][stratum], patients[stratum], config.n_bootstrap, config.seed
            )
            metrics |= {
                f"{metric}{suffix}": found.value,
                f"{metric}_ci_low{suffix}": found.ci_low,
                f"{metric}_ci_high{suffix}": found.ci_high,
            }
            where = "6-15 mm" if suffix else "all"
            rows.append((name, where, int(stratum.sum()), positives, str(found)))
        gain = auroc_difference(
            labels[stratum], scores["features_and_diameter"][stratum], scores["diameter"][stratum], patients[stratum],
            config.n_bootstrap, config.seed,
        )  # fmt: skip
        metrics |= {
            f"probe/gain_over_diameter{suffix}": gain.value,
            f"probe/gain_over_diameter_ci_low{suffix}": gain.ci_low,
            f"probe/gain_over_diameter_ci_high{suffix}": gain.ci_high,
            f"probe/gain_over_diameter_p{suffix}": gain.p,
        }
        rows.append(
            ("gain over diameter", "6-15 mm" if suffix else "all", int(stratum.sum()), positives, str(gain))
        )
    return pd.DataFrame(rows, columns=["row", "nodules", "n", "malignant", "AUROC [95% interval]"]), metrics


def roc_figure(labels: NDArray[np.int64], scores: dict[str, NDArray[np.float64]]) -> Figure:
    """Draw the ROC curve of every row."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    for name, values in scores.items():
        false_positive, true_positive, _ = roc_curve(labels, values)
        axis.plot(false_positive, true_positive, label=name.replace("_", " "))
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="chance")
    axis.set_xlabel("1 - specificity")
    axis.set_ylabel("sensitivity")
    axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main("probe_malignancy", ProbeConfig, run_probe)
