"""What a cohort is made of: figures from a phantom or from synthetic slices say nothing about patients."""

from __future__ import annotations

from typing import Literal

from pipelines.cohort.folder import Cohort

SYNTHETIC = "synthetic"
"""Manufacturer of the wall study's volumes: whoever reports figures from them can tell."""

CohortKind = Literal["real CT", "phantom", "synthetic slices"]


def cohort_kind(cohort: Cohort) -> CohortKind:
    """Tell by the tables: the phantom's nodules name their source, the synthetic slices their maker."""
    if (cohort.nodules["source"] == "phantom").any():
        return "phantom"
    if (cohort.series["manufacturer"] == SYNTHETIC).any():
        return "synthetic slices"
    return "real CT"
