"""Entry point `prepare`: a folder of CT to a cohort; files that cannot be read correctly are refused with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.ingest.config import PrepareConfig
from pipelines.tracking.names import Tag

if TYPE_CHECKING:
    from pipelines.tracking.run import Run


def run_prepare(config: PrepareConfig, run: Run) -> None:
    """Prepare the cohort, and log the counts to the MLflow run."""
    from pipelines.ingest.preparation import prepare_cohort  # heavy: not for --help

    prepared = prepare_cohort(config)
    cohort = prepared.cohort
    run.set_tags({Tag.COHORT_SHA: cohort.sha256})
    run.log_metrics(
        {
            "prepare/volumes": len(cohort.series),
            "prepare/new_volumes": prepared.n_new,
            "prepare/patients": cohort.series["patient_id"].nunique(),
            "prepare/nodules": len(cohort.nodules),
            "prepare/refused_files": prepared.files.left_out.total(),
            "prepare/refused_rows": prepared.rows.left_out.total() if prepared.rows else 0,
            "prepare/same_voxels": len(prepared.same_voxels),
            "prepare/columns_left_out": prepared.columns.n_left_out if prepared.columns else 0,
        }
    )
    if len(cohort.refused):
        run.log_table(cohort.refused, "tables/refused.parquet")
    n_unsized = int(cohort.nodules["diameter_mm"].isna().sum())
    print(
        f"{cohort.root}: {len(cohort.series)} volumes of {cohort.series['patient_id'].nunique()} patients "
        f"({prepared.n_new} new), {len(cohort.nodules)} nodules"
        + (f" ({n_unsized} without a diameter)" if n_unsized else "")
    )
    print(f"{prepared.files}{'; see refused.parquet' if len(cohort.refused) else ''}")
    if prepared.rows:
        print(prepared.rows)
    if prepared.doubt:
        print(prepared.doubt)
    for patients in prepared.same_voxels:
        print(
            f"the same voxels are {len(patients)} patients ({', '.join(patients)}): if they are one, give them one "
            "patient_id, or one may be trained on and the other tested"
        )
    if prepared.columns and prepared.columns.n_left_out:
        print(prepared.columns)
    n_twice = int((cohort.nodules.groupby("volume_id")["source"].nunique() > 1).sum())
    if n_twice:
        print(
            f"{n_twice} volumes have nodules of the annotation table in addition to nodules of the source: a rule that"
            " reads ratings counts both; leave ratings out of the table and give a label, or leave the table out"
        )


if __name__ == "__main__":
    main("prepare")
