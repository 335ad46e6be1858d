"""The formats that a source may have, each with the function that finds its volumes and the one that reads one."""

import os
from pathlib import Path

from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.ingest.annotation_csv import AnnotationTable
from pipelines.ingest.config import SourceFormat
from pipelines.ingest.sources.dicom import find_dicom, read_dicom
from pipelines.ingest.sources.found import Found, ReadJob
from pipelines.ingest.sources.nifti import find_nifti, read_nifti_job
from pipelines.ingest.sources.png import find_png, read_png_job
from pipelines.phantom.truth import TRUTH_FILE

READERS: dict[SourceFormat, ReadJob] = {
    "dicom": read_dicom,
    "nifti": read_nifti_job,
    "png": read_png_job,
    "hub": read_png_job,
}


def find_jobs(
    source_format: SourceFormat,
    source: Path,
    pseudonyms: Pseudonyms,
    table: AnnotationTable | None,
    workers: int,
) -> Found:
    """All volumes of a source, and all files that belong to none.

    Tables that are read for themselves, the truth of a phantom and the annotations, are no refused files.

    Raises:
        ValueError: If the source is not a folder of that format.
    """
    if source_format == "dicom":
        found = find_dicom(source, workers, pseudonyms)
    elif source_format == "nifti":
        found = find_nifti(source, pseudonyms, table)
    else:
        found = find_png(source, pseudonyms)
    # realpath, because Path.resolve raises on a link that leads to itself.
    used = {os.path.realpath(path) for path in (source / TRUTH_FILE, *([table.path] if table else []))}
    return Found(found.jobs, [one for one in found.refused if os.path.realpath(one.path) not in used])
