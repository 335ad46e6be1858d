"""Several cohorts in one training: shares by weight, every slice once in turn, the same after a resume."""

import itertools
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.cohort.folder import Cohort
from pipelines.cohort.identity import same_voxels, same_voxels_said
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import CohortError
from pipelines.cohort.union import CohortUnion, cohort_roots, open_cohorts
from pipelines.command.cli import run_entry_point
from pipelines.phantom.wall_cohort import make_wall_cohort
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchError, BatchPlan
from pipelines.training.mixture import BLOCK, Mixture
from pipelines.training.run import train
from probes.splits import is_held_out


@pytest.fixture(scope="module")
def two(small_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> CohortUnion:
    """The small phantom, and synthetic slices of 40 pixels."""
    root = tmp_path_factory.mktemp("second") / "wall"
    make_wall_cohort(root, volumes=4, slices_each=8)
    cohort = open_cohorts(f"{small_cohort.root}, {root}")
    assert isinstance(cohort, CohortUnion)
    return cohort


def test_two_cohorts_are_read_as_one(two: CohortUnion, small_cohort: Cohort) -> None:
    wall = two.parts[1]
    assert len(two.series) == len(small_cohort.series) + len(wall.series)
    assert len(two.nodules) == len(small_cohort.nodules)
    assert two.sha256 not in (small_cohort.sha256, wall.sha256)
    index = SliceIndex(pickle.loads(pickle.dumps(two)), list(two.series["patient_id"]))
    assert len(index) == sum(int(shape[0]) for shape in two.series["shape"])
    parts = two.part_of(index.volume_ids)[index.volume]
    rows = [int(np.flatnonzero(parts == part)[5]) for part in (0, 1)]
    batch = index.read(rows)
    for row, triplet, (height, width) in zip(rows, batch.triplets_hu, batch.size_hw.tolist(), strict=True):
        volume_id = index.volume_ids[index.volume[row]]
        expected = two.parts[int(parts[row])].volume(volume_id)[index.z[row]]
        np.testing.assert_array_equal(triplet[1, :height, :width], expected)
    assert len(np.unique(batch.sample_keys)) == 2


def test_a_volume_of_two_cohorts_counts_once_and_may_not_differ(small_cohort: Cohort, tmp_path: Path) -> None:
    shutil.copytree(small_cohort.root, tmp_path / "copy")
    both = open_cohorts(f"{small_cohort.root},{tmp_path / 'copy'}")
    assert (len(both.series), len(both.nodules)) == (len(small_cohort.series), len(small_cohort.nodules))
    assert both.sha256 == small_cohort.sha256
    table = pd.read_parquet(tmp_path / "copy" / "series.parquet")
    table.loc[0, "sha256"] = "0" * 64
    table.to_parquet(tmp_path / "copy" / "series.parquet")
    with pytest.raises(CohortError, match="hold different volumes under one id"):
        open_cohorts(f"{small_cohort.root},{tmp_path / 'copy'}")


def test_a_volume_of_two_cohorts_under_two_patients_is_said(small_cohort: Cohort, tmp_path: Path) -> None:
    shutil.copytree(small_cohort.root, tmp_path / "copy")
    table = pd.read_parquet(tmp_path / "copy" / "series.parquet")
    table.loc[0, ["volume_id", "patient_id"]] = ["again", "PHANTOM-9999"]
    table.to_parquet(tmp_path / "copy" / "series.parquet")
    both = open_cohorts(f"{small_cohort.root},{tmp_path / 'copy'}")
    assert same_voxels(small_cohort) == {}
    (patients,) = same_voxels(both).values()
    assert patients == sorted([small_cohort.series["patient_id"][0], "PHANTOM-9999"])
    (said,) = same_voxels_said(both)
    assert said.startswith(f"the same voxels are 2 patients ({', '.join(patients)})")


def test_a_folder_with_a_comma_in_its_name_is_one_cohort(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert cohort_roots(str(tmp_path / "a,b")) == [tmp_path / "a,b"]
    assert cohort_roots("a, b") == [Path("a"), Path("b")]


def mixture_of(sizes: tuple[int, ...], counts: tuple[int, ...]) -> Mixture:
    ends = np.cumsum([0, *sizes])
    return Mixture(tuple(np.arange(a, b) for a, b in itertools.pairwise(ends)), counts)


def test_shares_are_exact_and_every_slice_of_a_cohort_comes_once_before_any_comes_again() -> None:
    plan = BatchPlan(440, 20, 1, 3, mixture=mixture_of((40, 400), (100, 900)))
    rows = np.concatenate([plan.rows(micro) for micro in range(3 * BLOCK // 20)])
    is_first = rows < 40
    assert [int(is_first[k * BLOCK : (k + 1) * BLOCK].sum()) for k in range(3)] == [100, 100, 100]
    assert 0 < is_first[:100].sum() < 40  # shuffled, not in turn
    for own, n in ((rows[is_first], 40), (rows[~is_first], 400)):
        for epoch in range(len(own) // n):
            assert set(Counter(own[epoch * n : (epoch + 1) * n].tolist()).values()) == {1}
    assert rows[is_first][:40].tolist() != rows[is_first][40:80].tolist()


def test_a_sample_depends_on_seed_and_position_alone() -> None:
    mixture = mixture_of((40, 400), (100, 900))
    alone = BatchPlan(440, 20, 1, 3, mixture=mixture)
    whole = np.concatenate([alone.rows(micro) for micro in range(120)])
    again = BatchPlan(440, 20, 1, 3, mixture=pickle.loads(pickle.dumps(mixture)))
    np.testing.assert_array_equal(
        np.concatenate([again.rows(m) for m in range(119, 59, -1)][::-1]), whole[1200:]
    )
    shares = [BatchPlan(440, 20, 1, 3, rank, 2, mixture).rows(7) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), whole[140:160])
    assert not np.array_equal(BatchPlan(440, 20, 1, 4, mixture=mixture).rows(0), alone.rows(0))


def test_mixtures_that_cannot_be_are_refused(two: CohortUnion) -> None:
    index = SliceIndex(two, list(two.series["patient_id"]))
    assert Mixture.of(index, two, (), 8) is None
    mixture = Mixture.of(index, two, (1, 2), 8)
    assert mixture is not None
    assert mixture.counts == (333, 667)
    for weights, batch, words in (
        ((1,), 8, r"has 1 number\(s\) for 2 cohort\(s\)"),
        ((1, 5000), 8, "below a thousandth"),
        ((1, 1), 97, "fewer than the 97 of a batch"),
    ):
        with pytest.raises(CohortError, match=words):
            Mixture.of(index, two, weights, batch)
    with pytest.raises(CohortError, match=r"2 number\(s\) for 1 cohort"):
        Mixture.of(index, two.parts[0], (1, 2), 8)
    for weights in ("0", "1,-2", "1;2", ",1"):
        with pytest.raises(ValueError, match="cohort_weights are numbers above 0"):
            PretrainConfig(cohort_weights=weights)


@pytest.mark.slow
def test_a_training_takes_two_cohorts_and_holds_out_their_patients_by_one_hash(
    two: CohortUnion, own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--steps=2", "--batch_size=4", "--eval_slices=8", "--device=cpu", "--backbone.depth=1"]
    words += ["--backbone.embed_dim=16", "--backbone.heads=2", "--backbone.image_px=28", "--views.size_px=28"]
    words += ["--head.prototypes=32", f"--runs_dir={own_store / 'runs'}", "--workers=0"]
    words += [f"--cohort={two.parts[0].root},{two.parts[1].root}", "--cohort_weights=1,3"]
    assert run_entry_point("pretrain", PretrainConfig, train, "demo", words) == 0
    (run,) = MlflowClient().search_runs(["0"])
    assert run.data.tags["dinox.cohort_sha"] == two.sha256
    patients = set(two.series["patient_id"])
    assert run.data.metrics["data/held_out_patients"] == sum(is_held_out(one, 0.2) for one in patients)


def test_batches_of_like_diameter_hold_every_slice_once_and_are_drawn_anew() -> None:
    diameter = np.random.default_rng(0).uniform(3, 30, 1000)
    diameter[:7] = np.nan
    plan = BatchPlan(1000, 16, 1, 3, diameter_mm=diameter)
    epoch = np.array([plan.rows(micro) for micro in range(1000 // 16)])
    assert len(set(epoch.ravel())) == epoch.size
    shuffled = np.array([BatchPlan(1000, 16, 1, 3).rows(micro) for micro in range(1000 // 16)])

    def spread(rows: np.ndarray) -> float:
        return float(np.nanmean(np.nanstd(diameter[rows], axis=1)))

    assert spread(epoch) < 0.15 * spread(shuffled)
    means = np.nanmean(diameter[epoch], axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.4  # sizes come in no order
    later = np.array([plan.rows(micro) for micro in range(1000 // 16, 2 * (1000 // 16))])
    assert len(set(later.ravel())) == later.size
    assert not any(set(one) == set(other) for one in epoch for other in later)
    halves = [BatchPlan(1000, 16, 1, 3, rank, 2, diameter_mm=diameter).rows(5) for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), plan.rows(5))
    copy = pickle.loads(pickle.dumps(plan))
    np.testing.assert_array_equal(copy.rows(70), plan.rows(70))
    with pytest.raises(BatchError, match="no training slice shows one"):
        BatchPlan(1000, 16, 1, 3, diameter_mm=np.full(1000, np.nan))
