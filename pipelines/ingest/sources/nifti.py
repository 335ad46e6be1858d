"""NIfTI files as a source: one file, or a folder of them."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cohort.folder import is_volume_id
from pipelines.cohort.pseudonyms import Pseudonyms, lidc_scans
from pipelines.ingest.annotation_csv import AnnotationTable, AnnotationTableError
from pipelines.ingest.sources.found import Found, Job
from transforms.dicom.tree import walk_files
from transforms.nifti import read_nifti
from transforms.refusal import RefusedFile

ENDINGS = (".nii.gz", ".nii")
PATCH_BELOW_MM = (100.0, 150.0, 150.0)
"""A volume smaller than this along (z, y, x) is a patch around a nodule: no adult chest fits."""


def find_nifti(source: Path, pseudonyms: Pseudonyms, table: AnnotationTable | None) -> Found:
    """List the NIfTI files of a folder, with the patient and series that the annotation table says.

    A file's volume_id is its name where that starts with a public patient id, or all ids are kept, and no other file
    has it; else a hash of its path.

    Raises:
        TransformError: If `source` is neither a file nor a folder.
        AnnotationTableError: If the table names no files though these have no UID.
    """
    root = source.parent if source.is_file() else source
    files = [source] if source.is_file() else list(walk_files(source))
    said = table.of_files() if table else {}
    found = Found()
    relatives = [Path(os.path.relpath(path, root)).as_posix() for path in files]
    names = Counter(map(_stem, files))
    stems = [
        _stem(path) if names[_stem(path)] == 1 else relative.replace("/", "__")
        for path, relative in zip(files, relatives, strict=True)
    ]
    file_names = Counter(map(_file_name, stems))
    for path, relative, stem in zip(files, relatives, stems, strict=True):
        patient_id, series_uid, reason = said.get(relative, ("", "", ""))
        if not path.name.endswith(ENDINGS):
            found.refused.append(RefusedFile(path, "", "not a NIfTI file by its name (.nii or .nii.gz)"))
        elif reason:
            found.refused.append(RefusedFile(path, "", reason))
        else:
            public_id = _public_prefix(stem, pseudonyms)
            series_uid = pseudonyms.uid("series", series_uid)
            if not series_uid and public_id in lidc_scans():
                series_uid = public_id
            file_name = _file_name(stem)
            # Names that differ only in what an id cannot hold would be one volume, the last of them.
            is_id = is_volume_id(file_name) and file_names[file_name] == 1
            is_shown = is_id and (pseudonyms.keep_ids or public_id)
            volume_id = file_name if is_shown else pseudonyms.hashed_name(str(path.resolve()))
            # Where nothing says the patient, the file stands for one.
            patient = pseudonyms.patient(patient_id or public_id, volume_id, series_uid)
            found.jobs.append(Job(volume_id, (path,), series_uid, patient))
    if table and "file" not in table.rows and not any(job.series_uid for job in found.jobs):
        raise AnnotationTableError(
            f"annotations={table.path} has no column file, and a NIfTI file knows no series UID; add the column with "
            f"paths below {root}"
        )
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _file_name(stem: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in stem).lstrip("._-")


def _public_prefix(stem: str, pseudonyms: Pseudonyms) -> str:
    """The public id that a name begins with, up to a character that is no letter or digit; "" if none."""
    ends = [i for i in range(len(stem) + 1) if i == len(stem) or not stem[i].isalnum()]
    return max((stem[:i] for i in ends if stem[:i] in pseudonyms.public_names), key=len, default="")


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
        **volume.geometry.as_row(),
        "manufacturer": "",
        "kernel": "",
        "slice_thickness_mm": None,
        "transfer_syntax": "",
        "is_lossy": False,
        "n_padding_voxels": volume.n_padding_voxels,
        "kind": "patch" if bool((extent_mm < PATCH_BELOW_MM).all()) else "series",
        "notes": "; ".join(volume.notes),
    }
    return row, volume.volume_hu
