"""Checks of labels, scores and patients that every probe makes before it computes anything, and their refusals.

A caller may leave out a figure that cannot be computed from the samples, and report why.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from transforms.refusal import Refusal

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class UnmeasurableError(Refusal):
    """Samples that do not allow a figure: numbers not finite, all features equal, no mark of a reader."""


class TooFewError(UnmeasurableError):
    """Too few samples, patients or classes for a figure."""


def binary_labels(labels: npt.ArrayLike) -> Ints:
    """Labels as integers (N,), refused unless both classes 0 and 1 are there and nothing else.

    Raises:
        TooFewError: If there is no label, or one class only.
        ValueError: If labels are not a list, or hold something other than 0 and 1.
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels must be a list, got an array of shape {array.shape}")
    if array.size == 0:
        raise TooFewError("there is no sample; both classes are needed")
    values = np.unique(array)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got the values {values[:5].tolist()}")
    if values.size < 2:
        only = "positive" if values[0] == 1 else "negative"
        raise TooFewError(f"all {array.size} labels are {only}; both classes are needed")
    return array.astype(np.int64)


def finite_scores(scores: npt.ArrayLike, n: int) -> Floats:
    """Scores as float64 (N,), refused unless there is one finite score for each of n labels.

    Raises:
        UnmeasurableError: If a score is NaN or infinite.
        ValueError: If the shape is not (n,).
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (n,):
        raise ValueError(f"{n} labels need {n} scores, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise UnmeasurableError(f"{int((~np.isfinite(array)).sum())} of {n} scores are not finite numbers")
    return array


def finite_features(features: npt.ArrayLike, n: int | None = None) -> Floats:
    """Features as float64 (N, D), refused if any number is NaN or infinite.

    Raises:
        UnmeasurableError: If there is no sample, or a number is NaN or infinite.
        ValueError: If the array is not (N, D), or has other than n rows.
    """
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"features must be an array (N, D), got shape {array.shape}")
    if len(array) == 0:
        raise TooFewError("there are no features of any sample")
    if n is not None and len(array) != n:
        raise ValueError(f"{n} labels need {n} rows of features, got {len(array)}")
    if not np.isfinite(array).all():
        bad_rows = int((~np.isfinite(array)).any(axis=1).sum())
        raise UnmeasurableError(f"features of {bad_rows} of {len(array)} samples hold NaN or infinity")
    return array


def patient_index(patient_ids: npt.ArrayLike, n: int) -> Ints:
    """Patients as integers 0 .. P-1, (N,), refused unless there are at least two patients.

    Raises:
        TooFewError: If there is only one patient in all.
        ValueError: If there is not one patient for each of n samples.
    """
    array: npt.NDArray[Any] = np.asarray(patient_ids)
    if array.shape != (n,):
        raise ValueError(f"{n} samples need {n} patient ids, got an array of shape {array.shape}")
    patients, index = np.unique(array, return_inverse=True)
    if patients.size < 2:
        raise TooFewError(
            f"all {n} samples come from one patient; an interval over patients needs at least 2"
        )
    return index.astype(np.int64)
