"""Cubes around nodules are the voxels that lie there, in any batches, and their identity is what they depend on."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.nodule.cubes import Cubes
from pipelines.phantom.volumetric import make_volume_cohort
from transforms.nodule_cube import CubeSpec

SPEC = CubeSpec(shape=(9, 11, 11), spacing_mm=(2.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def only_z(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("cubes") / "z"
    make_volume_cohort(root, "only_z", patients=3)
    return Cohort.open(root)


@pytest.fixture(scope="module")
def only_mm(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("cubes") / "mm"
    make_volume_cohort(root, "only_mm", patients=3)
    return Cohort.open(root)


def voxels(cohort: Cohort, number: int, shape: tuple[int, int, int]) -> np.ndarray:
    hu = cohort.volume(str(cohort.nodules["volume_id"][number]))
    corner = [(n - own) // 2 for n, own in zip(hu.shape, shape, strict=True)]
    return np.asarray(hu[tuple(slice(at, at + own) for at, own in zip(corner, shape, strict=True))])


def test_at_the_spacing_of_the_volume_cubes_are_its_voxels_whatever_the_batches(only_z: Cohort) -> None:
    cubes = Cubes.around(only_z, only_z.nodules, SPEC)
    batches = list(cubes.batches(4))
    assert [len(batch.hu) for batch in batches] == [4, 2]
    found = np.concatenate([batch.hu for batch in batches])
    for number, cube in enumerate(found):
        np.testing.assert_allclose(cube, voxels(only_z, number, SPEC.shape), atol=1e-3)
    np.testing.assert_array_equal(found, next(cubes.batches(6)).hu)
    # The middle voxel lies where the nodule does.
    affine = batches[0].affines_ras[0]
    np.testing.assert_allclose(affine @ [4, 5, 5, 1], [0, 0, 0, 1])
    assert cubes.can_be_cut().all()
    assert not cubes.is_flat().any()


def test_own_voxels_are_not_resampled_and_carry_their_spacing(only_mm: Cohort) -> None:
    cubes = Cubes.around(only_mm, only_mm.nodules, SPEC, own_voxels=True)
    (batch,) = cubes.batches(6)
    for number, cube in enumerate(batch.hu):
        np.testing.assert_allclose(cube, voxels(only_mm, number, SPEC.shape), atol=1e-3)
    rows = only_mm.series.set_index("volume_id").loc[only_mm.nodules["volume_id"]]
    spacing = np.array([list(own) for own in rows["spacing_mm"]])
    np.testing.assert_array_equal(batch.spacing_mm, spacing)
    np.testing.assert_array_equal(batch.told_mm, spacing)
    order = np.array([1, 2, 3, 4, 5, 0])
    np.testing.assert_array_equal(next(replace(cubes, order=order).batches(6)).told_mm, spacing[order])


def test_identity_changes_with_all_that_a_network_sees(only_z: Cohort, only_mm: Cohort) -> None:
    cubes = Cubes.around(only_z, only_z.nodules, SPEC)
    moved = only_z.nodules.assign(z_lps_mm=1.0)
    others = [
        Cubes.around(only_mm, only_mm.nodules, SPEC),
        Cubes.around(only_z, moved, SPEC),
        replace(cubes, spec=CubeSpec(shape=(9, 11, 11), spacing_mm=(1.0, 2.0, 2.0))),
        replace(cubes, own_voxels=True),
        replace(cubes, order=np.array([1, 2, 3, 4, 5, 0])),
    ]
    seen = {one.identity().tobytes() for one in (cubes, *others)}
    assert len(seen) == 6
    assert cubes.identity().tobytes() == Cubes.around(only_z, only_z.nodules, SPEC).identity().tobytes()
