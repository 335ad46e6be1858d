"""Cubes of a cohort through the loader: what a training run is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.config import BackboneConfig
from pipelines.backbones.view_retrieval import SliceSample, retrieve
from pipelines.cohort.drawn import DrawnBatch, draw_batch
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import CohortError
from pipelines.training.config import PretrainConfig
from pipelines.training.indexing import indexed
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from transforms.views.batch import Views
from transforms.views.config import ViewConfig

CUBES = ViewConfig(
    size_px=16,
    depth_px=8,
    extent="mm",
    fov_mm=(12.0, 24.0),
    n_local=1,
    local_size_px=8,
    local_depth_px=4,
    local_fov_mm=(6.0, 12.0),
)


def index_of(cohort: Cohort, views: ViewConfig = CUBES, inner: bool = False) -> SliceIndex:
    return SliceIndex(cohort, set(cohort.series["patient_id"]), inner, views)


def batches_of(cohort: Cohort, workers: int, render: bool = True) -> list[DrawnBatch | Views]:
    index = index_of(cohort)
    dataset = MicroBatches(index, BatchPlan(len(index), 4, 1, seed=5), CUBES, 5, render)
    return list(stream_batches(dataset, 0, 3, workers, pin=False))


def test_cubes_are_the_same_for_any_number_of_workers_and_where_a_device_renders(
    small_cohort: Cohort,
) -> None:
    one, two, raw = (
        batches_of(small_cohort, 0),
        batches_of(small_cohort, 2),
        batches_of(small_cohort, 2, render=False),
    )
    for alone, shared, drawn in zip(one, two, raw, strict=True):
        assert isinstance(alone, Views)
        assert isinstance(drawn, DrawnBatch)
        assert alone.global_views.shape == (2, 4, 1, 8, 16, 16)
        assert alone.local_views is not None
        assert alone.local_views.shape == (1, 4, 1, 4, 8, 8)
        assert alone.spacing_mm.shape == (3, 4, 3)
        late = drawn.render(torch.device("cpu"), CUBES)
        for name in Views.__slots__:
            assert torch.equal(getattr(alone, name), getattr(shared, name)), name
            assert torch.equal(getattr(alone, name), getattr(late, name)), name


def test_a_cube_holds_the_voxels_of_its_volume(small_cohort: Cohort) -> None:
    """Read by the index, and found again in the volume on disk."""
    index = index_of(small_cohort)
    batch = MicroBatches(index, BatchPlan(len(index), 4, 1, seed=5), CUBES, 5, render=False)[0]
    assert isinstance(batch, DrawnBatch)
    begin = 0
    rows = BatchPlan(len(index), 4, 1, seed=5).rows(0)
    for view in batch.draws.places.read_zyx:  # type: ignore[union-attr]
        for row, box in zip(rows, view, strict=True):
            volume = small_cohort.volume(index.volume_ids[index.volume[row]])
            wanted = volume[tuple(slice(*ends) for ends in box)]
            read = batch.voxels.voxels_hu[begin : begin + wanted.size]  # type: ignore[union-attr]
            assert np.array_equal(read.numpy().reshape(wanted.shape), wanted)
            begin += wanted.size


def test_volumes_that_hold_no_cube_are_left_out_and_counted(small_cohort: Cohort) -> None:
    depth_mm = [
        shape[0] * spacing[0]
        for shape, spacing in small_cohort.series[["shape", "spacing_mm"]].itertuples(index=False)
    ]
    between = float(np.mean([min(depth_mm), max(depth_mm)]))
    n_small = sum(depth < between for depth in depth_mm)
    assert 0 < n_small < len(depth_mm), "a cohort of volumes of one length tests nothing"
    index = index_of(small_cohort, replace(CUBES, depth_mm=(between, between)))
    assert len(index.volume_ids) == len(depth_mm) - n_small
    assert index.n_small == n_small
    assert f"{n_small} of {len(depth_mm)} volumes hold no cube of {between:.3g} x 12 x 12 mm" in index.said[0]
    nothing = PretrainConfig(
        views=replace(CUBES, depth_mm=(900.0, 950.0), n_local=0, local_depth_px=0),
        backbone=BackboneConfig(
            arch="custom",
            depth=1,
            embed_dim=16,
            heads=2,
            image_px=16,
            image_depth_px=8,
            patch_px=4,
            patch_depth_px=4,
        ),
        batch_size=4,
    )
    patients = sorted(small_cohort.series["patient_id"].unique())
    with pytest.raises(
        CohortError,
        match=r"nothing to train on, (\d+) of \1 volumes hold no cube of 900 x 12 x 12 mm .*: lower",
    ):
        indexed(nothing, small_cohort, patients, is_training=True)
    assert not len(indexed(nothing, small_cohort, patients))  # held out: no retrieval, and no refusal


def altered(cohort: Cohort, **columns: object) -> Cohort:
    """The same volumes, with columns of their table changed."""
    other = Cohort.open(cohort.root)
    other.series = cohort.series.assign(
        **{name: [value] * len(cohort.series) for name, value in columns.items()}
    )
    return other


def test_patches_that_were_cut_to_a_nodules_length_are_refused_for_cubes_alone(small_cohort: Cohort) -> None:
    patches = altered(small_cohort, kind="patch")
    with pytest.raises(CohortError, match=r"tells its label: cubes .* need whole series"):
        index_of(patches)
    index_of(patches, ViewConfig())


def test_slices_far_apart_are_allowed_and_said(small_cohort: Cohort) -> None:
    assert (
        "between slices cubes are interpolated"
        in index_of(small_cohort, replace(CUBES, depth_px=16)).said[-1]
    )
    coarse = replace(CUBES, depth_px=2, depth_mm=(12.0, 24.0), local_depth_px=1)
    assert not index_of(small_cohort, coarse).said


def test_inner_slices_are_those_whose_smallest_cube_repeats_none(small_cohort: Cohort) -> None:
    with_gap = altered(small_cohort, gaps=[9])
    fixed = replace(CUBES, depth_mm=(7.3, 7.3))
    index = index_of(with_gap, fixed, inner=True)
    places = draw_batch(index, np.arange(len(index)), fixed, 0, 0).draws.places  # type: ignore[union-attr]
    low, high = places.start_zyx[:2, :, 0], (places.start_zyx + places.length_zyx)[:2, :, 0]
    depth = index.n_slices[index.volume]
    is_below = index.z <= 9
    assert (low >= np.where(is_below, 0, 10)).all()
    assert (high <= np.where(is_below, 10, depth)).all()
    # Nothing more is left out: one slice further on, a cube may reach across.
    for volume, n_slices in enumerate(index.n_slices.tolist()):
        own, reach = index.z[index.volume == volume], 7.3 / index.slice_mm[volume] / 2
        wanted = [
            z
            for z in range(n_slices)
            for a, b in ((0, 10), (10, n_slices))
            if z - reach >= a and z + 1 + reach <= b
        ]
        assert own.tolist() == wanted


def test_nothing_is_read_across_a_gap(small_cohort: Cohort) -> None:
    index = index_of(altered(small_cohort, gaps=[9]))
    rows = np.flatnonzero(np.abs(index.z - 9) <= 2)
    read = draw_batch(index, rows, CUBES, 0, 0).draws.places.read_zyx[..., 0, :]  # type: ignore[union-attr]
    is_below = index.z[rows] <= 9
    assert (read[:, is_below, 1] <= 10).all()
    assert (read[:, ~is_below, 0] >= 10).all()
    assert (read[:, is_below, 1] == 10).any()


def test_cubes_that_overlap_along_z_are_adjacent_in_retrieval(small_cohort: Cohort) -> None:
    """Cubes of at most 12 mm: of two wrong keys that are nearer than a cube's own, one lies 11, one 13 mm away."""
    views = replace(CUBES, depth_mm=(10.0, 12.0))
    index = index_of(small_cohort, views)
    volume = int(np.argmin(np.abs(index.slice_mm - 1.0)))
    assert index.slice_mm[volume] == 1.0
    first = int(np.flatnonzero(index.volume == volume)[0])
    for apart, share in ((11, 1.0), (13, 0.5)):
        sample = SliceSample(index, np.array([first, first + apart]), views)
        keys = np.eye(2, dtype=np.float32)
        queries = np.array(
            [[0.5, 0.8], [0.0, 1.0]], np.float32
        )  # the first finds the second's key before its own
        found = retrieve(sample, np.stack([queries, keys]))
        assert found.top1.value == 0.5
        assert found.top1_not_adjacent.value == share
