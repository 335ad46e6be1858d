"""Crops around nodules together with the masks of nodule and readers on the same pixels."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort, NoNodulesError
from pipelines.cohort.meta_volume import crop_at
from pipelines.nodule.lidc_masks import NoduleMask, consensus_mask, read_mask
from transforms.geometry import VolumeGeometry
from transforms.nodule_crop import CropSpec, crop_nodule
from transforms.refusal import NoCropError

Row = Mapping[Hashable, Any]
MaskSource = Literal["contours", "discs"]


@dataclass(frozen=True)
class MaskedCrops:
    """Crops whose nodule lies near the middle, at random shifts, with masks.

    Attributes:
        kept: Rows of the given table that have a crop and a mask, (n,).
        dropped: nodule_id, reason and kind of the other rows.
        crops_hu: (n, 3, P, P) float32.
        masks: Nodule on the middle slice, (n, P, P) bool.
        reader_masks: One array (readers, P, P) bool per nodule; empty where no reader's own mark is known.
        source: `contours`: readers' outlines, the nodule is what half of them hold. `discs`: the cohort has no
            outlines; a disc of the readers' diameter replaces each.
    """

    kept: NDArray[np.int64]
    dropped: pd.DataFrame
    crops_hu: NDArray[np.float32]
    masks: NDArray[np.bool_]
    reader_masks: list[NDArray[np.bool_]]
    source: MaskSource


def masked_crops(
    cohort: Cohort, table: pd.DataFrame, spec: CropSpec, jitter_mm: float, seed: int
) -> MaskedCrops:
    """Crop nodules off center with their masks.

    The center of each crop is moved by up to `jitter_mm` in x and y: where all nodules lie in the middle, a network
        that encodes only positions would find them all.

    Args:
        cohort: Where volumes, marks and masks are.
        table: Labeled nodules.
        spec: A triplet crop.
        jitter_mm: Largest shift along x and along y.
        seed: Of the shifts, one per nodule.

    Raises:
        NoNodulesError: If no nodule has both a crop and a mask.
    """
    series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    has_masks = [read_mask(cohort.root, str(nodule_id)) is not None for nodule_id in table["nodule_id"]]
    source: MaskSource = "contours" if any(has_masks) else "discs"
    kept, crops, masks, readers = [], [], [], []
    dropped: list[tuple[Any, str, str]] = []
    for number, nodule in enumerate(table.to_dict("records")):
        row = series[str(nodule["volume_id"])]
        shift = np.random.default_rng([seed, number]).uniform(-jitter_mm, jitter_mm, 2)
        center = np.array([float(nodule[f"{axis}_lps_mm"]) for axis in "xyz"]) + np.append(shift, 0.0)
        try:
            crop = crop_at(cohort, row, center, spec).hu
        except NoCropError as error:  # moved out of a small volume
            dropped.append((nodule["nodule_id"], str(error), f"no crop beside its center ({error.kind})"))
            continue
        marks = marks_of(cohort.annotations, nodule)
        if source == "contours":
            found = read_mask(cohort.root, str(nodule["nodule_id"]))
            if found is None:
                dropped.append((nodule["nodule_id"], "no mask", "no mask"))
                continue
            own, by_reader = _outlines(found, marks, row, center, spec)
        else:
            own = disc(nodule, center, spec)
            by_reader = np.array([disc(mark, center, spec) for mark in marks], dtype=bool).reshape(
                -1, *own.shape
            )
        if not own.any():
            dropped.append((nodule["nodule_id"], off := "mask does not reach the middle slice", off))
            continue
        kept.append(number)
        crops.append(crop)
        masks.append(own)
        readers.append(by_reader)
    if not kept:
        raise NoNodulesError(
            f"none of the {len(table)} nodules of cohort {cohort.root} has a mask on its middle slice"
        )
    left_out = pd.DataFrame(dropped, columns=["nodule_id", "reason", "kind"])
    return MaskedCrops(np.array(kept), left_out, np.stack(crops), np.stack(masks), readers, source)


def disc(mark: Row, center_lps_mm: NDArray[np.float64], spec: CropSpec) -> NDArray[np.bool_]:
    """A disc of the mark's diameter at the mark's place, on the pixels of a crop around a point, (P, P)."""
    along = (np.arange(spec.out_px) - (spec.out_px - 1) / 2) * spec.mm_per_px
    # Rows run to the patient's back (y), columns to the patient's left (x).
    y = along[:, None] + center_lps_mm[1] - float(mark["y_lps_mm"])
    x = along[None, :] + center_lps_mm[0] - float(mark["x_lps_mm"])
    return np.asarray(np.hypot(x, y) <= float(mark["diameter_mm"]) / 2)


def marks_of(annotations: pd.DataFrame, nodule: Row) -> list[dict[Hashable, Any]]:
    """Return the readers' marks of one nodule; none where the cohort has no marks.

    A rule that regroups marks names them, pylidc numbers its clusters; else a mark is the nodule's if its middle lies
    within the nodule's diameter.
    """
    own = annotations[annotations["volume_id"] == nodule["volume_id"]]
    if "annotation_ids" in nodule:
        own = own[own["annotation_id"].isin(list(nodule["annotation_ids"]))]
    elif not pd.isna(nodule.get("cluster_id")):
        own = own[own["cluster_id"] == nodule["cluster_id"]]
    else:
        axes = ["x_lps_mm", "y_lps_mm", "z_lps_mm"]
        middle = [float(nodule[axis]) for axis in axes]
        away_mm = np.linalg.norm(own[axes].to_numpy(dtype=np.float64) - middle, axis=1)
        own = own[away_mm < float(nodule["diameter_mm"]) / 2]
    marks: list[dict[Hashable, Any]] = own.to_dict("records")
    return marks


def _outlines(
    nodule_mask: NoduleMask,
    marks: list[dict[Hashable, Any]],
    row: Row,
    center: NDArray[np.float64],
    spec: CropSpec,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Nodule and readers, (P, P) and (readers, P, P); a reader without this slice drew nothing there."""
    own = _crop_mask(nodule_mask, row, center, spec)
    by_reader = []
    for mark in marks:
        drawn = consensus_mask([int(mark["annotation_id"])], VolumeGeometry.from_row(row))
        by_reader.append(np.zeros_like(own) if drawn is None else _crop_mask(drawn, row, center, spec))
    return own, np.stack(by_reader) if by_reader else np.empty((0, *own.shape), dtype=bool)


def _crop_mask(mask: NoduleMask, row: Row, center: NDArray[np.float64], spec: CropSpec) -> NDArray[np.bool_]:
    # Only the pages that the mask touches are ever made; the rest of the volume is zeros that are never written.
    geometry = VolumeGeometry.from_row(row)
    whole = np.zeros(geometry.shape, dtype=np.int16)
    stop = np.minimum(mask.start_zyx + mask.mask.shape, whole.shape)
    z, y, x = (slice(int(low), int(high)) for low, high in zip(mask.start_zyx, stop, strict=True))
    inside = whole[z, y, x]
    inside[:] = mask.mask[: inside.shape[0], : inside.shape[1], : inside.shape[2]]
    return np.asarray(crop_nodule(whole, geometry, center, spec).hu[1] > 0.5)
