"""Test patients and folds of a probe: patients that the backbone did not see, unless leaks are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone
from pipelines.cohort.folder import Cohort
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import FoldedProbe
from probes.splits import is_held_out, patient_folds, split_60_20_20

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows to fit on and rows to test on."""


def unseen_patients(loaded: LoadedBackbone, patient_ids: NDArray[np.str_]) -> set[str] | None:
    """Return the patients that the backbone did not see; None when this is unknown."""
    everyone = {str(patient) for patient in patient_ids}
    if loaded.source.startswith("timm:"):
        return everyone
    if "holdout" not in loaded.record:
        return None
    if loaded.record.get("leak"):
        return set()
    return {patient for patient in everyone if is_held_out(patient, loaded.record["holdout"])}


def patients_to_test(
    loaded: LoadedBackbone, cohort: Cohort, leak: Literal["avoid", "allow"]
) -> tuple[set[str], str]:
    """Return the patients to test on, those that the backbone did not see if this is known, and the leak tag."""
    patient_ids = cohort.series["patient_id"].to_numpy(dtype=np.str_)
    unseen, everyone = unseen_patients(loaded, patient_ids), {str(patient) for patient in patient_ids}
    if leak == "allow":
        return everyone, "" if unseen == everyone else "allowed"
    if unseen is None:
        return everyone, "unknown"
    return (unseen, "") if unseen else (everyone, "no_holdout")


@dataclass(frozen=True)
class FoldPlan:
    """Folds, their leak tag, and the table that the run stores."""

    folds: list[Fold]
    leak: str
    table: pd.DataFrame


def fold_plan(config: FoldedProbe, loaded: LoadedBackbone | None, nodules: NoduleSet) -> FoldPlan:
    """Make the folds: test patients are those that the backbone did not see, unless leaks are allowed.

    Args:
        config: How to split.
        loaded: The backbone; None without one.
        nodules: Nodules to split, by patient.

    Raises:
        TooFewError: If a class has too few patients to test on.
    """
    patients, labels = nodules.patient_ids, nodules.labels
    everyone = set(patients.tolist())
    unseen = everyone if loaded is None else unseen_patients(loaded, patients)
    allowed = "" if unseen is not None and unseen >= everyone else "allowed"
    if config.leak == "allow":
        unseen = everyone
    if config.split == "article":
        rows = np.flatnonzero(np.isin(patients, sorted(unseen or everyone)))
        split = split_60_20_20(patients[rows].tolist(), labels[rows], config.seed)
        train = rows[np.sort(np.concatenate([split.train, split.validation]))]
        leak = "unknown" if unseen is None else "" if unseen else "no_holdout"
        folds = [(train, rows[split.test])]
        table = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": np.unique(patients[rows[split.test]])})
    else:
        splits = patient_folds(
            patients.tolist(),
            labels,
            unseen=unseen,
            n_folds=config.folds,
            n_repeats=config.repeats,
            seed=config.seed,
        )
        leak, table = splits.leak, splits.table()
        folds = [(fold.train, fold.test) for fold in splits.folds]
    return FoldPlan(folds, allowed if config.leak == "allow" else leak, table)
