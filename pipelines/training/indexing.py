"""Which slices of some patients a training draws, and what it centers views on."""

from collections.abc import Sequence

from pipelines.cohort.folder import Cohort
from pipelines.cohort.points import Places, annotated_places, blob_places, first_then
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import CohortError
from pipelines.runtime.distributed import done_by_rank_zero
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.training.config import PretrainConfig


def indexed(
    config: PretrainConfig, cohort: Cohort, patients: Sequence[str], is_training: bool = False
) -> SliceIndex:
    """Index the slices of some patients as a recipe asks; every process must call it.

    Raises:
        CohortError: If no slice is left to train on.
    """
    places = _places(config, cohort, patients)
    index = SliceIndex(cohort, patients, config.slices == "inner", config.views, places)
    if is_training and index.n_small and not index.volume_ids:
        raise CohortError(f"nothing to train on, {index.said[0]}: lower views.fov_mm and views.depth_mm")
    if config.slices == "points":
        index.leave_out_pointless()
        if is_training and not len(index):
            raise CohortError(
                f"slices=points trains on slices that show {config.points}, and none of the {len(patients)} training"
                " patients has one; set slices to all, or points to blobs"
            )
    return index


def _places(config: PretrainConfig, cohort: Cohort, patients: Sequence[str]) -> Places | None:
    if config.points == "nodules":
        return None
    series = cohort.series[cohort.series["patient_id"].isin(list(patients))]
    volume_ids, folder = [str(one) for one in series["volume_id"]], PROJECT_ROOT / config.runs_dir / "blobs"
    blobs = done_by_rank_zero(lambda: blob_places(cohort, volume_ids, folder))
    if config.points == "blobs":
        return blobs
    return first_then(annotated_places(cohort, volume_ids), blobs)
