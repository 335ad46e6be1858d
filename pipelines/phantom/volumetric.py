"""Two synthetic cohorts that ask for one thing each: what only the order along z tells, and what only millimeters tell.

Every patient has two whole series with a nodule each, one of either class, drawn from the same numbers. So the classes
differ in nothing but the sign, and a probe that finds it in anything else leaks.

`only_z`: two marks of one slice each, a disc and a ring, five or seven identical slices between them; positive: the
disc lies nearer the head. All other slices of a series are one and the same, noise included, so the two series of a
patient hold the same slices, the same triplets and the same middle. Place, size and contrast of the marks differ
between patients; random weights that see cubes still tell it in part (docs/lab_log.md), so compare with those.

`only_mm`: the two series of a patient hold the same voxels, at two spacings; positive: the ball measures more than 10
mm. Diameters in voxels differ between patients threefold, so spacing alone does not tell either.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipelines.cohort.folder import CohortWriter, write_volume
from pipelines.cohort.tables import ANNOTATIONS, NODULES, REFUSED, empty_table
from pipelines.phantom.shapes import Array, Grid, edge_coverage, sphere_coverage
from transforms.nodule_cube import CubeSpec

VolumeQuestion = Literal["only_z", "only_mm"]

LUNG_HU, MARK_HU, NOISE_HU = -850.0, 40.0, 15.0
_GRID = Grid((21, 33, 33), (2.0, 2.0, 2.0))
"""Of `only_z`."""
_HALF_APART = (3, 5)
"""Half the slices from one mark to the other, 3 or 4: five or seven lie between them."""
_NEAREST = 3
"""Slices from the middle to the nearer mark, at least: no triplet of the middle three slices shows one. The other is at
most 5 away, so that 12 mm to either side hold all triplets that show one."""
_CONTRAST_HU, _MOTTLE_HU = (700.0, 900.0), 20.0
"""Of marks above lung, and the standard deviation of lung itself."""
LARGE_MM = 10.0
_VOXELS, _RATIO = (4.0, 12.0), 1.4
"""Of `only_mm`: diameters in voxels, log-uniform, and how much larger the positive series' voxels are."""
_N_VOXELS = 25
_ORIGIN = {"manufacturer": "phantom", "kernel": "", "transfer_syntax": "", "origin": "phantom"}


class Drawn(NamedTuple):
    """One series around its nodule, which lies in the middle."""

    volume_hu: NDArray[np.int16]  # (Z, Y, X), z toward the head
    spacing_mm: float
    diameter_mm: float
    is_positive: bool


def pair_of(question: VolumeQuestion, patient: int, seed: int = 0) -> tuple[Drawn, Drawn]:
    """Draw the positive and the negative series of one patient."""
    rng = np.random.default_rng([seed, patient])
    return _by_order(rng) if question == "only_z" else _by_spacing(rng)


def make_volume_cohort(root: Path, question: VolumeQuestion, patients: int = 200, seed: int = 0) -> None:
    """Write the cohort: two series and two nodules a patient, each nodule rated by four readers who agree.

    Args:
        root: Folder of the cohort.
        question: What tells the classes apart.
        patients: How many.
        seed: Of everything drawn; a larger cohort begins with the smaller one.

    Raises:
        CohortError: If the folder holds something else.
    """
    writer = CohortWriter(root)
    nodules = []
    for row, nodule, volume_hu in _rows(question, patients, seed):
        write_volume(root, row, volume_hu)
        nodules.append(nodule)
    table = pd.DataFrame(nodules, columns=NODULES.names)
    writer.write_tables(empty_table(ANNOTATIONS), table, empty_table(REFUSED), f"{question}-{seed}")
    writer.close()


def _rows(
    question: VolumeQuestion, patients: int, seed: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any], NDArray[np.int16]]]:
    for patient in range(patients):
        # Which of the two is series a says nothing of its class.
        order = np.random.default_rng([seed, patient, 1]).permutation(2)
        drawn = pair_of(question, patient, seed)
        for letter, number in zip("ab", order, strict=True):
            one = drawn[int(number)]
            spec = CubeSpec(shape=_shape(one.volume_hu), spacing_mm=(one.spacing_mm,) * 3)
            names = {"patient_id": f"{question}-{patient:04d}"}
            names |= dict.fromkeys(("volume_id", "series_uid"), f"{names['patient_id']}{letter}")
            row = {
                **names,
                **_ORIGIN,
                "study_uid": names["patient_id"],
                "spacing_mm": list(spec.spacing_mm),
                "affine_ras": spec.affine_ras((0.0, 0.0, 0.0)).ravel().tolist(),
                "gaps": [],
                "slice_offsets_mm": [],
                "slice_thickness_mm": one.spacing_mm,
                "is_lossy": False,
                "n_padding_voxels": 0,
                "kind": "series",
                "notes": f"synthetic: {question}",
            }
            nodule = {
                **names,
                "nodule_id": names["volume_id"],
                **dict.fromkeys(("x_lps_mm", "y_lps_mm", "z_lps_mm"), 0.0),
                "diameter_mm": one.diameter_mm,
                "volume_mm3": np.pi / 6 * one.diameter_mm**3,
                "malignancy_ratings": [5 if one.is_positive else 1] * 4,
                "n_readers": 4,
                "z_min_mm": -one.diameter_mm / 2,
                "z_max_mm": one.diameter_mm / 2,
                "source": "phantom",
                "flag": "",
            }
            yield row, nodule, one.volume_hu


def _by_order(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    flat = Grid((1, *_GRID.shape[1:]), _GRID.spacing_mm)
    lung = _lung(rng, flat, _MOTTLE_HU)
    center = flat.middle_mm + np.array([0, *rng.uniform(-4, 4, 2)])
    diameter, contrast_hu = rng.uniform(10, 16), rng.uniform(*_CONTRAST_HU)
    from_center = np.hypot(flat.axis_mm(1) - center[1], flat.axis_mm(2) - center[2])
    disc = edge_coverage(np.asarray(diameter / 2 - from_center, dtype=np.float32), 2.0)
    hole = edge_coverage(np.asarray(0.3 * diameter - from_center, dtype=np.float32), 2.0)
    empty, full, ring = (
        _with_noise(rng, lung + share * np.float32(contrast_hu))
        for share in (np.zeros_like(disc), disc, disc - hole)
    )
    half = int(rng.integers(*_HALF_APART))
    shift = int(rng.integers(_NEAREST - half, half - _NEAREST + 1))
    low, high = (_GRID.shape[0] // 2 + shift + side * half for side in (-1, 1))
    positive, negative = np.repeat(empty, _GRID.shape[0], axis=0), np.repeat(empty, _GRID.shape[0], axis=0)
    positive[high], positive[low] = full[0], ring[0]
    negative[high], negative[low] = ring[0], full[0]
    spacing_mm = _GRID.spacing_mm[0]
    return Drawn(positive, spacing_mm, diameter, True), Drawn(negative, spacing_mm, diameter, False)


def _by_spacing(rng: np.random.Generator) -> tuple[Drawn, Drawn]:
    grid = Grid((_N_VOXELS,) * 3, (1.0, 1.0, 1.0))
    voxels = float(np.exp(rng.uniform(*np.log(_VOXELS))))
    volume = _lung(rng, grid)
    box, share = sphere_coverage(grid, grid.middle_mm, voxels)
    volume[box] += share * (np.float32(MARK_HU) - volume[box])
    volume_hu = _with_noise(rng, volume)
    between = LARGE_MM / voxels
    large, small = between * _RATIO**0.5, between / _RATIO**0.5
    return Drawn(volume_hu, large, voxels * large, True), Drawn(volume_hu, small, voxels * small, False)


def _lung(rng: np.random.Generator, grid: Grid, mottle_hu: float = 25.0) -> Array:
    """Mottled lung of a patient's own mean, float32 HU."""
    mottle = gaussian_filter(
        rng.standard_normal(grid.shape, dtype=np.float32), [0 if n == 1 else 1.5 for n in grid.shape]
    )
    return np.asarray(LUNG_HU + rng.normal(0, 20) + mottle_hu * mottle / mottle.std(), dtype=np.float32)


def _with_noise(rng: np.random.Generator, volume: Array) -> NDArray[np.int16]:
    noise = rng.standard_normal(volume.shape, dtype=np.float32)
    return np.rint(volume + np.float32(NOISE_HU) * noise).astype(np.int16)


def _shape(volume_hu: NDArray[np.int16]) -> tuple[int, int, int]:
    z, y, x = volume_hu.shape
    return z, y, x
