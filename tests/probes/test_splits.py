"""No patient on both sides, and no tested patient was seen by the backbone."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, strategies as st

from probes.splits import HoldoutError, is_held_out, patient_folds, patient_hash, split_60_20_20
from probes.statistics.checks import TooFewError


def cohort(n_patients: int = 60, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Patients with one to four nodules each, a third of them malignant."""
    rng = np.random.default_rng(seed)
    patients = [f"LIDC-IDRI-{i:04d}" for i in range(n_patients) for _ in range(rng.integers(1, 5))]
    return patients, (rng.random(len(patients)) < 1 / 3).astype(int)


def test_the_hash_is_sha256_over_2_to_the_256() -> None:
    expected = int(sha256(b"LIDC-IDRI-0001").hexdigest(), 16) / 2**256
    assert patient_hash("LIDC-IDRI-0001") == expected
    assert is_held_out("LIDC-IDRI-0001", expected + 1e-9)
    assert not is_held_out("LIDC-IDRI-0001", expected)


@given(st.text())
def test_every_patient_is_in_exactly_one_half(patient_id: str) -> None:
    assert is_held_out(patient_id, "half_a") != is_held_out(patient_id, "half_b")
    assert is_held_out(patient_id, "half_a") == is_held_out(patient_id, 0.5)
    assert is_held_out(patient_id, 1.0)
    assert not is_held_out(patient_id, 0.0)


def test_the_share_held_out_is_the_fraction_asked_for() -> None:
    share = np.mean([is_held_out(f"LIDC-IDRI-{i:04d}", 0.2) for i in range(1, 1013)])
    assert share == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("holdout", [1.5, -0.1, "half_c"])
def test_a_holdout_that_cannot_be_is_refused(holdout: object) -> None:
    with pytest.raises(HoldoutError, match="half_a, half_b or a fraction from 0 to 1"):
        is_held_out("patient", holdout)


def test_no_patient_is_on_both_sides_and_each_row_is_tested_once_a_repeat() -> None:
    patients, labels = cohort()
    ids = np.array(patients)
    splits = patient_folds(patients, labels, n_folds=5, n_repeats=3)
    assert len(splits.folds) == 15
    for fold in splits:
        assert not set(ids[fold.train]) & set(ids[fold.test])
        assert set(fold.train) | set(fold.test) == set(range(len(ids)))
        assert set(labels[fold.test]) == {0, 1}
    for repeat in range(3):
        tested = np.concatenate([fold.test for fold in splits if fold.repeat == repeat])
        assert sorted(tested) == list(range(len(ids)))
    deals = [tuple(fold.test) for fold in splits]
    assert len(set(deals)) == 15  # each repeat shuffles again


def test_a_patient_with_two_scans_does_not_straddle() -> None:
    patients, labels = cohort()
    twice = ["LIDC-IDRI-0132"] * 6
    splits = patient_folds(
        [*patients, *twice], [*labels, 1, 0, 1, 0, 1, 0], tested=set(patients) | set(twice)
    )
    rows = set(range(len(patients), len(patients) + 6))
    assert all(rows <= set(fold.test) or rows <= set(fold.train) for fold in splits)


def test_test_folds_draw_on_unseen_patients_alone_and_training_folds_on_all_others() -> None:
    patients, labels = cohort()
    unseen = {p for p in patients if is_held_out(p, 0.5)}
    splits = patient_folds(patients, labels, tested=unseen, n_folds=4)
    ids = np.array(patients)
    assert set(ids[np.concatenate([fold.test for fold in splits])]) == unseen
    for fold in splits:
        assert set(ids[fold.train]) == set(patients) - set(ids[fold.test])


def test_the_same_seed_gives_the_same_folds_whatever_the_order_of_the_unseen() -> None:
    patients, labels = cohort()
    some = sorted(set(patients))[::2]
    one, other = (patient_folds(patients, labels, tested=u, n_folds=3, seed=4) for u in (some, some[::-1]))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.test, b.test)
    third = patient_folds(patients, labels, tested=some, n_folds=3, seed=5)
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(one, third, strict=True))


def test_folds_keep_the_share_of_malignant_nodules() -> None:
    patients, labels = cohort(n_patients=400)
    shares = [labels[fold.test].mean() for fold in patient_folds(patients, labels)]
    assert shares == pytest.approx([labels.mean()] * 5, abs=0.03)


def test_the_table_names_each_tested_patient_once_a_repeat() -> None:
    patients, labels = cohort()
    table = patient_folds(patients, labels, n_repeats=2).table()
    assert list(table.columns) == ["repeat", "fold", "patient_id"]
    assert table.groupby("repeat")["patient_id"].agg(lambda p: sorted(p) == sorted(set(patients))).all()


def test_too_few_patients_of_a_class_are_refused_with_their_number() -> None:
    with pytest.raises(
        TooFewError, match="2 patients to test on with a malignant nodule: too few for 5 folds"
    ):
        patient_folds(list("abcdefg"), [1, 1, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="each row needs one of both"):
        patient_folds(["a"], [0, 1])


def test_60_20_20_is_by_patient_and_stratified() -> None:
    patients, labels = cohort(n_patients=300)
    parts = split_60_20_20(patients, labels)
    ids = np.array(patients)
    train, validation, test = (set(ids[part]) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(ids)))
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert [len(part) / len(ids) for part in parts] == pytest.approx([0.6, 0.2, 0.2], abs=0.03)
    assert [labels[part].mean() for part in parts] == pytest.approx([labels.mean()] * 3, abs=0.06)
