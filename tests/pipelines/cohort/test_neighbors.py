"""Which slice a second view shows: another of the same nodule, near, in the same volume, and not across a gap."""

import numpy as np

from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex


def index_of(cohort: Cohort) -> SliceIndex:
    return SliceIndex(cohort, set(cohort.series["patient_id"]))


def test_every_near_slice_of_the_volume_is_chosen_equally_often(small_cohort: Cohort) -> None:
    index = index_of(small_cohort)
    index.points = {}
    row = 5
    uniforms = (np.arange(400) / 400).tolist()
    chosen = index.neighbors(np.full(400, row), 2, uniforms)
    assert dict(zip(*np.unique(chosen, return_counts=True), strict=True)) == {3: 100, 4: 100, 6: 100, 7: 100}
    first = index.neighbors(np.full(400, 0), 2, uniforms)
    assert set(first.tolist()) == {1, 2}
    last = int(np.flatnonzero(index.volume == 0)[-1])
    assert set(index.neighbors(np.full(400, last), 2, uniforms).tolist()) == {last - 2, last - 1}


def test_a_neighbor_shares_the_nodule_and_does_not_lie_across_a_gap(small_cohort: Cohort) -> None:
    index = index_of(small_cohort)
    index.points = {(0, z): (1.0, 2.0) for z in (4, 5, 6)} | {(0, 7): (9.0, 9.0)}
    index.gaps[0] = (4,)  # between slices 4 and 5
    uniforms = (np.arange(40) / 40).tolist()
    assert set(index.neighbors(np.full(40, 5), 2, uniforms).tolist()) == {6}
    assert set(index.neighbors(np.full(40, 4), 2, uniforms).tolist()) == {4}  # alone: its own
    assert set(index.neighbors(np.full(40, 7), 2, uniforms).tolist()) == {7}
    assert set(index.neighbors(np.full(40, 8), 2, uniforms).tolist()) == {9, 10}
