"""Crops and cubes around nodules together with the masks of nodule and readers on the same pixels."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort, NoNodulesError
from pipelines.cohort.meta_volume import crop_at
from pipelines.nodule.labeled import center_of
from pipelines.nodule.lidc_masks import NoduleMask, consensus_mask, read_mask
from transforms.geometry import VolumeGeometry
from transforms.nodule_crop import CropSpec, crop_nodule
from transforms.nodule_cube import CubeSpec, cut_cube
from transforms.refusal import NoCropError

Row = Mapping[Hashable, Any]
MaskSource = Literal["contours", "discs", "balls"]
Spec = CropSpec | CubeSpec


@dataclass(frozen=True)
class MaskedCrops:
    """Crops whose nodule lies near the middle, at random shifts, with masks.

    Attributes:
        kept: Rows of the given table that have a crop and a mask, (n,).
        dropped: nodule_id, reason and kind of the other rows.
        crops_hu: (n, 3, P, P) float32, or cubes (n, D, P, P).
        masks: Nodule on the middle slice, (n, P, P) bool, or in the cube, (n, D, P, P).
        reader_masks: One array (readers, P, P) or (readers, D, P, P) bool per nodule; empty where no reader's own mark
            is known.
        source: `contours`: readers' outlines, the nodule is what half of them hold. `discs`, and of cubes `balls`: the
            cohort has no outlines; a disc or ball of the readers' diameter replaces each.
    """

    kept: NDArray[np.int64]
    dropped: pd.DataFrame
    crops_hu: NDArray[np.float32]
    masks: NDArray[np.bool_]
    reader_masks: list[NDArray[np.bool_]]
    source: MaskSource


def masked_crops(cohort: Cohort, table: pd.DataFrame, spec: Spec, jitter_mm: float, seed: int) -> MaskedCrops:
    """Crop nodules off center with their masks.

    The center of each crop is moved by up to `jitter_mm` in x and y, of each cube in z too: where all nodules lie in
    the middle, a network that encodes only positions would find them all.

    Args:
        cohort: Where volumes, marks and masks are.
        table: Labeled nodules.
        spec: A triplet crop, or a cube.
        jitter_mm: Largest shift along x and along y.
        seed: Of the shifts, one per nodule.

    Raises:
        NoNodulesError: If no nodule has both a crop and a mask.
    """
    series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    has_masks = [read_mask(cohort.root, str(nodule_id)) is not None for nodule_id in table["nodule_id"]]
    is_3d = isinstance(spec, CubeSpec)
    source: MaskSource = "contours" if any(has_masks) else "balls" if is_3d else "discs"
    kept, crops, masks, readers = [], [], [], []
    dropped: list[tuple[Any, str, str]] = []
    for number, nodule in enumerate(table.to_dict("records")):
        row = series[str(nodule["volume_id"])]
        shift = np.zeros(3)
        shift[: 3 if is_3d else 2] = np.random.default_rng([seed, number]).uniform(
            -jitter_mm, jitter_mm, 3 if is_3d else 2
        )
        center = np.array(center_of(nodule)) + shift
        try:
            crop = _cut(cohort, row, center, spec)
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
            off = f"mask does not reach the {'cube' if is_3d else 'middle slice'}"
            dropped.append((nodule["nodule_id"], off, off))
            continue
        kept.append(number)
        crops.append(crop)
        masks.append(own)
        readers.append(by_reader)
    if not kept:
        where = "in its cube" if is_3d else "on its middle slice"
        raise NoNodulesError(f"no mask {where} for any nodule ({len(table)}) of cohort {cohort.root}")
    left_out = pd.DataFrame(dropped, columns=["nodule_id", "reason", "kind"])
    return MaskedCrops(np.array(kept), left_out, np.stack(crops), np.stack(masks), readers, source)


def disc(mark: Row, center_lps_mm: NDArray[np.float64], spec: Spec) -> NDArray[np.bool_]:
    """A disc of the mark's diameter at the mark's place, on the pixels of a crop around a point, (P, P).

    In a cube, whose axes run to the head, the back and the patient's left, a ball, (D, P, P).
    """
    if isinstance(spec, CubeSpec):
        sides = list(zip("zyx", spec.shape, spec.spacing_mm, strict=True))
    else:
        sides = [(axis, spec.out_px, spec.mm_per_px) for axis in "yx"]
    away = [
        (np.arange(n) - (n - 1) / 2) * mm + center_lps_mm["xyz".index(axis)] - float(mark[f"{axis}_lps_mm"])
        for axis, n, mm in sides
    ]
    distance_mm = reduce(np.hypot, np.meshgrid(*away, indexing="ij"))
    return np.asarray(distance_mm <= float(mark["diameter_mm"]) / 2)


def _cut(cohort: Cohort, row: Row, center: NDArray[np.float64], spec: Spec) -> NDArray[np.float32]:
    if not isinstance(spec, CubeSpec):
        return crop_at(cohort, row, center, spec).hu
    if row["kind"] == "patch":
        raise NoCropError(
            "patch as long as its nodule",
            "its volume is a patch as long as the nodule, so that its ends show where the mask ends; cubes with masks"
            " need whole series",
        )
    return cut_cube(cohort.volume(str(row["volume_id"])), VolumeGeometry.from_row(row), center, spec, False)


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
    spec: Spec,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Nodule and readers, such as (P, P) and (readers, P, P); a reader without this slice drew nothing there."""
    own = _crop_mask(nodule_mask, row, center, spec)
    by_reader = []
    for mark in marks:
        drawn = consensus_mask([int(mark["annotation_id"])], VolumeGeometry.from_row(row))
        by_reader.append(np.zeros_like(own) if drawn is None else _crop_mask(drawn, row, center, spec))
    return own, np.stack(by_reader) if by_reader else np.empty((0, *own.shape), dtype=bool)


def _crop_mask(mask: NoduleMask, row: Row, center: NDArray[np.float64], spec: Spec) -> NDArray[np.bool_]:
    # Only the pages that the mask touches are ever made; the rest of the volume is zeros that are never written.
    geometry = VolumeGeometry.from_row(row)
    whole = np.zeros(geometry.shape, dtype=np.int16)
    stop = np.minimum(mask.start_zyx + mask.mask.shape, whole.shape)
    z, y, x = (slice(int(low), int(high)) for low, high in zip(mask.start_zyx, stop, strict=True))
    inside = whole[z, y, x]
    inside[:] = mask.mask[: inside.shape[0], : inside.shape[1], : inside.shape[2]]
    if isinstance(spec, CubeSpec):
        return np.asarray(cut_cube(whole, geometry, center, spec, False) > 0.5)
    return np.asarray(crop_nodule(whole, geometry, center, spec).hu[1] > 0.5)
