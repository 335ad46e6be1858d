"""Readers' ratings to binary labels, under rules with names.

A rule takes the readers' marks (`annotations`) and pylidc's clusters of them (`nodules`) and gives labeled
nodules. Rules that only summarize the ratings of a cluster also work on cohorts without marks, such as a CSV with
ratings; `article` and `luna_fmcib` regroup or drop marks and need them. `given` reads no rating: its label comes from
the table of nodules.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from probes.label_rules import LabelRule
from transforms.refusal import Refusal, number_of

Fate = Literal["benign", "malignant", "dropped", "not read"]

_NODULE_NEEDS = ("nodule_id", "volume_id", "series_uid", "patient_id", "malignancy_ratings")
_MARK_NEEDS = (
    "annotation_id",
    "series_uid",
    "patient_id",
    "malignancy",
    "diameter_mm",
    "contour_z_median_mm",
)
_ARTICLE_REACH_MM = 10.0
_LUNA_SMALLEST_MM = 3.0


class LabelError(Refusal):
    """A rule that does not apply to these nodules, or an invalid table of labels."""


@dataclass(frozen=True, slots=True)
class RuleCounts:
    """Counts of what a rule did with the nodules.

    Attributes:
        rule: Name of the rule.
        n_given: Nodules (groups of marks) that the rule considered.
        n_malignant: Nodules labeled malignant.
        n_benign: Nodules labeled benign.
        n_patients: Patients with a labeled nodule.
        n_three: Nodules with enough readers whose summary rating is exactly 3, "indeterminate".
        fate_of_three: What becomes of a summary rating of exactly 3 under the rule.
        dropped: Reason -> nodules dropped for it; n_given = n_malignant + n_benign + sum of these.
        is_read: Whether anything reads these labels.
    """

    rule: LabelRule
    n_given: int
    n_malignant: int
    n_benign: int
    n_patients: int
    n_three: int
    fate_of_three: Fate
    dropped: dict[str, int]
    is_read: bool = True

    @property
    def n_labeled(self) -> int:
        """Nodules with a label."""
        return self.n_malignant + self.n_benign

    def __str__(self) -> str:
        """Render the counts and what becomes of 3 in one line."""
        patients = number_of(self.n_patients, "patient")
        if not self.is_read:
            return f"labels are not read: {number_of(self.n_given, 'nodule')} from {patients}"
        dropped = "".join(f"; dropped {n}: {reason}" for reason, n in self.dropped.items())
        three = f"{self.n_three} rated exactly 3, {self.fate_of_three}"
        return (
            f"{self.rule}: {number_of(self.n_labeled, 'nodule')} = {self.n_malignant} malignant"
            f" + {self.n_benign} benign from {patients}; "
            f"{'ratings are not read' if self.fate_of_three == 'not read' else three}{dropped}"
        )


@dataclass(frozen=True, slots=True)
class Labeled:
    """Labeled nodules, those that the rule dropped, and the counts.

    Attributes:
        nodules: Rows of the nodule table with `malignancy_rating` (the rule's summary; NaN where there is no
            rating) and `is_malignant` added.
        dropped: nodule_id and reason of each nodule without a label.
        counts: Counts of both.
    """

    nodules: pd.DataFrame
    dropped: pd.DataFrame
    counts: RuleCounts


@dataclass(frozen=True, slots=True)
class _Rating:
    """A rule that summarizes the ratings of one nodule and cuts the summary.

    Attributes:
        min_readers: Fewest ratings that a nodule needs.
        summary: Ratings -> one number from 1 to 5.
        is_malignant: Summary -> label, None to drop.
    """

    min_readers: int
    summary: Callable[[list[int]], Any]
    is_malignant: Callable[[float], bool | None]


_RATING_RULES: dict[LabelRule, _Rating] = {
    "consensus": _Rating(3, np.median, lambda rating: rating > 3),
    "article": _Rating(1, np.median, lambda rating: rating > 3),
    "consensus_clear": _Rating(
        3, np.mean, lambda rating: True if rating >= 3.5 else False if rating <= 2.5 else None
    ),
    "lora": _Rating(2, np.mean, lambda rating: rating >= 3),
    "any_reader": _Rating(1, np.median, lambda rating: rating > 3),
    "luna_fmcib": _Rating(
        3,
        lambda ratings: round(float(np.mean(ratings))),  # Python rounds halves to even
        lambda rating: None if rating == 3 else rating > 3,
    ),
}


def label_nodules(
    rule: LabelRule,
    annotations: pd.DataFrame,
    nodules: pd.DataFrame,
    diagnosis: pd.DataFrame | None = None,
) -> Labeled:
    """Label nodules as malignant or benign under a named rule.

    - `consensus`: pylidc's clusters of >= 3 readers, median rating > 3 against <= 3. The default elsewhere.
    - `article`: marks of one scan grouped by z alone (see `group_by_z`), >= 1 reader, median > 3 against <= 3.
      Merges different nodules at one height: for comparison with the DINO-X article, which used it.
    - `consensus_clear`: clusters of >= 3 readers, mean >= 3.5 against <= 2.5, the rest dropped.
    - `lora`: clusters of >= 2 readers, mean >= 3 against < 3.
    - `any_reader`: clusters of >= 1 reader, median > 3 against <= 3.
    - `luna_fmcib`: marks under 3 mm dropped, then clusters of >= 3 readers, mean rounded half to even, 3 dropped,
      {1, 2} against {4, 5}. Source: Pai et al. 2024, doi 10.1038/s42256-024-00807-9 (on LUNA16's nodules).
    - `tcia_diagnosis`: the patient's diagnosis, given to the patient's largest nodule: primary or metastatic against
      benign, unknown dropped. Source: the table of patient diagnoses of LIDC-IDRI, The Cancer Imaging Archive.
    - `given`: the column `label` of a table of nodules, 1 malignant against 0 benign, as LUNA25, DLCS and NLST
      state it; nodules without one dropped.

    Args:
        rule: Name of the rule.
        annotations: Rows of `annotations.parquet`; may be empty for rules that only summarize ratings.
        nodules: Rows of `nodules.parquet`.
        diagnosis: patient_id and diagnosis (0 unknown, 1 benign, 2 primary, 3 metastatic); `tcia_diagnosis`
            alone reads it.

    Returns:
        Labeled and dropped nodules, one row for each nodule that the rule considered, and the counts.

    Raises:
        LabelError: If the rule is unknown, a column is missing, or the rule needs a table that is not there.
    """
    if rule not in get_args(LabelRule):
        known = ", ".join(get_args(LabelRule))
        raise LabelError(f"label rule {rule!r} does not exist; choose one of {known}")
    _require("nodules", nodules, _NODULE_NEEDS)
    if rule == "tcia_diagnosis":
        return _by_diagnosis(nodules, diagnosis)
    if rule == "given":
        return _as_given(nodules)
    _require_ratings(rule, nodules)
    if rule in ("article", "luna_fmcib"):
        if annotations.empty:
            raise LabelError(
                f"label rule {rule!r} needs the readers' marks one by one, and this cohort has none; choose "
                "consensus, consensus_clear, lora or any_reader, which need only the ratings of each nodule"
            )
        _require("annotations", annotations, _MARK_NEEDS)
        nodules = group_by_z(annotations) if rule == "article" else _without_small_marks(annotations, nodules)
    return _by_rating(rule, _RATING_RULES[rule], nodules)


def without_labels(nodules: pd.DataFrame) -> Labeled:
    """Return all nodules, for a probe that reads no label; `is_malignant` is False for all, and means nothing."""
    n = len(nodules)
    found = _labeled("given", nodules.assign(malignancy_rating=np.nan), [False] * n, [""] * n, 0, "not read")
    return replace(found, counts=replace(found.counts, is_read=False))


def group_by_z(annotations: pd.DataFrame) -> pd.DataFrame:
    """Group the marks of each scan by height alone, as the article did; x and y are ignored.

    Marks are sorted by the median z of the contours that enclose the nodule (inclusion = 1); the lowest free mark is a
    seed and takes every later mark whose distance from it, a float, is at most 10.0 mm.

    Returns:
        One row per group in the columns of the nodule table; places and sizes are averaged over the marks,
        `n_clusters` says how many of pylidc's clusters were merged.
    """
    keys = ["patient_id", "series_uid", "contour_z_median_mm"]
    ordered = annotations.sort_values(keys, kind="stable", ignore_index=True)
    groups: list[int] = []
    group, series_of_seed, seed_z_mm = -1, None, -np.inf
    for series_uid, z_mm in zip(ordered["series_uid"], ordered["contour_z_median_mm"], strict=True):
        if series_uid != series_of_seed or z_mm - seed_z_mm > _ARTICLE_REACH_MM:
            group, series_of_seed, seed_z_mm = group + 1, series_uid, z_mm
        groups.append(group)
    ordered["cluster"] = ordered["series_uid"] + "/" + ordered["cluster_id"].astype(str)
    nodules = ordered.groupby(np.array(groups, dtype=np.int64)).agg(
        volume_id=("volume_id", "first"),
        series_uid=("series_uid", "first"),
        patient_id=("patient_id", "first"),
        x_lps_mm=("x_lps_mm", "mean"),
        y_lps_mm=("y_lps_mm", "mean"),
        z_lps_mm=("z_lps_mm", "mean"),
        diameter_mm=("diameter_mm", "mean"),
        volume_mm3=("volume_mm3", "mean"),
        malignancy_ratings=("malignancy", list),
        n_readers=("malignancy", "size"),
        annotation_ids=("annotation_id", list),
        n_clusters=("cluster", "nunique"),
    )
    first_of_patient = nodules.groupby("patient_id").cumcount().astype(str)
    nodules.insert(0, "nodule_id", nodules["patient_id"] + "_article-" + first_of_patient)
    return nodules


def _without_small_marks(annotations: pd.DataFrame, nodules: pd.DataFrame) -> pd.DataFrame:
    """The nodules with the ratings of those marks alone that are at least 3 mm wide."""
    _require("annotations", annotations, ("cluster_id",))
    _require("nodules", nodules, ("cluster_id",))
    large = annotations[annotations["diameter_mm"] >= _LUNA_SMALLEST_MM]
    ratings = large.groupby(["series_uid", "cluster_id"])["malignancy"].apply(list)
    keys = pd.MultiIndex.from_frame(nodules[["series_uid", "cluster_id"]])
    return nodules.assign(malignancy_ratings=[ratings.get(key, []) for key in keys])


def _by_rating(rule: LabelRule, how: _Rating, nodules: pd.DataFrame) -> Labeled:
    ratings = [[int(r) for r in given] for given in nodules["malignancy_ratings"]]
    odd = next((r for given in ratings for r in given if not 1 <= r <= 5), None)
    if odd is not None:
        raise LabelError(f"malignancy rating {odd} is not one of LIDC's 1 to 5")
    summaries = [float(how.summary(given)) if len(given) >= how.min_readers else np.nan for given in ratings]
    labels = [None if np.isnan(summary) else how.is_malignant(summary) for summary in summaries]
    too_few = f"fewer than {how.min_readers} reader{'s' if how.min_readers > 1 else ''}"
    reasons = [
        too_few if np.isnan(summary) else "neither clearly benign nor clearly malignant"
        for summary in summaries
    ]
    verdict = how.is_malignant(3.0)
    fate: Fate = "dropped" if verdict is None else "malignant" if verdict else "benign"
    labeled = nodules.assign(malignancy_rating=summaries)
    return _labeled(rule, labeled, labels, reasons, sum(s == 3 for s in summaries), fate)


def _by_diagnosis(nodules: pd.DataFrame, diagnosis: pd.DataFrame | None) -> Labeled:
    if diagnosis is None:
        raise LabelError(
            "label rule 'tcia_diagnosis' needs TCIA's table of diagnoses; "
            "give a CSV with patient_id and diagnosis"
        )
    _require("diagnosis", diagnosis, ("patient_id", "diagnosis"))
    if not diagnosis["patient_id"].is_unique:
        twice = diagnosis["patient_id"][diagnosis["patient_id"].duplicated()].iloc[0]
        raise LabelError(f"patient {twice} has two rows in the table of diagnoses; only one is allowed")
    if not diagnosis["diagnosis"].isin([0, 1, 2, 3]).all():
        raise LabelError("a diagnosis is none of 0 unknown, 1 benign, 2 primary, 3 metastatic")
    _require("nodules", nodules, ("diameter_mm",))
    by_size = nodules.sort_values("diameter_mm", ascending=False, kind="stable")
    bearer = set(by_size.drop_duplicates("patient_id")["nodule_id"])
    of_patient = nodules.groupby("patient_id")["diameter_mm"]
    is_unsized = (of_patient.transform("size") > 1) & (
        of_patient.transform("count") < of_patient.transform("size")
    )
    found = nodules["patient_id"].map(diagnosis.set_index("patient_id")["diagnosis"])
    bears = nodules["nodule_id"].isin(bearer) & ~is_unsized
    labels = [bool(d > 1) if b and d in (1, 2, 3) else None for d, b in zip(found, bears, strict=True)]
    reasons = [
        "patient without a diagnosis"
        if not d > 0
        else "a nodule of this patient has no diameter, so none is known to be the largest"
        if unsized
        else "not the patient's largest nodule"
        for d, unsized in zip(found, is_unsized, strict=True)
    ]
    return _labeled("tcia_diagnosis", _with_median(nodules), labels, reasons, 0, "not read")


def _as_given(nodules: pd.DataFrame) -> Labeled:
    stated = nodules["label"] if "label" in nodules else pd.Series(np.nan, nodules.index)
    if not stated.notna().any():
        raise LabelError(
            "label rule 'given' needs nodules with a label, and this cohort has none; prepare it with "
            "-P annotations=FILE.csv whose column label holds 0 benign or 1 malignant, or choose a rule that "
            "reads ratings, such as consensus"
        )
    if not stated.dropna().isin([0, 1]).all():
        raise LabelError("a label of the table of nodules is neither 0 benign nor 1 malignant")
    labels = [None if pd.isna(label) else bool(label) for label in stated]
    reasons = ["the table of nodules states no label"] * len(labels)
    return _labeled("given", _with_median(nodules), labels, reasons, 0, "not read")


def _with_median(nodules: pd.DataFrame) -> pd.DataFrame:
    """The nodules with the median of their ratings, for figures: the label comes from elsewhere."""
    ratings = nodules["malignancy_ratings"]
    return nodules.assign(
        malignancy_rating=[float(np.median(list(given))) if len(given) else np.nan for given in ratings]
    )


def _labeled(
    rule: LabelRule,
    nodules: pd.DataFrame,
    labels: list[bool | None],
    reasons: list[str],
    n_three: int,
    fate: Fate,
) -> Labeled:
    """Split the nodules into labeled and dropped, and count both."""
    has_label = np.array([label is not None for label in labels], dtype=bool)
    kept = nodules[has_label].reset_index(drop=True)
    kept["is_malignant"] = np.array([label for label in labels if label is not None], dtype=bool)
    dropped = nodules.loc[~has_label, ["nodule_id"]].reset_index(drop=True)
    dropped["reason"] = [reason for reason, kept_row in zip(reasons, has_label, strict=True) if not kept_row]
    n_malignant = int(kept["is_malignant"].sum())
    counts = RuleCounts(
        rule=rule,
        n_given=len(nodules),
        n_malignant=n_malignant,
        n_benign=len(kept) - n_malignant,
        n_patients=int(kept["patient_id"].nunique()),
        n_three=n_three,
        fate_of_three=fate,
        dropped={str(reason): int(n) for reason, n in dropped["reason"].value_counts().items()},
    )
    return Labeled(kept, dropped, counts)


def _require(table: str, frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise LabelError(f"the table of {table} has no column {', '.join(missing)}")


def _require_ratings(rule: LabelRule, nodules: pd.DataFrame) -> None:
    """Refuse nodules that have labels and no rating at all: every one of them would be dropped."""
    is_labeled = "label" in nodules and nodules["label"].notna().any()
    if is_labeled and not nodules["malignancy_ratings"].map(len).any():
        raise LabelError(
            f"label rule {rule!r} reads ratings, and no nodule here has any; its table has labels, which the "
            "rule 'given' reads"
        )
