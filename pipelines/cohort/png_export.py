"""A cohort as 16-bit PNG slices (HU + 32768) with an index, as the Hub's form of LIDC is."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.cohort.folder import Cohort
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.parallel import run_jobs
from pipelines.runtime.progress import progress
from transforms.png_slices import ENCODING, encode_png, holds_slice

_AT_ONCE = 16


def export_png(cohort: Cohort, out: Path, workers: int = 1) -> int:
    """Write every slice of a cohort as `<volume_id>/<slice>.png`, then `index.csv`; files that hold it are kept.

    The index has the Hub's columns (png_path, series_dir, slice_index, encoding, spacing_x/y/z in mm) and, so that
    nothing is lost on the way back, the ids, the affine, the offset of each slice, and what the volume is: a patch that
    came back as a series would reveal its nodule's size by its length, and a phantom must not come back as CT.

    Returns:
        The number of slices.

    Raises:
        CohortError: If a volume cannot be read.
        RuntimeError: If a process died.
    """
    rows: list[dict[str, Any]] = []
    jobs: list[tuple[str, range]] = []
    for record in cohort.series.to_dict("records"):
        volume: dict[str, Any] = {str(name): value for name, value in record.items()}
        volume_id, n_slices, slice_indices = (
            str(volume["volume_id"]),
            int(volume["shape"][0]),
            _slice_indices(volume),
        )
        make_folder(out / volume_id)
        volume["origin"] = "" if cohort.kind == "real CT" else cohort.kind
        rows += [_index_row(volume, z, slice_indices[z], _path(volume_id, z)) for z in range(n_slices)]
        jobs += [(volume_id, range(z, min(z + _AT_ONCE, n_slices))) for z in range(0, n_slices, _AT_ONCE)]
    with progress(total=len(rows), desc="slices", unit="slice") as bar:
        for (_, slices), crashed in run_jobs(partial(_write_slices, cohort, out), jobs, workers):
            if crashed is not None:
                raise RuntimeError("a process that writes PNGs died (memory ran out?)")
            bar.update(len(slices))
    buffer = io.StringIO()
    pd.DataFrame(rows).to_csv(buffer, index=False)
    write_atomically(out / "index.csv", lambda file: file.write(buffer.getvalue().encode()))
    return len(rows)


def _write_slices(cohort: Cohort, out: Path, job: tuple[str, range]) -> None:
    volume_id, slices = job
    volume = cohort.volume(volume_id)
    for z in slices:
        path = out / _path(volume_id, z)
        # The volume may have been prepared again since, from more slices; a check is far cheaper than a write.
        if not holds_slice(path, volume[z]):
            png = encode_png(volume[z])
            write_atomically(path, lambda file, png=png: file.write(png))  # type: ignore[misc]


def _path(volume_id: str, z: int) -> Path:
    return Path(volume_id, f"{z:04d}.png")


def _slice_indices(volume: dict[str, Any]) -> list[int]:
    """Number of each slice, counting those that are missing: more than one apart wherever there is a gap."""
    steps = np.ones(int(volume["shape"][0]), dtype=int)
    steps[0] = 0
    offsets_mm = volume["slice_offsets_mm"]
    for gap in volume["gaps"]:
        step_mm = (
            offsets_mm[gap + 1] - offsets_mm[gap] if len(offsets_mm) else 0
        )  # unrelated slices have none
        steps[gap + 1] = max(2, round(step_mm / volume["spacing_mm"][0]))
    return [int(index) for index in steps.cumsum()]


def _index_row(volume: dict[str, Any], z: int, slice_index: int, png_path: Path) -> dict[str, Any]:
    spacing_z, spacing_y, spacing_x = volume["spacing_mm"]
    offsets = volume["slice_offsets_mm"]
    offset = float(offsets[z]) if len(offsets) else z * spacing_z
    return {
        "png_path": png_path.as_posix(),
        "series_dir": volume["volume_id"],
        "slice_index": slice_index,
        "encoding": ENCODING,
        "spacing_x": spacing_x,
        "spacing_y": spacing_y,
        "spacing_z": spacing_z,
        **{name: volume[name] for name in ("volume_id", "patient_id", "study_uid", "series_uid")},
        "affine_ras": " ".join(repr(float(value)) for value in volume["affine_ras"]),
        "slice_offset_mm": offset,
        **{
            name: volume[name]
            for name in ("kind", "is_lossy", "manufacturer", "kernel", "origin", "patient_key")
        },
    }
