"""The formats that a source may have: finding its volumes, and reading one."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.ingest.annotation_csv import AnnotationTable
from pipelines.ingest.config import SourceFormat
from pipelines.ingest.sources.dicom import find_dicom, read_dicom
from pipelines.ingest.sources.found import Found, Job
from pipelines.ingest.sources.png import PngJob, find_png, has_png_index, read_png_job
from pipelines.ingest.sources.volume_files import (
    FORMATS,
    VolumeJob,
    find_volume_files,
    format_of,
    read_volume_file,
)
from pipelines.phantom.truth import TRUTH_FILE
from transforms.dicom.tree import walk_files
from transforms.refusal import RefusedFile


def find_jobs(
    source_format: SourceFormat,
    source: Path,
    pseudonyms: Pseudonyms,
    table: AnnotationTable | None,
    workers: int,
) -> Found:
    """All volumes of a source, and all files that belong to none.

    Tables with a reader of their own (a phantom's truth, the annotations) do not count as refused files.

    Raises:
        Refusal: If the source is not there, or is not of that format.
    """
    if source_format == "auto":
        found = _find_any(source, pseudonyms, table, workers)
    elif source_format == "dicom":
        found = find_dicom(source, workers, pseudonyms)
    elif source_format in FORMATS:
        found = find_volume_files(source, (source_format,), pseudonyms, table)
    else:
        found = find_png(source, pseudonyms)
    # realpath, because Path.resolve raises on a link that leads to itself.
    used = {os.path.realpath(path) for path in (source / TRUTH_FILE, *([table.path] if table else []))}
    return Found(found.jobs, [one for one in found.refused if os.path.realpath(one.path) not in used])


def _find_any(source: Path, pseudonyms: Pseudonyms, table: AnnotationTable | None, workers: int) -> Found:
    """DICOM where there is any, else volumes in files, else PNG with an index.

    Files of the others are refused by name then: beside DICOM they are mostly the same scan once more, or a mask of it,
    and one patient under two ids would leak from training into a test.
    """
    if source.is_file() and source.suffix.lower() == ".csv":
        return find_png(source, pseudonyms)
    files = [source] if source.is_file() else sorted(walk_files(source))
    of_volumes = find_volume_files(source, tuple(FORMATS), pseudonyms, None, files)
    others = [one.path for one in of_volumes.refused]
    pngs = [path for path in others if path.suffix.lower() == ".png"]
    is_png = bool(pngs) and has_png_index(source)
    found = find_dicom(
        source, workers, pseudonyms, [path for path in others if not (is_png and path in set(pngs))]
    )
    if found.jobs:
        beside = [(path, format_of(job.files[0])) for job in of_volumes.jobs for path in job.files]
        found.refused += [_beside(path, str(kind)) for path, kind in beside]
        found.refused += [_beside(path, "png") for path in pngs if is_png]
        return found
    if of_volumes.jobs:
        found.jobs = find_volume_files(source, tuple(FORMATS), pseudonyms, table, files).jobs
        return found
    return find_png(source, pseudonyms) if is_png else found


def _beside(path: Path, kind: str) -> RefusedFile:
    return RefusedFile(path, "", f"a file of another format beside DICOM series; read it with from={kind}")


def read_job(job: Job, pseudonyms: Pseudonyms, witness: str) -> tuple[dict[str, Any], NDArray[np.int16]]:
    """Read one volume: a row of the series table, without shape and hash, and voxels (Z, Y, X) int16 HU.

    Args:
        job: What `find_jobs` found.
        pseudonyms: Replaces ids.
        witness: "simpleitk" compares DICOM with SimpleITK's reading; no other format has a witness.

    Raises:
        SeriesRefusedError: With the reason, where it cannot be read right.
        OSError: If a file cannot be read.
    """
    if isinstance(job, VolumeJob):
        return read_volume_file(job)
    if isinstance(job, PngJob):
        return read_png_job(job)
    return read_dicom(job, pseudonyms, witness)
