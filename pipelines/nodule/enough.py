"""Are there enough labeled patients to probe? Asked of tables alone, so before torch and MONAI are loaded."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.nodule.diagnoses import read_diagnoses
from pipelines.tracking.reading import fetch_artifact, newest_backbone_run
from pipelines.tracking.store import NotInStoreError
from probes.label_rules import LabelRule
from probes.labels import label_nodules
from probes.splits import is_held_out, patient_folds, split_60_20_20
from probes.statistics.checks import TooFewError
from transforms.refusal import Refusal, number_of

_MEASURABLE = 3
"""Patients of each class without which a table has no AUROC."""
_INNER_FOLDS = 5
_ARTICLE_FOLDS = 5
"""Of which the article's split makes its three parts."""
_RECORD = "dinox.json"
_HOLDOUTS = [round(0.05 * step, 2) for step in range(1, 11)]


class Folded(Protocol):
    """Options of a probe that is fitted in folds; others that it has are read where they are there."""

    cohort: str
    backbone: str
    rule: LabelRule
    split: str
    folds: int
    repeats: int
    leak: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """Patients and labels of nodules, and how they are split.

    Attributes:
        patients: Of each nodule, (n,).
        labels: 0 or 1, (n,).
        tested: Patients that may be tested.
    """

    patients: NDArray[np.str_]
    labels: NDArray[np.int64]
    tested: frozenset[str]
    split: str
    folds: int
    repeats: int
    seed: int

    def of(self, table: pd.DataFrame) -> "Plan":
        """Return the same plan for other labeled nodules."""
        labels = table["is_malignant"].to_numpy(dtype=np.int64)
        return replace(self, patients=table["patient_id"].to_numpy(dtype=np.str_), labels=labels)

    def counts(self) -> tuple[int, int]:
        """Patients to test on with a malignant nodule, and with a benign one."""
        may = np.isin(self.patients, sorted(self.tested))
        malignant, benign = (np.unique(self.patients[may & (self.labels == label)]).size for label in (1, 0))
        return malignant, benign

    def works(self) -> bool:
        """Whether the folds can be made, and a probe can be fitted to each."""
        try:
            if self.split == "article":
                rows = np.flatnonzero(np.isin(self.patients, sorted(self.tested)))
                fit, choose, _ = split_60_20_20(self.patients[rows].tolist(), self.labels[rows], self.seed)
                return self._is_fitted(rows[np.concatenate([fit, choose])])
            made = patient_folds(
                self.patients.tolist(),
                self.labels,
                tested=self.tested,
                n_folds=self.folds,
                n_repeats=self.repeats,
                seed=self.seed,
            )
        except TooFewError:
            return False
        return all(self._is_fitted(fold.train) for fold in made)

    def measures(self) -> bool:
        """Whether it works, and leaves enough patients for an AUROC."""
        return min(self.counts()) >= _MEASURABLE and self.works()

    def _is_fitted(self, rows: NDArray[np.int64]) -> bool:
        """Whether inner folds, by which every head is chosen or stopped, leave two classes to learn from."""
        who, truth = self.patients[rows], self.labels[rows]
        rarer = min(np.unique(who[truth == label]).size for label in (0, 1))
        if rarer < 2 or rarer > _INNER_FOLDS:
            return rarer > 2
        inner = patient_folds(who.tolist(), truth, n_folds=rarer, seed=self.seed)
        return any(np.unique(truth[fold.train]).size == 2 for fold in inner)


def refuse_too_few(config: Folded) -> None:
    """Refuse a probe whose folds cannot be made or fitted, and say which options would do.

    A cohort that is missing is another matter, and what only its images tell is not known here.

    Raises:
        TooFewError: With the patients of each class, and every rule, number of folds, holdout or leak that works.
        Refusal: If the cohort cannot be opened, or the rule does not apply.
    """
    if getattr(config, "target", "") not in ("", "rating", "label") or not _is_there(config.cohort):
        return
    cohort = Cohort.open(Path(config.cohort))
    if cohort.nodules.empty:
        return
    diagnosis = read_diagnoses(getattr(config, "diagnosis", ""))

    def labeled(rule: LabelRule) -> pd.DataFrame:
        table = label_nodules(rule, cohort.annotations, cohort.nodules, diagnosis).nodules
        return table[table["volume_id"].isin(cohort.series["volume_id"])]

    nobody = np.array([], dtype=np.str_)
    blank = Plan(
        nobody, nobody.astype(np.int64), frozenset(), config.split, config.folds, config.repeats, config.seed
    )
    everyone = frozenset(cohort.series["patient_id"].astype(str))
    for name, record in _records(config):
        plan = replace(blank.of(labeled(config.rule)), tested=_may_test(record, everyone, config.leak))
        if plan.works():
            continue
        malignant, benign = plan.counts()
        whose = f" by {name}, pretrained with holdout={record['holdout']}," if plan.tested != everyone else ""
        way = f"{config.folds} folds" if config.split == "folds" else "split=article"
        found = "; or ".join(_remedies(plan, config, everyone, labeled))
        raise TooFewError(
            f"patients to test{whose} with a malignant nodule: {malignant}, with a benign one: {benign}"
            f" (rule {config.rule}), too few for {way}; {f'what would do: {found}' if found else _NOTHING}"
        )


def refuse_too_few_patients(config: Folded) -> None:
    """Refuse a probe that reads no label, if fewer patients than folds may be tested, and say what would do.

    Raises:
        TooFewError: With the number of patients.
        Refusal: If the cohort cannot be opened.
    """
    if not _is_there(config.cohort):
        return
    cohort = Cohort.open(Path(config.cohort))
    there = cohort.nodules["volume_id"].isin(cohort.series["volume_id"])
    everyone = frozenset(cohort.nodules.loc[there, "patient_id"].astype(str))
    needed = _ARTICLE_FOLDS if config.split == "article" else config.folds
    for _, record in _records(config):
        tested = everyone & _may_test(record, frozenset(cohort.series["patient_id"].astype(str)), config.leak)
        if not everyone or len(tested) >= needed:
            continue
        ways = [
            f"split=folds and folds={len(tested)}" if config.split == "article" else f"folds={len(tested)}"
        ]
        ways = ways if len(tested) > 1 else []
        if len(everyone) >= needed:
            ways.append("leak=allow, which tests on patients that the backbone saw, and tags the run")
        raise TooFewError(
            f"{number_of(len(tested), 'patient')} to test with a nodule, too few for {needed} folds;"
            f" {'what would do: ' + '; or '.join(ways) if ways else _NOTHING}"
        )


_NOTHING = "no other option would do with this cohort: prepare more patients"


def _remedies(
    plan: Plan,
    config: Folded,
    everyone: frozenset[str],
    labeled: Callable[[LabelRule], pd.DataFrame],
) -> Iterator[str]:
    """Yield each change of one option under which the folds can be made, fitted and measured."""
    is_article = config.split == "article"
    for folds in range(config.folds if is_article else config.folds - 1, 1, -1):
        if replace(plan, split="folds", folds=folds).measures():
            yield f"{'split=folds and ' if is_article else ''}folds={folds}"
            break
    rules = []
    for rule in set(get_args(LabelRule)) - {config.rule, "article"}:  # `article` merges different nodules
        with suppress(Refusal):  # The rule needs a table or a column that is not there.
            if plan.of(labeled(rule)).measures():
                rules.append(rule)
    if rules:
        yield f"rule={' or '.join(sorted(rules))}"
    if plan.tested == everyone:
        return
    held = ((share, frozenset(one for one in everyone if is_held_out(one, share))) for share in _HOLDOUTS)
    larger = (share for share, own in held if own > plan.tested and replace(plan, tested=own).measures())
    if (share := next(larger, None)) is not None:
        yield f"a backbone pretrained with holdout={share}"
    if replace(plan, tested=everyone).measures():
        yield "leak=allow, which tests on patients that the backbone saw, and tags the run"


def _is_there(cohort: str) -> bool:
    return (Path(cohort) / "series.parquet").is_file()


def _may_test(record: dict[str, Any], everyone: frozenset[str], leak: str) -> frozenset[str]:
    """Patients that a backbone may test, as `pipelines.probing.readers.patients_to_test` finds them."""
    if leak == "allow" or "holdout" not in record or record.get("leak"):
        return everyone
    return frozenset(one for one in everyone if is_held_out(one, record["holdout"])) or everyone


def _records(config: Folded) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each backbone with the record of its training; {} where that is not read without weights."""
    named, is_of_backbones = config.backbone, not getattr(config, "encoder", "") and hasattr(config, "window")
    if not named and is_of_backbones and not str(getattr(config, "features", "")).startswith("table:"):
        newest = newest_backbone_run()
        named = f"runs:/{newest}/backbone" if newest else ""
    for name in (one.strip() for one in named.split(",")):
        yield name, _record_of(name)


def _record_of(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, suppress(NotInStoreError, OSError, json.JSONDecodeError):
        path = Path(name) / _RECORD
        if name.startswith("runs:/"):
            run_id, _, place = name.removeprefix("runs:/").partition("/")
            path = fetch_artifact(run_id, f"{place or 'backbone'}/{_RECORD}", Path(folder))
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}
