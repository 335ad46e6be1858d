"""Whether patients of two cohorts are the same: by the ids of patients, studies and series, where both have one form.

LUNA16 is LIDC-IDRI under its series UIDs alone, so the public scans are known by any of their ids.
"""

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Literal

from pipelines.cohort.folder import Cohort
from pipelines.cohort.pseudonyms import REPLACED, lidc_scans

Ids = Mapping[str, Collection[str]]
"""Ids by kind: patient, study, series."""
_UID = re.compile(r"\d+(\.\d+)+")


def ids_of(cohort: Cohort, patients: Collection[str]) -> dict[str, list[str]]:
    """Return every id under which these patients of a cohort are known."""
    found: dict[str, set[str]] = {"patient": set(map(str, patients)), "study": set(), "series": set()}
    own = cohort.series[cohort.series["patient_id"].isin(patients)]
    nodules = cohort.nodules[
        cohort.nodules["patient_id"].isin(patients)
    ]  # a table may name the series of a patch
    found["study"] |= set(own["study_uid"])
    found["series"] |= set(own["series_uid"]) | set(nodules["series_uid"])
    for series in found["series"] & lidc_scans().keys():
        patient, study = lidc_scans()[series]
        found["patient"].add(patient)
        found["study"].add(study)
    return {kind: sorted(ids - {""}) for kind, ids in found.items()}


def compare(one: Ids, others: Ids) -> Literal["shared", "apart", "unknown"]:
    """Compare the ids of a patient with those of others.

    Returns:
        `apart` only if for some kind all ids of both are of one form that tells patients apart: UIDs, ids of LIDC-IDRI,
        or pseudonyms of one key. Names that a user gave may mean the same patient in two ways: `unknown`.
    """
    if any(set(one[kind]) & set(others[kind]) for kind in one):
        return "shared"
    for kind in one:
        forms = {_form(name) for name in (*one[kind], *others[kind])}
        if one[kind] and others[kind] and len(forms) == 1 and "" not in forms:
            return "apart"
    return "unknown"


def _form(name: str) -> str:
    if _UID.fullmatch(name):
        return "UID"
    if REPLACED.fullmatch(name):
        return "pseudonym"
    return "LIDC-IDRI" if name in _lidc_patients() else ""


@lru_cache(maxsize=1)
def _lidc_patients() -> frozenset[str]:
    return frozenset(patient for patient, _ in lidc_scans().values())
