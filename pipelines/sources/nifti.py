"""NIfTI files as a source: one file, or a folder of them."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.annotation_csv import AnnotationTable
from pipelines.pseudonyms import Pseudonyms
from pipelines.sources.found import Found, Job
from transforms.dicom_tree import walk_files
from transforms.nifti import read_nifti
from transforms.refused import RefusedFile

ENDINGS = (".nii.gz", ".nii")
PATCH_BELOW_MM = (100.0, 150.0, 150.0)
"""A volume smaller than this along (z, y, x) is a patch around a nodule: no adult chest fits."""


def find_nifti(source: Path, pseudonyms: Pseudonyms, table: AnnotationTable | None) -> Found:
    """List the NIfTI files of a folder, with the patient and series that the annotation table says.

    A file's volume_id is its name where that starts with its patient's public id, else a hash of its path.

    Raises:
        ValueError: If `source` is neither a file nor a folder.
    """
    root = source.parent if source.is_file() else source
    files = [source] if source.is_file() else list(walk_files(source))
    said = table.of_files() if table else {}
    found = Found()
    names = Counter(_stem(path) for path in files)
    for path in files:
        relative = Path(os.path.relpath(path, root)).as_posix()
        patient_id, series_uid, reason = said.get(relative, ("", "", ""))
        if not path.name.endswith(ENDINGS):
            if table is None or path.resolve() != table.path.resolve():
                found.refused.append(RefusedFile(path, "", "not a NIfTI file by its name (.nii or .nii.gz)"))
        elif reason:
            found.refused.append(RefusedFile(path, "", reason))
        else:
            stem = _stem(path) if names[_stem(path)] == 1 else relative.replace("/", "__").removesuffix(".gz")
            volume_id = _volume_id(stem, path, patient_id, pseudonyms)
            stored_patient = pseudonyms.patient(patient_id, "", series_uid) if patient_id else ""
            found.jobs.append(
                Job(volume_id, (path,), series_uid, stored_patient or pseudonyms.patient("", volume_id))
            )
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _volume_id(stem: str, path: Path, patient_id: str, pseudonyms: Pseudonyms) -> str:
    is_public = patient_id in pseudonyms.public_names and stem.startswith(patient_id)
    if is_public or pseudonyms.keep_ids:
        return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in stem).lstrip("._-")
    return pseudonyms.name(str(path.resolve()))


def read_nifti_job(
    job: Job, pseudonyms: Pseudonyms, witness: str
) -> tuple[dict[str, Any], NDArray[np.int16]]:
    """Read one file; see `read_nifti`. `witness` is of no use here: DICOM is what SimpleITK is a witness for.

    Raises:
        SeriesRefusedError: If it is no right CT volume.
    """
    volume = read_nifti(job.files[0])
    extent_mm = np.multiply(volume.volume_hu.shape, volume.spacing_mm)
    row = {
        "volume_id": job.volume_id,
        "patient_id": job.patient_id,
        "study_uid": "",
        "series_uid": job.series_uid,
        "spacing_mm": list(volume.spacing_mm),
        "affine_ras": volume.affine_ras.ravel().tolist(),
        "gaps": [],
        "slice_offsets_mm": [],
        "manufacturer": "",
        "kernel": "",
        "slice_thickness_mm": None,
        "transfer_syntax": "",
        "is_lossy": False,
        "n_padding_voxels": 0,
        "kind": "patch" if bool((extent_mm < PATCH_BELOW_MM).all()) else "series",
        "notes": "; ".join(volume.notes),
    }
    return row, volume.volume_hu
