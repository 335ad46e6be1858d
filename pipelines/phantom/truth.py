"""The truth of the phantom: `phantom_truth.json`, and the same as the tables of real data."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.cohort.tables import ANNOTATIONS, NODULES
from pipelines.lidc.pylidc_compat import RATINGS
from pipelines.phantom.dicom import SeriesHeader
from pipelines.phantom.nodules import Nodule
from pipelines.phantom.shapes import Grid
from transforms.refusal import Refusal


class PhantomError(Refusal):
    """A phantom that cannot be drawn or read as asked."""


TRUTH_FILE = "phantom_truth.json"
FORMAT = "dinox-phantom-1"

NODULE_COLUMNS = [*NODULES.names, "cluster_id", "true_diameter_mm", "true_margin", "true_density"]


def nodule_truth(nodule: Nodule, header: SeriesHeader, grid: Grid) -> dict[str, Any]:
    """Return one nodule and its readings as JSON, in LPS mm."""
    slices = header.first_voxel_lps_mm[2] + np.arange(grid.shape[0]) * grid.spacing_mm[0]
    readings = []
    for reading in nodule.readings:
        center = np.add(nodule.center_mm, reading.shift_mm)
        x, y, z = np.add(center[::-1], header.first_voxel_lps_mm)
        marked = slices[np.abs(slices - z) <= reading.diameter_mm / 2]
        if not marked.size:
            marked = slices[[np.argmin(np.abs(slices - z))]]
        readings.append(
            reading.ratings
            | {"diameter_mm": round(reading.diameter_mm, 4)}
            | {"center_lps_mm": [round(float(value), 4) for value in (x, y, z)]}
            | {"contour_z_mm": [round(float(f(marked)), 4) for f in (np.min, np.max, np.median)]}
        )
    center_lps = np.add(nodule.center_mm[::-1], header.first_voxel_lps_mm)
    return {
        "center_lps_mm": [round(float(value), 4) for value in center_lps],
        "diameter_mm": round(nodule.diameter_mm, 4),
        "margin": nodule.margin,
        "density": nodule.density,
        "suspicion": round(nodule.suspicion, 4),
        "readings": readings,
    }


def read_truth(source_root: Path) -> dict[str, Any] | None:
    """Return `phantom_truth.json` at the root, or None where there is none."""
    path = source_root / TRUTH_FILE
    if not path.is_file():
        return None
    try:
        truth: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise PhantomError(
            f"{path} is damaged: it is no JSON; delete {source_root}, and the phantom is written again"
        ) from None
    if truth.get("format") != FORMAT:
        raise PhantomError(
            f"{path} is of format {truth.get('format')!r}, not {FORMAT!r}; write the phantom again"
        )
    return truth


def public_ids(source_root: Path) -> frozenset[str]:
    """Return the patient ids and UIDs of a phantom, which may be kept; empty where the folder is no phantom.

    One patient id is missing from them: the PatientID in its headers is personal and must be replaced.
    """
    truth = read_truth(source_root)
    patients = truth["patients"] if truth else []
    names = (patient[name] for patient in patients for name in ("public_id", "study_uid", "series_uid"))
    return frozenset(name for name in names if name is not None)


def rows_for_series(source_root: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return the annotations and the nodules of a phantom, or None where the folder is no phantom.

    The columns are those of the cohort's tables; join them to the series by `series_uid`. `patient_id` is empty for
    the patient whose id is personal: it has no public one, so the series' own (replaced) id belongs there.
    """
    truth = read_truth(source_root)
    return None if truth is None else rows_of(truth["patients"])


def rows_of(patients: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the annotations and the nodules of these patients' truth, as the two tables of a cohort."""
    annotations: list[dict[str, Any]] = []
    nodules: list[dict[str, Any]] = []
    for patient in patients:
        for number, nodule in enumerate(patient["nodules"]):
            marks = [
                _annotation(patient, number, reading, len(annotations) + k + 1)
                for k, reading in enumerate(nodule["readings"])
            ]
            annotations += marks
            nodules.append(_nodule(patient, number, nodule, marks))
    return (
        pd.DataFrame(annotations, columns=ANNOTATIONS.names),
        pd.DataFrame(nodules, columns=NODULE_COLUMNS),
    )


def _series_of(patient: dict[str, Any]) -> dict[str, Any]:
    return {
        "volume_id": patient["series_uid"],
        "series_uid": patient["series_uid"],
        "patient_id": patient["public_id"] or "",
    }


def _annotation(
    patient: dict[str, Any], number: int, reading: dict[str, Any], annotation_id: int
) -> dict[str, Any]:
    x, y, z = reading["center_lps_mm"]
    low, high, median = reading["contour_z_mm"]
    return {
        **_series_of(patient),
        **{name: reading[name] for name in RATINGS},
        "annotation_id": annotation_id,
        "scan_id": patient["scan_id"],
        "study_uid": patient["study_uid"],
        "diameter_mm": reading["diameter_mm"],
        "volume_mm3": math.pi / 6 * reading["diameter_mm"] ** 3,
        "x_lps_mm": x,
        "y_lps_mm": y,
        "z_lps_mm": z,
        "contour_z_min_mm": low,
        "contour_z_max_mm": high,
        "contour_z_median_mm": median,
        "cluster_id": number,
    }


def _nodule(
    patient: dict[str, Any], number: int, nodule: dict[str, Any], marks: list[dict[str, Any]]
) -> dict[str, Any]:
    """One row per nodule: means over its readers, as for real data, and the truth beside them."""

    def mean(name: str) -> float:
        return float(np.mean([mark[name] for mark in marks]))

    return {
        **_series_of(patient),
        "nodule_id": f"phantom-{patient['scan_id']:04d}-{number + 1}",
        **{name: mean(name) for name in ("x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm", "volume_mm3")},
        "malignancy_ratings": [mark["malignancy"] for mark in marks],
        "n_readers": len(marks),
        "z_min_mm": min(mark["contour_z_min_mm"] for mark in marks),
        "z_max_mm": max(mark["contour_z_max_mm"] for mark in marks),
        "source": "phantom",
        "flag": "",
        "cluster_id": number,
        "true_diameter_mm": nodule["diameter_mm"],
        "true_margin": nodule["margin"],
        "true_density": nodule["density"],
    }
