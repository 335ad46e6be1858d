"""The synthetic slices as a cohort: a training samples the middle slices alone, each with its own neighbors."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import find_recipe, load_recipe, read_yaml
from pipelines.phantom.wall_cohort import chest_slices, make_wall_cohort
from pipelines.training.config import PretrainConfig
from pipelines.training.patients import divide_patients
from probes.splits import patient_hash


@pytest.fixture(scope="module")
def small_wall(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("wall") / "cohort"
    make_wall_cohort(root, volumes=3, slices_each=4)
    return Cohort.open(root)


def test_each_sampled_triplet_is_one_slice_with_its_own_neighbors(small_wall: Cohort) -> None:
    index = SliceIndex(small_wall, small_wall.series["patient_id"], inner=True)
    read = index.read(range(len(index))).triplets_hu.numpy()
    np.testing.assert_array_equal(read, chest_slices(12))


def test_without_inner_copies_stand_in_for_missing_neighbors(small_wall: Cohort) -> None:
    every = SliceIndex(small_wall, small_wall.series["patient_id"])
    assert len(every) == 36
    first = every.read([0]).triplets_hu.numpy()[0]
    np.testing.assert_array_equal(first[0], first[1])


def test_inner_slices_of_a_volume_without_gaps_are_all_but_its_ends(small_cohort: Cohort) -> None:
    patients = small_cohort.series["patient_id"]
    every, inner = SliceIndex(small_cohort, patients), SliceIndex(small_cohort, patients, inner=True)
    n_gaps = sum(len(gaps) for gaps in small_cohort.series["gaps"])
    assert len(every) - len(inner) == 2 * (len(small_cohort.series) + n_gaps)
    read = inner.read(range(len(inner))).triplets_hu.numpy()
    assert all((triplet[0] != triplet[1]).any() and (triplet[2] != triplet[1]).any() for triplet in read)


def test_the_recipe_trains_on_2048_slices(tmp_path: Path) -> None:
    make_wall_cohort(tmp_path / "wall", slices_each=1)
    cohort = Cohort.open(tmp_path / "wall")
    config = load_recipe(PretrainConfig, read_yaml(find_recipe("wall")))
    assert len(divide_patients(cohort, config).train) * 128 == 2048


def test_max_patients_keeps_the_first_by_hash_and_holds_out_the_same(tmp_path: Path) -> None:
    make_wall_cohort(tmp_path / "wall", slices_each=1)
    cohort = Cohort.open(tmp_path / "wall")
    every = divide_patients(cohort, PretrainConfig())
    few = divide_patients(cohort, PretrainConfig(max_patients=3))
    assert few.train == sorted(every.train, key=patient_hash)[:3]
    assert few.held_out == every.held_out
