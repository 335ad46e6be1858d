"""The labeled nodules of a cohort and their crops: what every nodule probe starts from."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import Cohort, NoNodulesError
from pipelines.cohort.meta_volume import crop_at
from probes.label_rules import LabelRule
from probes.labels import Labeled, LabelError, label_nodules, without_labels
from probes.scoring import has_most
from transforms.geometry import VolumeGeometry
from transforms.nodule_crop import Crop, CropSpec
from transforms.nodule_sampling import BORDER_HU, place, sample_windows
from transforms.refusal import NoCropError, number_of

AIR_AND_LUNG_HU = -700.0
"""None of 740 nodules of LIDC is darker at its center; of places in a lung mirrored from LPS to RAS, 29% are."""

Row = Mapping[Hashable, Any]
T = TypeVar("T", np.float32, np.float64)


@dataclass(frozen=True)
class NoduleSet:
    """Labeled nodules with a crop each.

    Attributes:
        table: One row a nodule: the nodule table with `is_malignant`, `manufacturer` and `spacing_z_mm` of its series,
            and `center_hu`, the brightest HU within 2 mm of its center on its slice.
        crops_hu: (n, 3, P, P) float32, or (n, S, 3, P, P) for the form `slices`: S is that of the finest slices, and
            nodules on coarser ones end in padding.
        is_replicated: Whether a slice was repeated in place of a missing neighbor, (n,).
        mm_per_px: Pixel size of each crop, (n,).
        dropped: nodule_id, reason and kind (the reason without numbers) of each nodule that the rule considered and
            that has no row in `table`.
        labeled: The result of the rule.
        place_mm: For the form `slices`, how far above the nodule's center each slice lies, (n, S): NaN where there is
            none (padding, or beyond an end of the volume or a gap, where the crop repeats the last slice). How many
            there are follows from the range, the spacing and the volume, never from the nodule. Else None.
    """

    table: pd.DataFrame
    crops_hu: NDArray[np.float32]
    is_replicated: NDArray[np.bool_]
    mm_per_px: NDArray[np.float64]
    dropped: pd.DataFrame
    labeled: Labeled
    place_mm: NDArray[np.float64] | None = None

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
        """Whether the diameters of at least half of the nodules are known: without, no row has a diameter."""
        return has_most(self.diameter_mm)


def nodule_set(
    cohort: Cohort,
    rule: LabelRule,
    spec: CropSpec,
    whole_slice: bool = False,
    diagnosis: pd.DataFrame | None = None,
    labels_needed: bool = True,
) -> NoduleSet:
    """Label the nodules of a cohort and crop each; rows in = rows kept + rows dropped.

    Args:
        cohort: Where volumes and nodules are.
        rule: Label rule.
        spec: What to cut.
        whole_slice: Take the whole slice through the nodule instead, resized to the crop's pixels, as the article did.
        diagnosis: TCIA's table for the rule `tcia_diagnosis`.
        labels_needed: If not, all nodules are taken where the rule does not apply or leaves none.

    Raises:
        NoNodulesError: If the cohort has no nodule, or none that has a label can be cropped.
        LabelError: If a label is needed, and the rule does not apply.
    """
    if cohort.nodules.empty:
        remedy = "prepare it with series of LIDC-IDRI, or with -P annotations=FILE.csv"
        raise NoNodulesError(f"cohort {cohort.root} has no nodules; {remedy}")
    labeled = _labels(cohort, rule, diagnosis, labels_needed)
    series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    kept: list[dict[Hashable, Any]] = []
    crops: list[Crop] = []
    scales: list[float] = []
    refused: list[tuple[str, str, str]] = []
    for nodule in labeled.nodules.to_dict("records"):
        row = series.get(str(nodule["volume_id"]))
        try:
            if row is None:
                raise NoCropError("series not in the cohort", "its series is not in the cohort")
            own = _slice_spec(row, spec) if whole_slice else spec
            center_hu = _center_hu(cohort, row, nodule)
            crops.append(_crop(cohort, row, nodule, own, whole_slice))
        except NoCropError as error:
            refused.append((str(nodule["nodule_id"]), str(error), f"no crop ({error.kind})"))
            continue
        kept.append(nodule | _of_series(row, nodule) | {"center_hu": center_hu})
        scales.append(own.mm_per_px)
    unlabeled = labeled.dropped.assign(kind=labeled.dropped["reason"])
    dropped = pd.concat([unlabeled, pd.DataFrame(refused, columns=list(unlabeled))], ignore_index=True)
    Accounting.of("nodules", labeled.counts.n_given, "cropped", len(kept), dropped["kind"])
    if not kept:
        reason = f": {dropped['reason'].iloc[-1]}" if len(dropped) else ""
        raise NoNodulesError(f"rule '{rule}' and these crops leave no nodule of cohort {cohort.root}{reason}")
    return NoduleSet(
        table=pd.DataFrame(kept),
        crops_hu=_stacked([crop.hu for crop in crops], BORDER_HU),
        is_replicated=np.array([crop.is_replicated for crop in crops]),
        mm_per_px=np.array(scales),
        dropped=dropped,
        labeled=labeled,
        place_mm=_all_places_mm(kept, series, crops) if spec.form == "slices" else None,
    )


def _labels(cohort: Cohort, rule: LabelRule, diagnosis: pd.DataFrame | None, labels_needed: bool) -> Labeled:
    try:
        labeled = label_nodules(rule, cohort.annotations, cohort.nodules, diagnosis)
    except LabelError:
        if labels_needed:
            raise
    else:
        if labels_needed or len(labeled.nodules):
            return labeled
    return without_labels(cohort.nodules)


def warn_of_doubtful_places(nodules: NoduleSet) -> None:
    """Print the first labeled nodule that has no crop, and how many show no nodule at their center."""
    n, refused = len(nodules.labels), nodules.dropped.iloc[len(nodules.labeled.dropped) :]
    if len(refused):
        print(
            f"no crop of {number_of(len(refused), 'labeled nodule')}; of the first {refused['reason'].iloc[0]}"
        )
    n_dark = int((nodules.table["center_hu"] < AIR_AND_LUNG_HU).sum())
    if n_dark > 0.05 * n:
        print(
            f"{n_dark} of {n} nodules show nothing above {AIR_AND_LUNG_HU:.0f} HU within 2 mm of their center: are"
            " their places x, y, z in LPS millimeters (not RAS, not voxels)?"
        )


def center_of(nodule: Row) -> list[float]:
    """The center of a nodule, LPS mm."""
    return [float(nodule[f"{axis}_lps_mm"]) for axis in "xyz"]


def places_mm(
    row: Row, center_lps_mm: Sequence[float], n_slices: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how far above the nodule's center each slice lies, and whether the volume has it, (n_slices,) each.

    Args:
        row: Of series.parquet.
        center_lps_mm: Of the nodule.
        n_slices: Odd: the slice nearest to the center and as many on either side.
    """
    geometry = VolumeGeometry.from_row(row)
    z = float(geometry.to_index(center_lps_mm)[0])
    middle = int(np.floor(z + 0.5))
    wanted = np.arange(n_slices) - n_slices // 2 + middle
    low, high = geometry.unbroken_run(middle)
    place_mm = (wanted - z) * geometry.spacing_mm[0]
    return place_mm.astype(np.float64), (wanted >= low) & (wanted <= high)


def _all_places_mm(
    kept: Sequence[Row], series: Mapping[str, Row], crops: Sequence[Crop]
) -> NDArray[np.float64]:
    places = []
    for nodule, crop in zip(kept, crops, strict=True):
        place_mm, is_there = places_mm(series[str(nodule["volume_id"])], center_of(nodule), len(crop.hu))
        places.append(np.where(is_there, place_mm, np.nan))
    return _stacked(places, np.nan)


def _stacked(arrays: list[NDArray[T]], padding: float) -> NDArray[T]:
    """Arrays that differ in their first axis as one, (n, longest, ...); the shorter ones end in padding."""
    longest = max(len(array) for array in arrays)
    stacked = np.full((len(arrays), longest, *arrays[0].shape[1:]), padding, dtype=arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


def _of_series(row: Row, nodule: Row) -> dict[Hashable, Any]:
    # A nodule table may state the scanner of a volume without a header, such as a NIfTI patch.
    manufacturer = row["manufacturer"] or nodule.get("manufacturer") or ""
    return {"manufacturer": manufacturer, "spacing_z_mm": float(row["spacing_mm"][0])}


def _slice_spec(row: Row, spec: CropSpec) -> CropSpec:
    if row["kind"] == "patch":
        raise NoCropError(
            "patch without a whole slice",
            "its volume is a patch cut around the nodule; whole slices need whole series",
        )
    sides = [
        float(n) * float(s) for n, s in zip(list(row["shape"])[1:], list(row["spacing_mm"])[1:], strict=True)
    ]
    return replace(spec, size_mm=max(sides))


def _center_hu(cohort: Cohort, row: Row, nodule: Row) -> float:
    """The brightest HU within 2 mm of the nodule's center on its slice. NoCropError if the volume does not hold it."""
    at = place(VolumeGeometry.from_row(row), center_of(nodule))
    window = sample_windows(cohort.volume(str(row["volume_id"])), at, [at.slice_index], 4.0, 8)
    return float(window.max())


def _crop(cohort: Cohort, row: Row, nodule: Row, spec: CropSpec, whole_slice: bool) -> Crop:
    center = np.array(center_of(nodule))
    if whole_slice:
        geometry = VolumeGeometry.from_row(row)
        z = geometry.to_index(center)[0]
        center = geometry.to_lps([z, *((n - 1) / 2 for n in geometry.shape[1:])])
    return crop_at(cohort, row, center, spec, float(nodule["diameter_mm"]))
