"""Whether patients of two cohorts are the same: by their ids, those of their studies and series, and by their voxels.

LUNA16 is LIDC-IDRI under its series UIDs alone, so the public scans are known by any of their ids.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Literal

from pipelines.cohort.folder import Cohort
from pipelines.cohort.pseudonyms import is_fingerprint, lidc_scans

_KINDS = ("patient", "study", "series", "voxels", "person")
Ids = Mapping[str, Collection[str]]
"""Ids by kind: patient, study, series, voxels (a hash), person (see `ids_of`). Older records lack the last two."""


def ids_of(cohort: Cohort, patients: Collection[str]) -> dict[str, list[str]]:
    """Return every id under which these patients of a cohort are known.

    `person` holds for each of them what tells people apart: the id in LIDC-IDRI, or the pseudonym of a PatientID behind
    the fingerprint of its key; "" for a patient of whom neither is known.
    """
    own = cohort.series[cohort.series["patient_id"].isin(patients)]
    nodules = cohort.nodules[cohort.nodules["patient_id"].isin(patients)]
    person = {patient: patient if patient in _lidc_patients() else "" for patient in map(str, patients)}
    for patient, key in zip(own["patient_id"], own["patient_key"], strict=True):
        if key:
            person[patient] = f"{key}/{patient}"
    series, studies = set(), set(own["study_uid"])
    for table in (own, nodules):  # a table may name the series of a patch
        for patient, uid in zip(table["patient_id"], table["series_uid"], strict=True):
            series.add(uid)
            if uid in lidc_scans():
                person[patient], study = lidc_scans()[uid]
                studies.add(study)
    public = set(person.values()) & _lidc_patients()
    return {
        "patient": sorted({*person, *public}),
        "study": sorted(studies - {""}),
        "series": sorted(series - {""}),
        "voxels": sorted({sha256[:32] for sha256 in own["sha256"]}),
        "person": sorted(set(person.values())),
    }


def joined(*several: Ids) -> dict[str, list[str]]:
    """Return the ids of all of them; {} names no one."""
    complete = [{**ids, "person": _people(ids)} for ids in several]
    return {kind: sorted({name for ids in complete for name in ids.get(kind, ())}) for kind in _KINDS}


def compare(one: Ids, others: Ids) -> Literal["shared", "apart", "unknown"]:
    """Compare the ids of a patient with those of others.

    Returns:
        `shared` if they have any id or volume in common. `apart` only if everyone on both sides has an id that tells
        people apart, all of one kind: ids of LIDC-IDRI (or a series that it knows), or PatientIDs replaced under one
        key. Else `unknown`: names that a user gave, and pseudonyms under two keys or under one that an older cohort
        does not tell, may mean one person twice. Different studies and series never say `apart`, since one person has
        several; nor does an id that was made of a study or a file for want of a PatientID.
    """
    if any(not (set(one.get(kind, ())) - {""}).isdisjoint(others.get(kind, ())) for kind in _KINDS):
        return "shared"
    people = _people(one), _people(others)
    kinds = {_kind(person) for side in people for person in side}
    return "apart" if all(people) and len(kinds) == 1 and "" not in kinds else "unknown"


def same_voxels(cohort: Cohort) -> dict[str, list[str]]:
    """Patients of each volume, by its hash, that a cohort holds under several patients."""
    patients = cohort.series.groupby("sha256")["patient_id"].unique()
    return {str(sha256): sorted(names) for sha256, names in patients.items() if len(names) > 1}


def same_voxels_said(cohort: Cohort) -> list[str]:
    """One sentence on each of them."""
    return [
        f"the same voxels are {len(patients)} patients ({', '.join(patients)}): if they are one, give them one "
        "patient_id, or one may be trained on and the other tested"
        for patients in same_voxels(cohort).values()
    ]


def _people(ids: Ids) -> Collection[str]:
    if "person" in ids:
        return ids["person"]
    return [patient if patient in _lidc_patients() else "" for patient in ids.get("patient", ())]


def _kind(person: str) -> str:
    """What a person is named by: LIDC-IDRI, or the fingerprint of a key; "" where it tells no people apart."""
    key = person.rpartition("/")[0]
    return "LIDC-IDRI" if person in _lidc_patients() else key if is_fingerprint(key) else ""


@lru_cache(maxsize=1)
def _lidc_patients() -> frozenset[str]:
    return frozenset(patient for patient, _ in lidc_scans().values())
