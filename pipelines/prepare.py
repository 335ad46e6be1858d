"""Entry point `prepare`: a folder of CT in, a cohort out; what cannot be read right is refused with its reason."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
from tqdm import tqdm

from pipelines.cohort import Cohort, CohortWriter, write_volume
from pipelines.nodule_tables import rows_for_volumes
from pipelines.parallel import Crashed, available_cores, run_jobs
from pipelines.phantom import public_patient_ids, write_phantom
from pipelines.pseudonyms import Pseudonyms
from pipelines.refused_table import refused_series, refused_table
from pipelines.sources.dicom import find_dicom, read_dicom
from pipelines.sources.found import Job
from transforms.refused import RefusedFile, SeriesRefusedError

if TYPE_CHECKING:
    from pipelines.tracking import Run

PHANTOM_SOURCE = Path("phantom_source")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """What to prepare, and into which cohort."""

    source: str = ""
    """Folder of CT; empty writes the synthetic phantom and prepares that."""
    cohort: str = "cohorts/phantom"
    from_: Literal["dicom"] = "dicom"
    """Format of the source."""
    witness: Literal["none", "simpleitk"] = "none"
    """simpleitk: compare every voxel with SimpleITK's reading and refuse series that differ."""
    annotations: str = ""
    """CSV of nodules to join to the volumes."""
    keep_ids: bool = False
    """Store patient ids and folder names as they are: all of them are public."""
    workers: int = 0
    """Processes; 0 takes one per core."""
    verify: bool = False
    """Hash every volume of the cohort again at the end."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run of `prepare_cohort` found and did."""

    cohort: Cohort
    n_new: int
    n_present: int
    n_refused_files: int


class NothingReadError(ValueError):
    """The source holds no volume that can be read."""


def prepare_cohort(config: PrepareConfig) -> Prepared:
    """Read what is not yet in the cohort, then write its tables.

    May be called again at any time, and by several processes at once: only what is missing is read.

    Raises:
        NothingReadError: If the source holds nothing that can be read.
        ValueError: If the source is no folder, or the cohort folder is something else.
    """
    source = Path(config.source) if config.source else _phantom_source()
    workers = config.workers or available_cores()
    found = find_dicom(source, workers)
    pseudonyms = Pseudonyms.of_user(public_patient_ids(source), config.keep_ids)
    writer = CohortWriter(Path(config.cohort))
    try:
        missing = [job for job in found.jobs if writer.n_files_of(job.volume_id) != len(job.files)]
        refused_jobs = _read_all(
            missing, partial(_prepare_one, writer.root, pseudonyms, config.witness), workers
        )
        refused = refused_table([*found.refused, *refused_jobs], source, pseudonyms)
        present = {job.volume_id for job in found.jobs if writer.n_files_of(job.volume_id)}
        series = writer.series()
        annotations, nodules = rows_for_volumes(series[series["volume_id"].isin(present)], source)
        writer.write_tables(annotations, nodules, refused, _source_id(source, pseudonyms))
    finally:
        writer.close()
    if not present:
        raise NothingReadError(_nothing_read(source, refused))
    cohort = Cohort.open(writer.root)
    if config.verify and (damaged := cohort.verify()):
        raise ValueError(
            f"{len(damaged)} volume(s) of {cohort.root} are not what was prepared (first: {damaged[0]}); "
            "delete them from volumes/ and run prepare again"
        )
    n_new = len(missing) - len({one.series_uid for one in refused_jobs})
    return Prepared(cohort, n_new, len(present) - n_new, int(refused["n_files"].sum()))


def _phantom_source() -> Path:
    write_phantom(PHANTOM_SOURCE)
    return PHANTOM_SOURCE


def _read_all(jobs: list[Job], prepare_one: "partial[str]", workers: int) -> list[RefusedFile]:
    """Read every job; the files of those that are refused, with the reason."""
    refused: list[RefusedFile] = []
    with tqdm(total=sum(len(job.files) for job in jobs), desc="volumes", unit="file") as bar:
        for job, reason in run_jobs(prepare_one, jobs, workers):
            if isinstance(reason, Crashed):
                reason = "decoding ended the process that did it (a damaged file, or memory ran out)"
            if reason:
                refused += refused_series(job.files, job.series_uid, reason)
            bar.update(len(job.files))
    return refused


def _prepare_one(root: Path, pseudonyms: Pseudonyms, witness: str, job: Job) -> str:
    """Read one job and write its volume; the reason where it is refused, else ""."""
    try:
        row, volume_hu = read_dicom(job, pseudonyms, witness)
    except SeriesRefusedError as refusal:
        return refusal.reason
    write_volume(root, row, volume_hu, len(job.files))
    return ""


def _source_id(source: Path, pseudonyms: Pseudonyms) -> str:
    path = str(source.resolve()).encode(errors="surrogateescape")
    return hashlib.sha256(pseudonyms.key + path).hexdigest()[:16]


def _nothing_read(source: Path, refused: pd.DataFrame) -> str:
    if refused.empty:
        return f"{source} holds no files; name a folder that holds CT series"
    reasons = refused.groupby("reason")["n_files"].sum().sort_values(ascending=False)
    return (
        f"no CT series could be read in {source}: {int(refused['n_files'].sum())} file(s) refused, most often "
        f"because: {reasons.index[0]}"
    )


def run_prepare(config: PrepareConfig, run: "Run") -> None:
    """Prepare, and record what came of it in the MLflow run."""
    from pipelines.cli import EndWith

    try:
        prepared = prepare_cohort(config)
    except NothingReadError as error:
        raise EndWith(3, str(error)) from None
    cohort = prepared.cohort
    run.set_tags({"dinox.cohort_sha": cohort.sha256})
    run.log_metrics(
        {
            "prepare/volumes": len(cohort.series),
            "prepare/new_volumes": prepared.n_new,
            "prepare/patients": cohort.series["patient_id"].nunique(),
            "prepare/nodules": len(cohort.nodules),
            "prepare/refused_files": prepared.n_refused_files,
        }
    )
    if len(cohort.refused):
        run.log_table(cohort.refused, "tables/refused.parquet")
    print(
        f"{cohort.root}: {len(cohort.series)} volumes of {cohort.series['patient_id'].nunique()} patients "
        f"({prepared.n_new} new), {len(cohort.nodules)} nodules; {prepared.n_refused_files} files refused"
        + (" (see refused.parquet)" if len(cohort.refused) else "")
    )


if __name__ == "__main__":
    from pipelines.cli import main

    main("prepare", PrepareConfig, run_prepare)
