"""What every probe of a frozen backbone settles first: whom it may test, its folds, and what its figures rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.kind import cohort_kind
from pipelines.nodule.labeled import NoduleSet
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.splits import is_held_out, patient_folds, split_60_20_20


class FoldChoice(Protocol):
    """The part of a probe's configuration that decides its folds."""

    @property
    def split(self) -> str:
        """`folds` or `article`."""

    @property
    def leak(self) -> str:
        """`avoid` or `allow`."""

    @property
    def folds(self) -> int:
        """Test folds per repeat."""

    @property
    def repeats(self) -> int:
        """Times the patients are dealt anew."""

    @property
    def seed(self) -> int:
        """Of the deal."""


@dataclass(frozen=True)
class FoldPlan:
    """Folds, what they leak, and the table that the run stores of them."""

    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    leak: str
    table: pd.DataFrame


def unseen_patients(loaded: LoadedBackbone, patient_ids: NDArray[np.str_]) -> set[str] | None:
    """Return those patients that the backbone did not see; None when nobody knows."""
    everyone = {str(patient) for patient in patient_ids}
    if loaded.source.startswith("timm:"):
        return everyone
    if "holdout" not in loaded.record:
        return None
    if loaded.record.get("leak"):
        return set()
    return {patient for patient in everyone if is_held_out(patient, loaded.record["holdout"])}


def fold_plan(config: FoldChoice, loaded: LoadedBackbone, nodules: NoduleSet) -> FoldPlan:
    """Deal the folds: test patients are those that the backbone did not see, unless leaks are allowed.

    Raises:
        ValueError: If a class has too few patients to test on.
    """
    patients, labels = nodules.patient_ids, nodules.labels
    unseen = unseen_patients(loaded, patients)
    everyone = set(patients.tolist())
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


def tag_probe(run: Run, loaded: LoadedBackbone, cohort: Cohort, leak: str, mm_per_px: NDArray[Any]) -> None:
    """Tag the run with what its figures rest on, and warn of a leak or of a scale that was never seen."""
    tags = {
        Tag.COHORT_SHA: cohort.sha256,
        Tag.COHORT_KIND: cohort_kind(cohort),
        Tag.PROBED: loaded.source,
        Tag.PROBED_RUN: loaded.run_id,
        Tag.BACKBONE_SHA: loaded.sha256,
        Tag.PROBED_RECIPE: str(loaded.record.get("recipe", "")),
    }
    if leak:
        tags[Tag.LEAK] = leak
        print(f"leak ({leak}): the backbone may have seen patients that are tested here")
    run.set_tags(tags)
    tag_scale(run, loaded, mm_per_px)


def tag_scale(run: Run, loaded: LoadedBackbone, mm_per_px: NDArray[Any]) -> None:
    """Warn, and tag the run, if a backbone is shown a scale that its pretraining never saw."""
    seen = loaded.record.get("mm_per_pixel")
    low, high = float(np.min(mm_per_px)), float(np.max(mm_per_px))
    if seen and (low < seen[0] or high > seen[1]):
        run.set_tags({Tag.SCALE: "out of distribution"})
        print(
            f"scale: the network is shown {low:.2f} .. {high:.2f} mm per pixel, outside the {seen[0]:.2f} .."
            f" {seen[1]:.2f} of its pretraining"
        )


def tell_of_unknown_diameters(nodules: NoduleSet) -> None:
    """Print which rows a probe has to do without where a table of nodules states no diameter."""
    if not nodules.has_diameters:
        print(
            f"{int(np.isnan(nodules.diameter_mm).sum())} of {len(nodules.labels)} nodules have no diameter: no row of"
            " diameter and no stratum inside 6-15 mm; entry point nodules measures one from the image"
        )
