"""Splits by patient, made once and stored with the run; tested only on patients unseen by the backbone."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold

from probes.statistics.checks import TooFewError
from transforms.refusal import Refusal, number_of


class HoldoutError(Refusal):
    """An invalid holdout."""


_CLASSES = {"malignant": 1, "benign": 0}
Holdout = float | Literal["half_a", "half_b"]


def patient_hash(patient_id: str) -> float:
    """sha256(patient_id) / 2^256: a number in [0, 1), the same in every cohort and on every machine."""
    return int.from_bytes(sha256(patient_id.encode()).digest(), "big") / 2**256


def is_held_out(patient_id: str, holdout: Holdout) -> bool:
    """Whether pretraining leaves this patient out.

    Args:
        patient_id: Patient id as in the cohort.
        holdout: Fraction of the patients held out, those whose hash lies below it; or "half_a" (hash below
            one half) or "half_b" (the others), for cross-fitting.

    Raises:
        HoldoutError: If `holdout` is neither a half nor a fraction in [0, 1].
    """
    if holdout == "half_a":
        return patient_hash(patient_id) < 0.5
    if holdout == "half_b":
        return patient_hash(patient_id) >= 0.5
    if isinstance(holdout, str) or not 0.0 <= holdout <= 1.0:
        raise HoldoutError(f"holdout is {holdout!r}; it must be half_a, half_b or a fraction from 0 to 1")
    return patient_hash(patient_id) < holdout


@dataclass(frozen=True, slots=True)
class Fold:
    """Row numbers of one split: what to fit on and what to score."""

    repeat: int
    fold: int
    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Splits:
    """Patient-grouped folds.

    Attributes:
        folds: `n_repeats` times `n_folds`; within a repeat each testable row is tested once.
        patient_ids: Patient of each row, (n,).
    """

    folds: tuple[Fold, ...]
    patient_ids: NDArray[np.str_]

    def __iter__(self) -> Iterator[Fold]:
        """Walk the folds."""
        return iter(self.folds)

    def table(self) -> pd.DataFrame:
        """One row per repeat, fold and tested patient: what the run stores of its splits."""
        rows = [
            (fold.repeat, fold.fold, patient)
            for fold in self.folds
            for patient in np.unique(self.patient_ids[fold.test]).tolist()
        ]
        return pd.DataFrame(rows, columns=["repeat", "fold", "patient_id"])


def patient_folds(
    patient_ids: Sequence[str],
    labels: ArrayLike | None,
    *,
    tested: Collection[str] | None = None,
    n_folds: int = 5,
    n_repeats: int = 1,
    seed: int = 0,
) -> Splits:
    """Repeated k-fold split in which no patient is on both sides and both classes are in every test fold.

    Args:
        patient_ids: Patient of each row, (n,).
        labels: Binary label of each row, (n,). None: patients alone are split, and no class is asked for.
        tested: Patients that test folds draw on; training folds use every patient outside the test fold. None: all.
        n_folds: Test folds per repeat.
        n_repeats: Times the patients are shuffled.
        seed: Of the shuffles.

    Raises:
        TooFewError: If a class has fewer testable patients than there are folds.
    """
    patients, truth = _checked(patient_ids, labels)
    testable = np.flatnonzero(np.isin(patients, patients if tested is None else sorted(tested)))
    _enough_patients(patients[testable], None if labels is None else truth[testable], n_folds)
    folds = []
    for repeat in range(n_repeats):
        dealer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed + repeat)
        deal = dealer.split(testable, truth[testable], patients[testable])
        for number, (_, test) in enumerate(deal):
            train = np.flatnonzero(~np.isin(patients, patients[testable[test]]))
            folds.append(Fold(repeat, number, train, testable[test]))
    return Splits(tuple(folds), patients)


def split_60_20_20(
    patient_ids: Sequence[str], labels: ArrayLike | None, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Stratified split of the patients into 60% training, 20% validation and 20% test, as the article designed it.

    Returns:
        Row numbers of the three parts: to fit, to choose, to score.

    Raises:
        TooFewError: If a class, or all rows where there are no labels, has fewer than five patients.

    Source: the DINO-X article's probe protocol.
    """
    patients, truth = _checked(patient_ids, labels)
    _enough_patients(patients, None if labels is None else truth, 5)
    dealer = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    fifths = [test for _, test in dealer.split(truth, truth, patients)]
    return np.sort(np.concatenate(fifths[2:])), fifths[1], fifths[0]


def _checked(
    patient_ids: Sequence[str], labels: ArrayLike | None
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    given = np.zeros(len(patient_ids)) if labels is None else labels
    patients, truth = np.asarray(patient_ids, dtype=np.str_), np.asarray(given).astype(np.int64)
    if len(patients) != len(truth):
        raise ValueError(f"{len(patients)} patient ids for {len(truth)} labels; each row needs one of both")
    return patients, truth


def _enough_patients(patients: NDArray[np.str_], truth: NDArray[np.int64] | None, n_folds: int) -> None:
    everyone = {"nodule": patients}
    if truth is not None:
        everyone = {f"{name} nodule": patients[truth == value] for name, value in _CLASSES.items()}
    for name, own in everyone.items():
        n_patients = len(np.unique(own))
        if n_patients < n_folds:
            raise TooFewError(
                f"{number_of(n_patients, 'patient')} to test on with a {name}: too few for {n_folds} folds"
            )
