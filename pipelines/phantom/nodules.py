"""Nodules with a known answer: their place, size, margin, density, and the ratings of four readers.

The probability that a nodule looks malignant grows with its diameter, and, at any diameter, with a spiculated margin
and with ground-glass density. So diameter alone is a fair baseline, and there is something left to learn. Ground
glass is darker than a solid nodule: the sum of bright voxels is no shortcut.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.phantom.anatomy import Segment, Thorax
from pipelines.phantom.shapes import Array, Grid, capsule_coverage, paint_brighter, sphere_coverage

Margin = Literal["smooth", "spiculated"]
Density = Literal["solid", "ground_glass"]

DIAMETER_RANGE_MM = (4.0, 20.0)
N_READERS = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader marked: the ratings of LIDC, with pylidc's names and scales, and a measured diameter."""

    ratings: dict[str, int]
    diameter_mm: float
    shift_mm: tuple[float, float, float]
    """The reader's center minus the true center, (z, y, x) mm."""


@dataclass(frozen=True, slots=True)
class Nodule:
    """The truth about one nodule; `center_mm` is (z, y, x) mm from the center of voxel (0, 0, 0)."""

    center_mm: tuple[float, float, float]
    diameter_mm: float
    margin: Margin
    density: Density
    suspicion: float
    """What the four readers agree on before each adds an error of their own, on the scale of the rating."""
    readings: tuple[Reading, ...]


def draw_nodules(
    grid: Grid, thorax: Thorax, vessels: list[Segment], rng: np.random.Generator
) -> list[Nodule]:
    """Draw one to four nodules of a patient, whole inside the lung and the volume."""
    nodules: list[Nodule] = []
    for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1]))):
        diameter = float(np.clip(rng.lognormal(math.log(8.0), 0.42), *DIAMETER_RANGE_MM))
        margin: Margin = "spiculated" if rng.random() < 0.4 else "smooth"
        density: Density = "ground_glass" if rng.random() < 0.35 else "solid"
        center = _find_place(grid, thorax, vessels, nodules, diameter, rng)
        if center is None:
            continue
        suspicion = suspicion_of(diameter, margin, density)
        readings = tuple(_read(diameter, margin, density, suspicion, rng) for _ in range(N_READERS))
        nodules.append(Nodule(center, diameter, margin, density, suspicion, readings))
    return nodules


def suspicion_of(diameter_mm: float, margin: Margin, density: Density) -> float:
    """Expected malignancy rating, before it is clipped to 1 .. 5."""
    size = math.log(diameter_mm / 8.0) / 0.42
    return 1.95 + 0.8 * size + 1.35 * (margin == "spiculated") + 0.95 * (density == "ground_glass")


def _read(
    diameter_mm: float, margin: Margin, density: Density, suspicion: float, rng: np.random.Generator
) -> Reading:
    def rate(expected: float, spread: float = 0.6) -> int:
        return int(np.clip(round(expected + rng.normal(0, spread)), 1, 5))

    spiculated, solid = margin == "spiculated", density == "solid"
    ratings = {
        "subtlety": rate(2.5 + diameter_mm / 8 + 0.5 * solid),
        "internalStructure": 1,
        "calcification": 6,
        "sphericity": rate(4.2 - 0.6 * spiculated),
        "margin": rate((2.2 if spiculated else 4.6) - 0.8 * (not solid)),
        "lobulation": rate(2.0),
        "spiculation": rate(4.0 if spiculated else 1.3),
        "texture": rate(4.8 if solid else 1.6),
        "malignancy": rate(suspicion, spread=0.55),
    }
    measured_mm = diameter_mm * float(np.exp(rng.normal(0, 0.06)))
    return Reading(ratings, measured_mm, tuple(rng.normal(0, 0.2, 3).tolist()))


def _find_place(
    grid: Grid,
    thorax: Thorax,
    vessels: list[Segment],
    others: list[Nodule],
    diameter_mm: float,
    rng: np.random.Generator,
) -> tuple[float, float, float] | None:
    """A place inside the lung, off the larger vessels and other nodules, or None when 400 tries found none."""
    radius = diameter_mm / 2
    top = 2 * grid.middle_mm[0]
    keep_mm = max(
        min(12.0, top / 2 - 1), radius
    )  # so that a crop around it stays inside the volume, where it can
    if not keep_mm < top - keep_mm:
        return None
    high = 2 * grid.middle_mm
    for _ in range(400):
        center = rng.uniform([keep_mm, 0, 0], [top - keep_mm, high[1], high[2]])
        if thorax.lung_depth_at(center) < radius + 2:
            continue
        apart = (
            math.dist(center, other.center_mm) - (other.diameter_mm + diameter_mm) / 2 for other in others
        )
        if min(apart, default=99.0) < 10:
            continue
        if any(_runs_through(vessel, center, radius) for vessel in vessels):
            continue
        return float(center[0]), float(center[1]), float(center[2])
    return None


def _runs_through(vessel: Segment, center: NDArray[np.float64], radius_mm: float) -> bool:
    """Whether the axis of a vessel that is thick for this nodule passes through its middle."""
    if vessel.start_radius_mm < 0.35 * radius_mm:
        return False
    step = vessel.end_mm - vessel.start_mm
    along = np.clip((center - vessel.start_mm) @ step / (step @ step), 0, 1)
    distance = float(np.linalg.norm(center - vessel.start_mm - along * step))
    return distance < radius_mm + 0.5 * vessel.start_radius_mm


def draw_nodule(volume_hu: Array, grid: Grid, nodule: Nodule, rng: np.random.Generator) -> None:
    """Draw one nodule into a chest, in place: an exact sphere, and spicules that leave it if it has them."""
    value_hu = rng.uniform(20, 60) if nodule.density == "solid" else rng.uniform(-560, -440)
    center, radius = np.asarray(nodule.center_mm), nodule.diameter_mm / 2
    box, coverage = sphere_coverage(grid, center, nodule.diameter_mm)
    paint_brighter(volume_hu, box, coverage, value_hu)
    if nodule.margin == "smooth":
        return
    for _ in range(int(rng.integers(12, 19))):
        heading = rng.normal(size=3)
        heading /= np.linalg.norm(heading)
        length = rng.uniform(2.5, 4.5) + 0.5 * radius
        box, coverage = capsule_coverage(
            grid, center + heading * radius * 0.8, center + heading * (radius + length), 0.9, 0.35
        )
        paint_brighter(volume_hu, box, coverage, value_hu)
