"""PNG slices with an index as a source: the Hub's form of LIDC-IDRI, and what `export_png` writes.

The index is a CSV with png_path, series_dir, slice_index, encoding, spacing_x, spacing_y, spacing_z (mm). Our own
export adds ids, `affine_ras` and `slice_offset_mm`, without which the place in the patient is not known; and `kind`,
`is_lossy`, `manufacturer` and `kernel`, without which a volume is taken as a series with these unknown; `origin`, which
says of a phantom that it is one; `patient_key`, under which pseudonyms were made.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import CohortKind
from pipelines.cohort.pseudonyms import REPLACED, Pseudonyms, is_fingerprint, lidc_scans
from pipelines.cohort.tables import is_volume_id
from pipelines.ingest.sources.found import Found, Job, SourceError
from pipelines.runtime.paths import OutsideError, inside
from transforms.geometry import spacing_of
from transforms.png_slices import OFFSET, read_png_slices
from transforms.refusal import RefusedFile, SeriesRefusedError, TransformError, refuse_if

NEEDED = ("png_path", "series_dir", "slice_index", "encoding", "spacing_x", "spacing_y", "spacing_z")
N = TypeVar("N", int, float)
_UID = re.compile(r"[0-9]+(\.[0-9]+){3,}")


@dataclass(frozen=True)
class PngJob(Job):
    """Slices of one series in order, with their entries of the index."""

    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    study_uid: str = ""
    slice_indices: tuple[int, ...] = ()
    affine_ras: tuple[float, ...] = ()
    slice_offsets_mm: tuple[float, ...] = ()
    kind: str = "series"
    is_lossy: bool = False
    manufacturer: str = ""
    kernel: str = ""
    origin: str = ""


def find_png(source: Path, pseudonyms: Pseudonyms) -> Found:
    """Read the index of a folder of PNGs and group its rows into series.

    Raises:
        SourceError: If there is no index, or it lacks a column.
    """
    index_path, index = _read_index(source)
    found = Found()
    for series_dir, rows in index.groupby("series_dir", sort=True):
        files = [index_path.parent / name for name in rows["png_path"]]
        try:
            found.jobs.append(_job(str(series_dir), rows, index_path.parent, pseudonyms))
        except SeriesRefusedError as refusal:
            found.refused += [RefusedFile(path, refusal.series_uid, refusal.reason) for path in files]
    _refuse_shared_ids(found)
    return found


def _refuse_shared_ids(found: Found) -> None:
    """Refuse series with the same id, which would overwrite each other."""
    counts = Counter(job.volume_id for job in found.jobs)
    for job in found.jobs:
        if counts[job.volume_id] > 1:
            reason = f"the index gives one id to {counts[job.volume_id]} values of series_dir"
            found.refused += [RefusedFile(path, job.series_uid, reason) for path in job.files]
    found.jobs = [job for job in found.jobs if counts[job.volume_id] == 1]


def has_png_index(source: Path) -> bool:
    """Whether a CSV there is an index of PNG slices."""
    try:
        _read_index(source)
    except SourceError:
        return False
    return True


def _read_index(source: Path) -> tuple[Path, pd.DataFrame]:
    candidates = [source] if source.is_file() else sorted(source.rglob("*.csv"))
    for path in candidates:
        try:
            index = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError):
            continue  # not an index
        if set(NEEDED) <= set(index.columns):
            return path, index
    raise SourceError(
        f"{source} holds no index of PNG slices: a CSV with the columns {', '.join(NEEDED)} is needed beside them"
    )


def _job(series_dir: str, rows: pd.DataFrame, root: Path, pseudonyms: Pseudonyms) -> PngJob:
    name = Path(series_dir).name
    series_uid = _only(rows, "series_uid") if "series_uid" in rows else name if _UID.fullmatch(name) else ""
    try:
        return _checked_job(series_dir, series_uid, rows, root, pseudonyms)
    except SeriesRefusedError as refusal:
        raise SeriesRefusedError(refusal.reason, series_uid) from None


def _checked_job(
    series_dir: str, series_uid: str, rows: pd.DataFrame, root: Path, pseudonyms: Pseudonyms
) -> PngJob:
    refuse_if(
        any(str(OFFSET) not in encoding for encoding in rows["encoding"] if encoding),
        f"the index names another encoding than HU + {OFFSET}",
    )
    rows = rows.assign(number=_numbers(rows["slice_index"], int)).sort_values("number", kind="stable")
    refuse_if(rows["number"].duplicated().any(), "slice_index names one slice twice")
    spacing = _numbers((_only(rows, f"spacing_{axis}") for axis in "zyx"), float)
    refuse_if(
        not all(math.isfinite(value) and value > 0 for value in spacing),
        "spacing_x, spacing_y or spacing_z is not a length above zero",
    )
    _refuse_outside(rows["png_path"], root)
    affine = _numbers(_only(rows, "affine_ras").split(), float)
    refuse_if(
        affine and not _has_spacing(affine, spacing),
        "affine_ras is not 16 numbers that agree with the spacing",
    )
    kind, is_lossy = _only(rows, "kind") or "series", _only(rows, "is_lossy") or "False"
    refuse_if(
        kind not in ("series", "patch") or is_lossy not in ("False", "True"),
        "kind is neither series nor patch, or is_lossy neither True nor False",
    )
    named, key = _only(rows, "patient_id"), _only(rows, "patient_key")
    patient = pseudonyms.patient(named, series_dir, series_uid)
    # A pseudonym that was exported stays, with its key.
    if not (patient == named and REPLACED.fullmatch(named) and is_fingerprint(key)):
        key = pseudonyms.key_of(named, patient)
    origin = _only(rows, "origin")
    shown = pseudonyms.name(series_dir)
    stored_uid = pseudonyms.uid("series", series_uid)
    given_id = _only(rows, "volume_id")
    volume_id = pseudonyms.volume_id(given_id) if given_id else stored_uid
    refuse_if(
        volume_id and not is_volume_id(volume_id),
        "volume_id or series_uid is no id: letters, digits, dots, dashes and underscores, 200 at most",
    )
    study_uid = lidc_scans()[series_uid][1] if series_uid in lidc_scans() else _only(rows, "study_uid")
    return PngJob(
        volume_id=volume_id or (shown if is_volume_id(shown) else pseudonyms.hashed_name(series_dir)),
        files=tuple(root / path for path in rows["png_path"]),
        series_uid=stored_uid,
        patient_id=patient,
        patient_key=key,
        origin=origin if origin in get_args(CohortKind) else "",
        spacing_mm=spacing,  # type: ignore[arg-type]
        study_uid=pseudonyms.uid("study", study_uid),
        slice_indices=tuple(rows["number"]),
        affine_ras=affine,
        slice_offsets_mm=_numbers((v for v in rows.get("slice_offset_mm", ()) if v), float),
        kind=kind,
        is_lossy=is_lossy == "True",
        manufacturer=_only(rows, "manufacturer"),
        kernel=_only(rows, "kernel"),
    )


def _refuse_outside(paths: Iterable[str], root: Path) -> None:
    reason = "png_path leads out of the folder of the index"
    try:
        for path in paths:
            refuse_if(".." in Path(path).parts, reason)
            inside(root, root / path)
    except (OutsideError, ValueError):  # ValueError: a zero byte.
        raise SeriesRefusedError(reason) from None


def _numbers(texts: Iterable[str], kind: Callable[[str], N]) -> tuple[N, ...]:
    try:
        return tuple(kind(text) for text in texts)
    except (ValueError, OverflowError):
        raise SeriesRefusedError("the index holds text where numbers are required") from None


def _has_spacing(affine: tuple[float, ...], spacing_mm: tuple[float, ...]) -> bool:
    try:
        return np.allclose(spacing_of(affine), spacing_mm, rtol=1e-4)
    except TransformError:
        return False


def _only(rows: pd.DataFrame, column: str) -> str:
    """The one value of a column within a series; "" where there is no such column."""
    values = rows[column].unique() if column in rows else [""]
    refuse_if(len(values) != 1, f"the index gives the slices of one series {len(values)} values of {column}")
    return str(values[0])


def read_png_job(job: PngJob) -> tuple[dict[str, Any], NDArray[np.int16]]:
    """Read the slices of one series. The ids are as `find_png` made them.

    Raises:
        SeriesRefusedError: If they are not HU + 32768, or not one volume.
    """
    refuse_if(len(job.files) < 2, "the series is one slice: a volume needs two")
    volume_hu = read_png_slices(job.files)
    steps = np.diff(job.slice_indices)
    gaps = [int(i) for i in np.flatnonzero(steps > 1)]
    offsets = list(job.slice_offsets_mm) if gaps else []
    if gaps and len(offsets) != len(job.files):
        offsets = [float(number - job.slice_indices[0]) * job.spacing_mm[0] for number in job.slice_indices]
    refuse_if(
        not (np.isfinite(offsets).all() and (np.diff(offsets) > 0).all()),
        "slice_offset_mm does not rise from slice to slice",
    )
    is_placed = bool(job.affine_ras)
    affine = job.affine_ras if is_placed else _affine_at_origin(job.spacing_mm)
    row = {
        "volume_id": job.volume_id,
        "patient_id": job.patient_id,
        "patient_key": job.patient_key,
        "study_uid": job.study_uid,
        "series_uid": job.series_uid,
        "spacing_mm": list(job.spacing_mm),
        "affine_ras": list(affine),
        "gaps": gaps,
        "slice_offsets_mm": offsets,
        "manufacturer": job.manufacturer,
        "kernel": job.kernel,
        "slice_thickness_mm": None,
        "transfer_syntax": "",
        "is_lossy": job.is_lossy,
        "n_padding_voxels": 0,
        "kind": job.kind,
        "origin": job.origin,
        "notes": "" if is_placed else NOT_PLACED,
    }
    return row, volume_hu


NOT_PLACED = "the index has no position: millimeters count from the first voxel, slices follow slice_index"


def _affine_at_origin(spacing_mm: tuple[float, float, float]) -> tuple[float, ...]:
    z, y, x = spacing_mm
    return (0, 0, -x, 0, 0, -y, 0, 0, z, 0, 0, 0, 0, 0, 0, 1)
