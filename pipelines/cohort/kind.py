"""What a cohort is made of: figures from a phantom or from synthetic slices do not apply to patients."""

from __future__ import annotations

from typing import Literal

from pipelines.cohort.folder import Cohort

SYNTHETIC = "synthetic"
"""Manufacturer of the wall study's volumes, so that figures from them can be recognized."""

CohortKind = Literal["real CT", "phantom", "synthetic slices"]


def cohort_kind(cohort: Cohort) -> CohortKind:
    """Read the kind from the tables: `source` of the phantom's nodules, `manufacturer` of the synthetic slices."""
    if (cohort.nodules["source"] == "phantom").any():
        return "phantom"
    if (cohort.series["manufacturer"] == SYNTHETIC).any():
        return "synthetic slices"
    return "real CT"
