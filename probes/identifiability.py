"""How well something that features should not depend on, such as the scanner, can be read from them."""

import numpy as np
import numpy.typing as npt
from scipy.special import logit
from sklearn.model_selection import StratifiedGroupKFold

from probes.heads.linear import LinearProbe, cross_fit
from probes.statistics.bootstrap import patient_weights
from probes.statistics.checks import Floats, Ints, TooFewError, finite_features, patient_index
from probes.statistics.estimate import Estimate


def identifiability(
    features: npt.ArrayLike,
    values: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    n_folds: int = 5,
    min_patients: int = 10,
    c: float = 1e-2,
    seed: int = 0,
) -> tuple[Estimate, tuple[str, ...]]:
    """Predict a property such as the manufacturer or the kernel from features by linear probes, out of fold.

    A sample is called by the class with the most evidence, as if all classes were equally common.

    Args:
        features: (N, D).
        values: The property of each sample, (N,).
        patient_ids: Patient of each sample, (N,).
        n_folds: Patient-grouped folds, stratified by class.
        min_patients: Classes with fewer patients are left out, and named.
        c: Inverse penalty of the probes; fixed, since a lower bound is enough here.
        seed: Of folds and bootstrap.

    Returns:
        Balanced accuracy, the mean recall over the classes, with interval over patients (chance is 1 over their
        number), and the classes with too few patients, whose samples are not used.

    Raises:
        TooFewError: If fewer than two classes have enough patients.
    """
    names, patients = np.asarray(values).astype(str), np.asarray(patient_ids)
    x = finite_features(features, len(names))
    patient_index(patients, len(names))
    n_patients = {str(name): np.unique(patients[names == name]).size for name in np.unique(names)}
    classes = tuple(name for name, count in n_patients.items() if count >= max(min_patients, n_folds))
    if len(classes) < 2:
        counts = ", ".join(f"{name!r} {count}" for name, count in n_patients.items())
        raise TooFewError(f"two classes with {min_patients} patients each are needed, got {counts}")
    used = np.isin(names, classes)
    x, truth, who = x[used], np.searchsorted(classes, names[used]), patients[used]
    dealer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = [(train, test) for train, test in dealer.split(x, truth, who)]
    evidence = np.stack([_evidence(x, truth == k, who, folds, c) for k in range(len(classes))], axis=1)
    accuracy = _mean_recall(truth, evidence.argmax(axis=1), patient_index(who, len(who)), seed)
    return accuracy, tuple(name for name in n_patients if name not in classes)


def _evidence(
    x: Floats,
    is_class: npt.NDArray[np.bool_],
    patients: npt.NDArray[np.generic],
    folds: list[tuple[Ints, Ints]],
    c: float,
) -> Floats:
    """Log odds of a class with its share taken out, so that a rare class is called as readily as a common one, (N,)."""
    labels = is_class.astype(np.int64)
    probability = cross_fit(lambda: LinearProbe(c), x, labels, patients, folds)
    return np.asarray(logit(np.clip(probability, 1e-12, 1 - 1e-12)) - logit(labels.mean()))


def _mean_recall(truth: Ints, called: Ints, patient: Ints, seed: int, n_bootstrap: int = 2000) -> Estimate:
    classes = np.unique(truth)
    hit = truth == called

    def recall(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            by_class = [weights @ (hit & (truth == k)) / (weights @ (truth == k)) for k in classes]
        return np.asarray(np.mean(by_class, axis=0))

    draws = np.concatenate([recall(weights) for weights in patient_weights(patient, n_bootstrap, seed)])
    low, high = np.nanquantile(draws, (0.025, 0.975))  # a draw without a rare class has no value
    return Estimate(float(recall(np.ones((1, len(truth))))[0]), float(low), float(high))
