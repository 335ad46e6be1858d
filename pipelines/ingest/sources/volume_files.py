"""Files that hold a whole volume (NIfTI, MetaImage, NRRD, NumPy) as a source: one file, or a folder of them."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.cohort.pseudonyms import Pseudonyms, lidc_scans
from pipelines.cohort.tables import is_volume_id
from pipelines.ingest.annotation_csv import AnnotationTable, AnnotationTableError
from pipelines.ingest.sources.found import Found, Job
from pipelines.ingest.table_text import patients_by_series
from transforms.dicom.tree import walk_files
from transforms.metaimage import metaimage_files, read_metaimage
from transforms.nifti import nifti_files, read_nifti
from transforms.nrrd import nrrd_files, read_nrrd
from transforms.numpy_file import numpy_files, read_numpy
from transforms.refusal import RefusedFile, SeriesRefusedError
from transforms.volume_file import FileVolume

VolumeFormat = Literal["nifti", "metaimage", "nrrd", "npy"]


@dataclass(frozen=True)
class _Format:
    title: str
    endings: tuple[str, ...]
    files: Callable[[Path], tuple[Path, ...]]
    read: Callable[[Path], FileVolume]


FORMATS: dict[VolumeFormat, _Format] = {
    "nifti": _Format("NIfTI", (".nii.gz", ".nii", ".hdr", ".hdr.gz"), nifti_files, read_nifti),
    "metaimage": _Format("MetaImage", (".mha", ".mhd"), metaimage_files, read_metaimage),
    "nrrd": _Format("NRRD", (".nrrd", ".nhdr"), nrrd_files, read_nrrd),
    "npy": _Format("NumPy", (".npy",), numpy_files, read_numpy),
}
"""By the endings of names, in whatever case: files of two parts are known by their header."""
PATCH_BELOW_MM = (100.0, 150.0, 150.0)
"""A volume smaller than this along (z, y, x) is a patch around a nodule: no adult chest fits."""


_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+){3,}")


@dataclass(frozen=True)
class VolumeJob(Job):
    """A file that holds one volume, with the file of its voxels where that is another."""

    format: VolumeFormat = "nifti"


def format_of(path: Path) -> VolumeFormat | None:
    """The format that a name says; None where it says none."""
    name = path.name.lower()
    return next((kind for kind, known in FORMATS.items() if name.endswith(known.endings)), None)


def find_volume_files(
    source: Path,
    formats: Sequence[VolumeFormat],
    pseudonyms: Pseudonyms,
    table: AnnotationTable | None,
    files: Sequence[Path] | None = None,
) -> Found:
    """List the files of some formats in a folder, with their patient and series from the annotation table.

    A file's volume_id is its name where that starts with a public id, or all ids are kept, and no other file has it;
    else a hash of its path. A name that is a UID (as in LUNA16) is the SeriesInstanceUID, and replaced as one.

    Args:
        source: A file or a folder.
        formats: Those that are read; other files are refused.
        pseudonyms: Replaces ids.
        table: Nodules, which may say the patient of a file.
        files: Those of the folder that are looked at; None for all.

    Raises:
        TransformError: If `source` is neither a file nor a folder.
        AnnotationTableError: If the table names no files though these have no UID.
    """
    root = source.parent if source.is_file() else source
    if files is None:
        files = [source] if source.is_file() else list(walk_files(source))
    found = Found()
    parts = {path: _parts(path) for path in files if format_of(path) in formats}
    voxels = {part for of_volume in parts.values() for part in of_volume[1:]}
    endings = ", ".join(ending for kind in formats for ending in FORMATS[kind].endings)
    titles = " or ".join(FORMATS[kind].title for kind in formats)
    found.refused = [
        RefusedFile(path, "", f"not a {titles} file by its name ({endings})", is_image=False)
        for path in files
        if path not in parts and path not in voxels
    ]
    _add_jobs(found, parts, root, pseudonyms, table.of_files() if table else {})
    if table is not None:
        _name_patients(found, pseudonyms, patients_by_series(table.rows))
    if table and "file" not in table.rows and not any(job.series_uid for job in found.jobs):
        raise AnnotationTableError(
            f"annotations={table.path} has no column file, and no name of a file here is a series UID; add the column "
            f"with paths below {root}"
        )
    return found


def _add_jobs(
    found: Found,
    parts: Mapping[Path, tuple[Path, ...]],
    root: Path,
    pseudonyms: Pseudonyms,
    said: Mapping[str, tuple[str, str, str]],
) -> None:
    """Add a job for each volume, with its ids; `said` is what the annotation table says of each file."""
    files = list(parts)
    relatives = [Path(os.path.relpath(path, root)).as_posix() for path in files]
    names = Counter(map(_stem, files))
    stems = [
        _stem(path) if names[_stem(path)] == 1 else relative.replace("/", "__")
        for path, relative in zip(files, relatives, strict=True)
    ]
    file_names = Counter(map(_file_name, stems))
    for path, relative, stem in zip(files, relatives, stems, strict=True):
        patient_id, series_uid, reason = said.get(relative, ("", "", ""))
        if reason:
            found.refused.append(RefusedFile(path, "", reason))
        else:
            public_id = pseudonyms.public_prefix(stem)
            own_uid = pseudonyms.uid("series", stem) if _UID.fullmatch(stem) else ""
            series_uid = pseudonyms.uid("series", series_uid) or (
                public_id if public_id in lidc_scans() else own_uid
            )
            file_name = own_uid or _file_name(stem)
            # Names that differ only in characters not allowed in ids would overwrite each other.
            is_id = is_volume_id(file_name) and file_names[_file_name(stem)] == 1
            is_shown = is_id and (pseudonyms.keep_ids or public_id or own_uid)
            volume_id = file_name if is_shown else pseudonyms.hashed_name(str(path.resolve()))
            # Without a known patient each file counts as one patient.
            patient = pseudonyms.patient(patient_id or public_id, volume_id, series_uid)
            key = pseudonyms.key_of(patient_id or public_id, patient)
            kind = format_of(path) or "nifti"
            found.jobs.append(VolumeJob(volume_id, parts[path], series_uid, patient, key, kind))


def _name_patients(found: Found, pseudonyms: Pseudonyms, patients: Mapping[str, str]) -> None:
    """Files that are named by a series are of the patient that the table names for it."""
    by_stored = {pseudonyms.uid("series", uid): patient for uid, patient in patients.items()}
    for i, job in enumerate(found.jobs):
        if job.series_uid == job.volume_id and job.series_uid in by_stored:
            named = by_stored[job.series_uid]
            patient = pseudonyms.patient(named, "", job.series_uid)
            key = pseudonyms.key_of(named, patient)
            found.jobs[i] = replace(job, patient_id=patient, patient_key=key)


def _parts(path: Path) -> tuple[Path, ...]:
    """The file and that of its voxels; the file alone where its header is not right, which reading will refuse."""
    kind = format_of(path)
    try:
        return FORMATS[kind].files(path) if kind else (path,)
    except (SeriesRefusedError, OSError):
        return (path,)


def _stem(path: Path) -> str:
    return re.sub(r"\.[A-Za-z]+(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _file_name(stem: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in stem).lstrip("._-")


def read_volume_file(job: VolumeJob) -> tuple[dict[str, Any], NDArray[np.int16]]:
    """Read one file.

    Raises:
        SeriesRefusedError: If it is no valid CT volume.
    """
    volume = FORMATS[job.format].read(job.files[0])
    extent_mm = np.multiply(volume.volume_hu.shape, volume.spacing_mm)
    is_small = bool((extent_mm < PATCH_BELOW_MM).all())
    row = {
        "volume_id": job.volume_id,
        "patient_id": job.patient_id,
        "patient_key": job.patient_key,
        "study_uid": "",
        "series_uid": job.series_uid,
        "spacing_mm": list(volume.spacing_mm),
        **volume.geometry.as_row(),
        "stored_affine_ras": volume.stored_affine_ras.ravel().tolist(),  # for places that are voxels of the file
        "manufacturer": "",
        "kernel": "",
        "slice_thickness_mm": None,
        "transfer_syntax": "",
        "is_lossy": False,
        "n_padding_voxels": volume.n_padding_voxels,
        "kind": "patch"
        if is_small and job.series_uid != job.volume_id
        else "series",  # named as the series itself
        "notes": "; ".join(volume.notes),
    }
    return row, volume.volume_hu
