"""DICOM folders as a source: any number of series mixed in one tree."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.ingest.sources.found import Found, Job
from pipelines.runtime.parallel import Crashed, run_jobs
from pipelines.runtime.progress import progress
from transforms.dicom.series import CtSeries, read_series
from transforms.dicom.tree import LookedAt, SeriesPart, look_at, sort_into_series, walk_files
from transforms.dicom.witness import compare_with_simpleitk
from transforms.refusal import RefusedFile

_FILES_AT_ONCE = 512


@dataclass(frozen=True)
class DicomJob(Job):
    """The files of one volume; `note` identifies it among several volumes of its SeriesInstanceUID."""

    note: str = ""


def find_dicom(
    root: Path, workers: int, pseudonyms: Pseudonyms, files: Sequence[Path] | None = None
) -> Found:
    """Look at every file below `root`, or at that one file, or at those given, and sort the CT slices into volumes.

    Raises:
        TransformError: If `root` is neither a file nor a folder.
    """
    if files is None:
        files = [root] if root.is_file() else sorted(walk_files(root))
    chunks = [files[i : i + _FILES_AT_ONCE] for i in range(0, len(files), _FILES_AT_ONCE)]
    seen: list[LookedAt] = []
    with progress(total=len(files), desc="headers", unit="file") as bar:
        for chunk, looked_at in run_jobs(_look_at_all, chunks, workers):
            if isinstance(looked_at, Crashed):
                looked_at = [
                    RefusedFile(path, "", "reading the headers of this and nearby files crashed")
                    for path in chunk
                ]
            seen += looked_at
            bar.update(len(chunk))
    found = sort_into_series(seen)
    jobs: list[Job] = [
        _job(key, tuple(files), found.parts[key], pseudonyms) for key, files in sorted(found.series.items())
    ]
    return Found(jobs, found.refused)


def _job(key: str, files: tuple[Path, ...], part: SeriesPart, pseudonyms: Pseudonyms) -> DicomJob:
    series_uid = pseudonyms.uid("series", part.series_uid)
    return DicomJob(series_uid + key.removeprefix(part.series_uid), files, series_uid, note=part.note)


def _look_at_all(files: Iterable[Path]) -> list[LookedAt]:
    return [look_at(path) for path in files]


def read_dicom(job: Job, pseudonyms: Pseudonyms, witness: str) -> tuple[dict[str, Any], NDArray[np.int16]]:
    """Read one series; with witness "simpleitk" every voxel is compared with SimpleITK's reading.

    It calls what `LoadDicomSeries` wraps: `prepare` has many processes, and MONAI would cost each of them 900 MB.

    Raises:
        SeriesRefusedError: If it is invalid, or the witness reads other values.
    """
    series = read_series(job.files)
    row = _row(job, series, pseudonyms)
    if witness == "simpleitk":
        row["witness_worst_hu"] = compare_with_simpleitk(series)
    return row, series.volume_hu


def _row(job: Job, series: CtSeries, pseudonyms: Pseudonyms) -> dict[str, Any]:
    thickness = series.slice_thickness_mm
    notes = [job.note] if isinstance(job, DicomJob) and job.note else []
    patient = pseudonyms.patient(series.patient_id, series.study_uid, series.series_uid)
    return {
        "volume_id": job.volume_id,
        "patient_id": patient,
        "patient_key": pseudonyms.key_of(series.patient_id, patient),
        "study_uid": pseudonyms.uid("study", series.study_uid),
        "series_uid": job.series_uid,
        "spacing_mm": list(series.spacing_mm),
        **series.geometry.as_row(),
        "manufacturer": series.manufacturer,
        "kernel": series.kernel,
        "slice_thickness_mm": None if math.isnan(thickness) else thickness,
        "transfer_syntax": series.transfer_syntax,
        "is_lossy": series.is_lossy,
        "n_padding_voxels": series.n_padding_voxels,
        "kind": "series",
        "notes": "; ".join([*notes, *series.notes]),
    }
