"""A cohort as 16-bit PNG slices (HU + 32768) with an index, as the Hub's form of LIDC is."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.cohort.folder import Cohort
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.progress import progress
from transforms.png_slices import ENCODING, encode_png, holds_slice


def export_png(cohort: Cohort, out: Path) -> int:
    """Write every slice of a cohort as `<volume_id>/<slice>.png`, then `index.csv`; files that hold it are kept.

    The index has the Hub's columns (png_path, series_dir, slice_index, encoding, spacing_x/y/z in mm) and, so that
    nothing is lost on the way back, the ids, the affine, the offset of each slice, and what the volume is: a patch that
        came back as a series would reveal its nodule's size by its length.

    Returns:
        The number of slices.
    """
    rows: list[dict[str, Any]] = []
    n_slices = sum(int(shape[0]) for shape in cohort.series["shape"])
    with progress(total=n_slices, desc="slices", unit="slice") as bar:
        for record in cohort.series.to_dict("records"):
            volume: dict[str, Any] = {str(name): value for name, value in record.items()}
            folder = out / volume["volume_id"]
            make_folder(folder)
            slice_indices = _slice_indices(volume)
            for z, slice_hu in enumerate(cohort.volume(volume["volume_id"])):
                path = folder / f"{z:04d}.png"
                # The volume may have been prepared again since, from more slices; a check is far cheaper than a write.
                if not holds_slice(path, slice_hu):
                    png = encode_png(slice_hu)
                    write_atomically(path, lambda file, png=png: file.write(png))  # type: ignore[misc]
                rows.append(_index_row(volume, z, slice_indices[z], path.relative_to(out)))
                bar.update()
    buffer = io.StringIO()
    pd.DataFrame(rows).to_csv(buffer, index=False)
    write_atomically(out / "index.csv", lambda file: file.write(buffer.getvalue().encode()))
    return n_slices


def _slice_indices(volume: dict[str, Any]) -> list[int]:
    """Number of each slice, counting those that are missing: more than one apart wherever there is a gap."""
    steps = np.ones(int(volume["shape"][0]), dtype=int)
    steps[0] = 0
    for gap in volume["gaps"]:
        step_mm = volume["slice_offsets_mm"][gap + 1] - volume["slice_offsets_mm"][gap]
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
        **{name: volume[name] for name in ("kind", "is_lossy", "manufacturer", "kernel")},
    }
