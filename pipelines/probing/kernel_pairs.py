"""Acquisitions that were reconstructed twice, with two convolution kernels: how far does the kernel move features?

A cohort holds no acquisition number. One acquisition is recognized by patient, study and slice positions, and then by
the image: a kernel changes noise and edges and leaves the mean HU of 8 mm as it is, another breath or phase of contrast
does not.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.cohort.meta_volume import crop_at
from probes.representation import patient_distance
from probes.statistics.bootstrap import mean_with_interval
from probes.statistics.estimate import Estimate
from transforms.body_grid import GRID, LUNG
from transforms.geometry import VolumeGeometry
from transforms.nodule_crop import CropSpec
from transforms.refusal import NoCropError, number_of

ENOUGH_PATIENTS = 5
"""Fewer give no interval over patients, and nothing is concluded from them."""
SLICES_EACH = 16
OTHER_PATIENTS = 64
"""Most patients without a pair that the distance between patients counts."""
SAME_PLACE_MM = 0.1
BLOCK_MM = 8.0
OTHER_IMAGE_HU = 40.0
"""Median difference of block means above which two images are not of one acquisition."""

Row = Mapping[Hashable, Any]
Crops = NDArray[np.float32]
Place = tuple[Row, list[float]]
"""The row of a volume in series.parquet, and a point in it, LPS mm."""


class LungCrops(NamedTuple):
    """What an encoder is shown: crops, or the places that cubes are cut around."""

    hu: Crops  # (n, 3, P, P)
    places: list[Place]


@dataclass(frozen=True)
class PairCrops:
    """Crops of lung at the same places in two reconstructions of one acquisition.

    Attributes:
        first: n crops.
        second: Of the other kernel, same places.
        beside: Of the first kernel, one slice closer to the head.
        patient_ids: (n,).
        others: m crops of one reconstruction of further patients.
        other_ids: Their patients, (m,).
        kernels: Names of the two kernels, such as "B and L", each once.
        n_other_images: Pairs left out because their images are not of one acquisition.
    """

    first: LungCrops
    second: LungCrops
    beside: LungCrops
    patient_ids: NDArray[np.str_]
    others: LungCrops
    other_ids: NDArray[np.str_]
    kernels: tuple[str, ...]
    n_other_images: int

    @property
    def n_patients(self) -> int:
        """Number of patients with a pair."""
        return len(np.unique(self.patient_ids))


def pairs_of(series: pd.DataFrame) -> list[tuple[Row, Row]]:
    """Return rows of series.parquet that are two reconstructions: one study, the same slices, two known kernels."""
    known = series[(series["kernel"] != "") & (series["kind"] == "series")].sort_values(
        ["kernel", "volume_id"]
    )
    found: list[tuple[Row, Row]] = []
    taken: set[str] = set()
    for _, study in known.groupby(["patient_id", "study_uid"], sort=True):
        for one, other in combinations(study.to_dict("records"), 2):
            ids = {str(one["volume_id"]), str(other["volume_id"])}
            if not ids & taken and one["kernel"] != other["kernel"] and len(shared_slices(one, other)):
                found.append((one, other))
                taken |= ids
    return found


def shared_slices(one: Row, other: Row) -> NDArray[np.int64]:
    """Return the slices of one volume at whose positions another has a slice too, as indices, ascending.

    Empty if the slices of the two are not equally far apart or not parallel.
    """
    own, its = VolumeGeometry.from_row(one), VolumeGeometry.from_row(other)
    if not np.allclose(own.affine_ras[:3, 0], its.affine_ras[:3, 0], atol=1e-3):
        return np.empty(0, dtype=np.int64)
    depth, height, width = own.shape
    middles = [[z, (height - 1) / 2, (width - 1) / 2] for z in range(depth)]
    index = its.to_index(own.to_lps(middles))
    is_there = np.abs(index[:, 0] - np.rint(index[:, 0])) * its.spacing_mm[0] < SAME_PLACE_MM
    return np.flatnonzero(is_there & (index > -0.5).all(1) & (index < np.array(its.shape) - 0.5).all(1))


def pair_crops(
    cohort: Cohort,
    patients: set[str],
    spec: CropSpec,
    seed: int = 0,
    is_readable: Callable[[Place], bool] = lambda place: True,
) -> PairCrops | None:
    """Crop the pairs of some patients, and one volume of each of the others; None where there is no pair.

    Up to 16 slices a volume, spread evenly, at a random place in the lung that is the same in both reconstructions.

    Args:
        cohort: What they are cropped from.
        patients: Whose pairs are asked for.
        spec: Of the crops.
        seed: Of the places.
        is_readable: Whether an encoder can be shown a place; places that it cannot are passed over.
    """
    series = cohort.series[cohort.series["patient_id"].isin(sorted(patients))]
    generator = np.random.default_rng(seed)

    def crops_of(*wanted: tuple[Row, int], slices: NDArray[np.int64]) -> list[LungCrops]:
        found = list(_at_lung(cohort, wanted, slices, spec, generator, is_readable))
        return [_joined(part) for part in zip(*found, strict=True)]

    parts: list[list[LungCrops]] = [[], [], []]
    owners: list[str] = []
    kernels: set[str] = set()
    n_other_images = 0
    for one, other in pairs_of(series):
        three = crops_of((one, 0), (other, 0), (one, 1), slices=shared_slices(one, other))
        if three and _median_difference_hu(three[0].hu, three[1].hu, spec) > OTHER_IMAGE_HU:
            n_other_images += 1
        elif three:
            for part, crops in zip(parts, three, strict=True):
                part.append(crops)
            owners += [str(one["patient_id"])] * len(three[0].hu)
            kernels.add(f"{one['kernel']} and {other['kernel']}")
    if not owners:
        return None
    further = series[(series["kind"] == "series") & ~series["patient_id"].isin(owners)]
    others: list[LungCrops] = []
    other_ids: list[str] = []
    for row in further.drop_duplicates("patient_id").head(OTHER_PATIENTS).to_dict("records"):
        for own in crops_of((row, 0), slices=np.arange(int(row["shape"][0]))):
            others.append(own)
            other_ids += [str(row["patient_id"])] * len(own.hu)
    first, second, beside = (_joined(part) for part in parts)
    return PairCrops(
        first,
        second,
        beside,
        np.array(owners, dtype=np.str_),
        _joined(others) if others else LungCrops(first.hu[:0], []),
        np.array(other_ids, dtype=np.str_),
        tuple(sorted(kernels)),
        n_other_images,
    )


def _joined(parts: Sequence[LungCrops]) -> LungCrops:
    return LungCrops(
        np.concatenate([one.hu for one in parts]), [place for one in parts for place in one.places]
    )


def _at_lung(
    cohort: Cohort,
    wanted: Sequence[tuple[Row, int]],
    slices: NDArray[np.int64],
    spec: CropSpec,
    generator: np.random.Generator,
    is_readable: Callable[[Place], bool],
) -> Iterator[tuple[LungCrops, ...]]:
    """Yield single crops of volumes, each some slices higher, around a place in the lung of the first volume.

    Slices without lung, and places where a crop is missing or repeats a slice, are passed over.
    """
    row = wanted[0][0]
    geometry, grid = VolumeGeometry.from_row(row), cohort.body(str(row["volume_id"]))
    with_lung = [z for z in slices.tolist() if (grid[z] == LUNG).any()]
    chosen = np.unique(np.linspace(0, len(with_lung) - 1, min(SLICES_EACH, len(with_lung))).astype(int))
    for z in np.array(with_lung, dtype=np.int64)[chosen].tolist():
        cells = np.argwhere(grid[z] == LUNG)
        y, x = (cells[generator.integers(len(cells))] + 0.5) * np.array(geometry.shape[1:]) / GRID - 0.5
        places = [(volume, geometry.to_lps([z + higher, y, x]).tolist()) for volume, higher in wanted]
        try:
            crops = [crop_at(cohort, *place, spec) for place in places]
        except NoCropError:
            continue
        if not any(crop.is_replicated for crop in crops) and all(map(is_readable, places)):
            yield tuple(LungCrops(crop.hu[None], [place]) for crop, place in zip(crops, places, strict=True))


def _median_difference_hu(first: Crops, second: Crops, spec: CropSpec) -> float:
    """Median difference of the means of blocks of about 8 mm, in the center slices."""
    side = max(1, min(round(BLOCK_MM / spec.mm_per_px), spec.out_px))
    whole = spec.out_px // side * side

    def means(crops: Crops) -> Crops:
        blocks = crops[:, 1, :whole, :whole].reshape(len(crops), whole // side, side, whole // side, side)
        return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float32)

    return float(np.median(np.abs(means(first) - means(second))))


def kernel_table(
    crops: PairCrops, encoders: Mapping[str, Callable[[LungCrops], NDArray[np.float32]]]
) -> dict[str, dict[str, float | Estimate]]:
    """Measure, by network, how far another kernel and the next slice move features, over the distance of two patients.

    Fewer than 5 patients give plain means without an interval.

    Raises:
        UnmeasurableError: If there is no second patient, or all features are equal.
    """
    measured: dict[str, dict[str, float | Estimate]] = {}
    for name, encode in encoders.items():
        first = encode(crops.first)
        everyone = np.concatenate([first, encode(crops.others)]) if crops.others.places else first
        unit = patient_distance(everyone, np.concatenate([crops.patient_ids, crops.other_ids]))
        measured[name] = {}
        for measure, changed in (("moved_by_kernel", crops.second), ("moved_by_next_slice", crops.beside)):
            moved = ((encode(changed) - first) ** 2).sum(axis=1) / unit
            is_enough = crops.n_patients >= ENOUGH_PATIENTS
            measured[name][measure] = (
                mean_with_interval(moved, crops.patient_ids) if is_enough else float(moved.mean())
            )
    return measured


def kernel_text(crops: PairCrops | None, measured: Mapping[str, Mapping[str, float | Estimate]]) -> str:
    """Return the distances as text, or why there are none."""
    needed = f"{ENOUGH_PATIENTS} patients with an acquisition of two kernels are needed"
    if crops is None:
        return f"kernel pairs: not testable: none of the tested patients has one; {needed}"
    heads = ("network", "other kernel", "next slice", "other patient")
    lines = [
        f"kernel pairs: {number_of(len(crops.first.places), 'slice')} of {number_of(crops.n_patients, 'patient')}"
        f" reconstructed twice ({', '.join(crops.kernels)}); squared distances over that of two patients",
        "{:10} {:24} {:24} {}".format(*heads),
    ]
    lines += [
        f"{name:10} {_text(own['moved_by_kernel']):24} {_text(own['moved_by_next_slice']):24} 1"
        for name, own in measured.items()
    ]
    if crops.n_patients < ENOUGH_PATIENTS:
        lines.append(f"not testable with {crops.n_patients}: {needed}")
    if crops.n_other_images:
        lines.append(f"{crops.n_other_images} pairs left out: their images are not of one acquisition")
    return "\n".join(lines)


def _text(value: float | Estimate) -> str:
    return str(value) if isinstance(value, Estimate) else f"{value:.3f}"
