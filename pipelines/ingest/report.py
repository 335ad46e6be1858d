"""What `prepare` tells: figures for MLflow, and lines for the user, which alone name paths and columns."""

from collections import Counter
from collections.abc import Iterator

from pipelines.cohort.identity import same_voxels, same_voxels_said
from pipelines.ingest.preparation import Prepared
from transforms.refusal import number_of

_MOST_REASONS = 12


def counts(prepared: Prepared) -> dict[str, float]:
    """Metrics of the run."""
    cohort = prepared.cohort
    found: dict[str, float] = {
        "prepare/volumes": len(cohort.series),
        "prepare/new_volumes": prepared.n_new,
        "prepare/patients": cohort.series["patient_id"].nunique(),
        "prepare/nodules": len(cohort.nodules),
        "prepare/refused_files": prepared.files.left_out.total(),
        "prepare/files_of_no_image": sum(not one.is_image for one in prepared.refused),
        "prepare/refused_rows": prepared.rows.left_out.total() if prepared.rows else 0,
        "prepare/same_voxels": len(same_voxels(cohort)),
        "prepare/columns_left_out": prepared.columns.n_left_out if prepared.columns else 0,
    }
    if prepared.witnessed:
        found |= {
            "prepare/witness_equal": sum(worst == 0 for worst in prepared.witnessed),
            "prepare/witness_worst_hu": max(prepared.witnessed),
        }
    return found


def lines(prepared: Prepared) -> Iterator[str]:
    """What became of the source, for the console alone: it names paths and columns."""
    cohort = prepared.cohort
    n_unsized = int(cohort.nodules["diameter_mm"].isna().sum())
    yield (
        f"{cohort.root}: {number_of(len(cohort.series), 'volume')} of"
        f" {number_of(cohort.series['patient_id'].nunique(), 'patient')} ({prepared.n_new} new),"
        f" {number_of(len(cohort.nodules), 'nodule')}"
        + (f" ({n_unsized} without a diameter)" if n_unsized else "")
    )
    yield from _files(prepared)
    if worst := prepared.witnessed:
        n_equal = sum(one == 0 for one in worst)
        yield f"witness: {n_equal} of {len(worst)} series equal, worst {max(worst):g} HU"
    if prepared.rows:
        yield str(prepared.rows)
    if prepared.doubt:
        yield prepared.doubt
    yield from same_voxels_said(cohort)
    if prepared.columns and prepared.columns.n_left_out:
        yield str(prepared.columns)
    n_twice = int((cohort.nodules.groupby("volume_id")["source"].nunique() > 1).sum())
    if n_twice:
        yield (
            f"{n_twice} volumes have nodules of the annotation table in addition to nodules of the source: a rule that"
            " reads ratings counts both; leave ratings out of the table and give a label, or leave the table out"
        )


def _files(prepared: Prepared) -> Iterator[str]:
    """Refusals by reason with counts and one path of each; files that are no images apart."""
    others = [one for one in prepared.refused if not one.is_image]
    images = [one for one in prepared.refused if one.is_image]
    said = (
        f"{number_of(prepared.files.n_in, 'file')} of {prepared.source}: {prepared.files.n_kept} in volumes"
    )
    if images:
        said += f", {len(images)} refused (refused.parquet has them all)"
    if others:
        said += f", {len(others)} are no images (such as {others[0].path})"
    yield said
    reasons = Counter(one.reason for one in images)
    for reason, count in reasons.most_common(_MOST_REASONS):
        first = next(one.path for one in images if one.reason == reason)
        yield f"  {count} refused: {reason}\n    {'such as ' if count > 1 else ''}{first}"
    if (rest := len(reasons) - _MOST_REASONS) > 0:
        yield f"  {rest} further reasons"
