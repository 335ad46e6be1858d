"""A cohort at a glance: of every series a middle axial and coronal slice, a few figures, and what is unusual about it.

Two slices are read of each volume, lazily. All are drawn at one scale, so that a wrong spacing shows as a wrong size.
"""

import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.cohort.folder import Cohort
from pipelines.ingest.slice_order import order_figures, spine_at_back
from pipelines.runtime.progress import progress
from transforms.body_grid import LUNG, OUTSIDE
from transforms.geometry import VolumeGeometry
from transforms.window_policy import CLINICAL_LUNG_HU

MM_PER_PX = {"series": 2.5, "patch": 0.5}
SCALE_BAR_MM = {"series": 100, "patch": 20}
MOST_PX = 260
"""A side beyond this, 650 mm of a series, is cut off: it is wrong, and noted."""
_LEAST_MARKED_PX = 24
"""A bar in less height would lie on the letters; every axial slice has one."""
_USUAL: dict[str, tuple[str, float, float]] = {
    "step_mm": ("slices {:.2g} mm apart", 0.4, 5.0),
    "steps": ("slices lie {:.2g} times their thickness apart", 0.25, 1.5),
    "pixel_mm": ("pixels of {:.2g} mm", 0.4, 1.1),
    "height_mm": ("{:.0f} mm from feet to head", 150, 550),
    "width_mm": ("{:.0f} mm from side to side", 200, 600),
    "air_hu": ("air of {:.0f} HU", -1050, -940),
    "lung_hu": ("lung of {:.0f} HU", -950, -600),
    "fat_hu": ("fat of {:.0f} HU", -135, -65),
    "lung_share": ("{:.0%} of the body is lung", 0.05, 0.75),
    "left_share": ("{:.0%} of the lung is on the left, where the heart is: mirrored?", 0.33, 0.51),
    "spine_share": (
        "bone in the middle of the front, {:.0%} of it at the back: front and back exchanged?",
        0.4,
        1,
    ),
    "order": ("neighboring slices differ {:.2g} times as much as those four apart: shuffled?", 0, 0.8),
    "jump": ("one step between slices is {:.2g} times the greatest over two: two passes?", 0, 0.9),
}
"""What a chest CT of an adult has, lowest and highest; anything else is named, and may yet be right."""
_FEW = 5
"""In fewer series nothing is what most of them have."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What is seen of one series.

    Attributes:
        row: Its row of the series table.
        axial: Gray, head-on as radiologists look: the patient's right on the left, front up.
        coronal: Likewise, head up.
        figures: See `_USUAL`; NaN where it cannot be measured.
        unusual: What lies beyond the usual, in words, by the figure's name or the note; the notes of reading first.
    """

    row: dict[str, Any]
    axial: Image.Image
    coronal: Image.Image
    figures: dict[str, float]
    unusual: dict[str, str]


def look_at_cohort(cohort: Cohort) -> Iterator[Glance]:
    """Look at every series of a cohort, one after another."""
    for row in progress(cohort.series.to_dict("records"), desc="overview", unit="series"):
        yield _look({str(name): value for name, value in row.items()}, cohort)


def in_most(seen: Sequence[Glance]) -> dict[str, str]:
    """What is unusual for a chest, but not here, since more than half of the series have it: with their number."""
    counts = Counter(name for glance in seen for name in glance.unusual)
    found = {}
    for name, count in counts.items():
        if count > len(seen) / 2 and len(seen) >= _FEW:
            values = [glance.figures[name] for glance in seen if name in glance.unusual and name in _USUAL]
            said = _USUAL[name][0].format(np.median(values)) if values else name
            found[name] = f"{count} of {len(seen)} series: {said}"
    return found


def _look(row: dict[str, Any], cohort: Cohort) -> Glance:
    volume, body = cohort.volume(row["volume_id"]), np.asarray(cohort.body(row["volume_id"]))
    # A coronal slice is a row of each axial one: reading ahead would read the whole volume.
    volume._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    geometry, kind = VolumeGeometry.from_row(row), str(row["kind"])
    z, y = len(volume) // 2, volume.shape[1] // 2
    lung = (body == LUNG).sum(axis=(1, 2))
    if lung.any():
        z = int(np.average(np.arange(len(lung)), weights=lung))  # the middle of the lungs, not of the scan
    axial, coronal = np.array(volume[z]), np.array(volume[:, y])
    volume._mmap.madvise(mmap.MADV_NORMAL)  # type: ignore[attr-defined]
    # Toward the patient's left, the back and the feet, as on a screen.
    to_left, to_back = geometry.affine_ras[0, 2] < 0, geometry.affine_ras[1, 1] < 0
    to_head = geometry.affine_ras[2, 0] > 0
    figures = _figures(row, axial, body, z, to_left)
    figures["order"], figures["jump"] = order_figures(coronal)
    if not np.isnan(
        figures["left_share"]
    ):  # Whole lungs: beside a heart full of contrast medium alone it misleads.
        figures["spine_share"] = spine_at_back(volume, body, to_back)
    axial_seen = axial[:: 1 if to_back else -1, :: 1 if to_left else -1]
    offsets = np.array(row["slice_offsets_mm"], dtype=float)
    step_mm, y_mm, x_mm = geometry.spacing_mm
    offsets = offsets if len(offsets) else np.arange(len(coronal)) * step_mm
    rows_mm = np.arange(0, min(offsets[-1] + step_mm, MOST_PX * MM_PER_PX[kind]), MM_PER_PX[kind])
    nearest = np.abs(rows_mm[:, None] - offsets).argmin(axis=1)
    evenly = np.where(
        (np.abs(rows_mm - offsets[nearest]) <= step_mm)[:, None], coronal[nearest], CLINICAL_LUNG_HU[0]
    )
    coronal_seen = evenly[:: -1 if to_head else 1, :: 1 if to_left else -1]
    unusual = {note: note for note in str(row["notes"]).split("; ") if note}
    if kind == "series":
        unusual |= {
            name: text.format(figures[name])
            for name, (text, low, high) in _USUAL.items()
            if name in figures and not low <= figures[name] <= high and not np.isnan(figures[name])
        }
    return Glance(
        row,
        _drawn(axial_seen, (y_mm, x_mm), kind),
        _drawn(coronal_seen, (MM_PER_PX[kind], x_mm), kind),
        figures,
        unusual,
    )


def _figures(
    row: dict[str, Any], axial: NDArray[np.int16], body: NDArray[np.uint8], z: int, to_left: bool
) -> dict[str, float]:
    size_mm = np.multiply([int(n) for n in row["shape"]], row["spacing_mm"])
    cells = np.kron(body[z], np.ones((-(-axial.shape[0] // 32), -(-axial.shape[1] // 32)), dtype=np.uint8))
    at_y = np.arange(axial.shape[0]) * cells.shape[0] // axial.shape[0]
    at_x = np.arange(axial.shape[1]) * cells.shape[1] // axial.shape[1]
    cell = cells[at_y[:, None], at_x]
    lung = (body == LUNG).sum(axis=(0, 1))
    columns = np.flatnonzero((body != OUTSIDE).any(axis=(0, 1)))
    middle = (columns[0] + columns[-1]) / 2 if len(columns) else 15.5
    left = lung[np.arange(32) > middle].sum() if to_left else lung[np.arange(32) < middle].sum()
    # Beside the liver there is lung on the left alone: only whole lungs tell.
    is_whole = size_mm[0] >= _USUAL["height_mm"][1] and lung.any()
    return {
        "step_mm": float(row["spacing_mm"][0]),
        "steps": float(row["spacing_mm"][0]) / float(row["slice_thickness_mm"] or "nan"),
        "pixel_mm": float(row["spacing_mm"][1]),
        "height_mm": float(size_mm[0]),
        "width_mm": float(size_mm[2]),
        # -1024 is padding, or the end of the scale.
        "air_hu": _peak(axial[cell == OUTSIDE], -1023, -700),
        "lung_hu": _median(axial[cell == LUNG]),
        "fat_hu": _peak(axial[cell != OUTSIDE], -180, -40),
        "lung_share": float(lung.sum() / max((body != OUTSIDE).sum(), 1)),
        "left_share": float(left / lung.sum()) if is_whole else float("nan"),
    }


def _median(values: NDArray[np.int16]) -> float:
    return float(np.median(values)) if values.size > 50 else float("nan")


def _peak(values: NDArray[np.int16], low: int, high: int) -> float:
    """The most frequent HU between two, over 11 HU; NaN where there is no peak, but a slope to one end."""
    counts = np.bincount(
        values[(values >= low) & (values <= high)].astype(np.int64) - low, minlength=high - low + 1
    )
    smooth = np.convolve(counts, np.ones(11), mode="valid")
    at = int(smooth.argmax())
    is_peak = counts.sum() >= 200 and 0 < at < len(smooth) - 1
    return float(at + 5 + low) if is_peak else float("nan")


def _drawn(slice_hu: NDArray[Any], pixel_mm: tuple[float, float], kind: str) -> Image.Image:
    """A slice in the lung window at the scale of its kind, with the sides of the patient and a bar of length."""
    low, high = CLINICAL_LUNG_HU
    gray = (np.clip((slice_hu.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    scale = MM_PER_PX[kind]
    height, width = (max(8, round(n * mm / scale)) for n, mm in zip(gray.shape, pixel_mm, strict=True))
    image = Image.fromarray(np.ascontiguousarray(gray)).resize((width, height), Image.Resampling.BOX)
    image = image.crop((0, 0, min(width, MOST_PX), min(height, MOST_PX)))
    draw = ImageDraw.Draw(image)
    draw.text((2, 1), "R", fill=255, stroke_width=1, stroke_fill=0)
    draw.text((image.width - 9, 1), "L", fill=255, stroke_width=1, stroke_fill=0)
    bar = round(SCALE_BAR_MM[kind] / scale)
    if image.height >= _LEAST_MARKED_PX:
        draw.rectangle((4, image.height - 6, 4 + bar, image.height - 4), fill=255, outline=0)
    return image
