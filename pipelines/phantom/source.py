"""A synthetic thorax cohort as real DICOM files, with everything about its nodules known.

It is the default cohort of every entry point: it downloads nothing, holds no patient data, and passes
through the same reader, tables and probes as real CT. `phantom_truth.json` at its root holds four readers' ratings of
each nodule, and the truth.
"""

import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.phantom.anatomy import NOISE_HU, Segment, Thorax, chest_hu, grow_vessels
from pipelines.phantom.dicom import Flavour, SeriesHeader, write_series
from pipelines.phantom.nodules import Nodule, draw_nodule, draw_nodules
from pipelines.phantom.shapes import Grid
from pipelines.phantom.truth import (
    FORMAT,
    TRUTH_FILE,
    PhantomError,
    nodule_truth,
    public_ids,
    read_truth,
    rows_for_series,
)
from pipelines.runtime.parallel import Crashed, available_cores, run_jobs
from pipelines.runtime.progress import progress

__all__ = ["PERSONAL_STRINGS", "drawn_ids", "public_ids", "rows_for_series", "write_phantom"]

SLICE_SPACINGS_MM = (2.5, 1.25, 0.7, 2.0, 1.0, 2.5, 1.25)
"""Taken in turn; seven of them, so that each is combined with both manufacturers."""

PERSONAL_INDEX = 1
PERSONAL_FOLDER = "Quillfeather_Isolde_19470311"
PERSONAL_HEADER = {
    "PatientName": "Quillfeather^Isolde^Marguerite",
    "PatientID": "MRN-5520417-QF",
    "PatientBirthDate": "19470311",
    "AccessionNumber": "ACC7731904",
    "InstitutionName": "Saint Barnabas Infirmary of Netherwick",
    "ReferringPhysicianName": "Thistlewood^Ambrose",
    "PatientComments": "Widow of Cornelius; lives at 12 Harrowgate Lane",
    "ImageComments": "Phoned 555-0142 about the biopsy",
    "SeriesDescription": "Thorax Isolde Q follow up",
    "StudyDescription": "Query metastasis, sister is nurse Wilhelmina",
}

PERSONAL_STRINGS = (
    "Quillfeather",
    "Isolde",
    "Marguerite",
    "MRN-5520417",
    "19470311",
    "ACC7731904",
    "Barnabas",
    "Netherwick",
    "Thistlewood",
    "Cornelius",
    "Harrowgate",
    "555-0142",
    "Wilhelmina",
)
"""Text in the headers or the folder name of one patient, which must not appear in any output."""


def drawn_ids(source_root: Path) -> frozenset[str]:
    """Return the PatientID that a phantom drew as if it were personal; empty where the folder is no phantom."""
    is_phantom = read_truth(source_root) is not None
    return frozenset({PERSONAL_HEADER["PatientID"]} if is_phantom else ())


def public_id(index: int) -> str:
    """The id of patient `index`, counted from 0: `PHANTOM-0001` and on."""
    return f"PHANTOM-{index + 1:04d}"


def write_phantom(
    root: Path,
    seed: int = 0,
    n_patients: int = 160,
    *,
    size_px: int = 128,
    height_mm: float = 36.0,
    workers: int | None = None,
) -> None:
    """Write the cohort into `root`, whole or not at all; a folder that already holds it is left as it is.

    The same arguments give the same bytes, for any number of workers. It is written beside `root` and renamed.

    Args:
        root: Folder to make. Its parent is made when missing.
        seed: Seed of everything drawn.
        n_patients: One study with one series each.
        size_px: Rows and columns of a slice; the field of view stays 164-180 mm.
        height_mm: Height of the scanned slab. 36 mm leaves 12 mm above and below the center of every nodule.
        workers: Processes; by default one per core that this process may use.

    Raises:
        PhantomError: If `root` holds something else, or a number is too small for a chest.
    """
    if n_patients < 1 or size_px < 32 or height_mm < 24:
        raise PhantomError(
            "a phantom needs at least 1 patient, 32 pixels and 24 mm of height, "
            f"got {n_patients} patients, {size_px} pixels and {height_mm} mm"
        )
    made_with = {"seed": seed, "n_patients": n_patients, "size_px": size_px, "height_mm": height_mm}
    if _is_there(root, made_with):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    partial_root = root.parent / f".{root.name}.partial-{os.getpid()}"
    partial_root.mkdir()
    try:
        patients = _write_patients(partial_root, seed, n_patients, size_px, height_mm, workers)
        truth = {"format": FORMAT, **made_with, "patients": patients}
        (partial_root / TRUTH_FILE).write_text(json.dumps(truth, indent=1) + "\n")
        if root.exists():
            root.rmdir()  # it was empty a moment ago; if another process filled it, this fails
        partial_root.rename(root)
    except OSError:
        if not _is_there(root, made_with):
            raise
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)


def _is_there(root: Path, made_with: dict[str, Any]) -> bool:
    """Whether `root` holds this phantom; a folder that holds anything else is refused."""
    if not root.exists() or not any(root.iterdir()):
        return False
    truth = read_truth(root)
    if truth is None:
        raise PhantomError(
            f"{root} is not empty and holds no {TRUTH_FILE}; name a folder of its own for the phantom"
        )
    found = {key: truth[key] for key in made_with}
    if found != made_with:
        raise PhantomError(f"{root} holds a phantom made with {found}, not {made_with}; name another folder")
    return True


def _remove_abandoned(root: Path) -> None:
    """Remove what killed writers left beside `root`; the folder of a running writer stays."""
    for folder in root.parent.glob(f".{root.name}.partial-*"):
        process_id = int(folder.name.rpartition("-")[2])
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue


def _write_patients(
    root: Path, seed: int, n_patients: int, size_px: int, height_mm: float, workers: int | None
) -> list[dict[str, Any]]:
    """The truth about every patient, in order."""
    write = partial(write_patient, root, seed, size_px=size_px, height_mm=height_mm)
    jobs = run_jobs(write, range(n_patients), workers or available_cores())
    truths: dict[int, dict[str, Any]] = {}
    for index, truth in progress(jobs, total=n_patients, desc="phantom", unit="patient", leave=False):
        if isinstance(truth, Crashed):
            raise ChildProcessError(f"the process that drew patient {index} of the phantom was killed")
        truths[index] = truth
    return [truths[index] for index in range(n_patients)]


@dataclass(frozen=True, slots=True)
class Patient:
    """One patient before anything is drawn: how the chest is built and scanned, and the nodules in it."""

    header: SeriesHeader
    grid: Grid
    thorax: Thorax
    vessels: list[Segment]
    nodules: list[Nodule]

    def truth(self, index: int) -> dict[str, Any]:
        """The entry of `phantom_truth.json` for this patient."""
        return {
            "public_id": None if index == PERSONAL_INDEX else public_id(index),
            "scan_id": index + 1,
            "study_uid": self.header.study_uid,
            "series_uid": self.header.series_uid,
            "flavour": self.header.flavour,
            "shape": self.grid.shape,
            "spacing_mm": self.grid.spacing_mm,
            "first_voxel_lps_mm": self.header.first_voxel_lps_mm,
            "nodules": [nodule_truth(nodule, self.header, self.grid) for nodule in self.nodules],
        }


def draw_patient(
    rng: np.random.Generator, seed: int, index: int, *, size_px: int = 128, height_mm: float = 36.0
) -> Patient:
    """Draw everything about patient `index` but the pixels."""
    grid, header = _scan(rng, seed, index, size_px, height_mm)
    thorax = Thorax.draw(rng, grid)
    vessels = grow_vessels(thorax, rng)
    return Patient(header, grid, thorax, vessels, draw_nodules(grid, thorax, vessels, rng))


def write_patient(root: Path, seed: int, index: int, *, size_px: int, height_mm: float) -> dict[str, Any]:
    """Draw patient `index`, write the series, and return its part of the truth."""
    rng = np.random.default_rng([seed, index])
    patient = draw_patient(rng, seed, index, size_px=size_px, height_mm=height_mm)
    volume = chest_hu(patient.grid, patient.thorax, patient.vessels, rng)
    for nodule in patient.nodules:
        draw_nodule(volume, patient.grid, nodule, rng)
    volume += np.float32(NOISE_HU) * rng.standard_normal(volume.shape, dtype=np.float32)
    folder = root / (PERSONAL_FOLDER if index == PERSONAL_INDEX else public_id(index))
    write_series(folder / "study-1" / "series-1", patient.header, np.rint(volume).astype(np.int16), rng)
    return patient.truth(index)


def _scan(
    rng: np.random.Generator, seed: int, index: int, size_px: int, height_mm: float
) -> tuple[Grid, SeriesHeader]:
    """How one patient is scanned: spacing, position in the scanner's frame, manufacturer."""
    spacing_z = SLICE_SPACINGS_MM[index % len(SLICE_SPACINGS_MM)]
    spacing_xy = round(rng.uniform(164, 180) / size_px, 4)
    grid = Grid((round(height_mm / spacing_z) + 1, size_px, size_px), (spacing_z, spacing_xy, spacing_xy))
    flavour: Flavour = "ge" if index % 2 == 0 else "philips"
    corner = np.round(-grid.middle_mm + rng.uniform([-220, -10, -10], [-80, 10, 10]), 4)
    header = SeriesHeader(
        key=f"seed {seed} patient {index}",
        patient_id=public_id(index),
        flavour=flavour,
        spacing_mm=grid.spacing_mm,
        slice_thickness_mm=1.25 if spacing_z == 0.7 else spacing_z,  # thickness is not spacing
        first_voxel_lps_mm=(float(corner[2]), float(corner[1]), float(corner[0])),
        personal=PERSONAL_HEADER if index == PERSONAL_INDEX else {},
    )
    return grid, header
