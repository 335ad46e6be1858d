"""A small thorax in Hounsfield units: chest wall, ribs, spine, heart, airways, textured lungs, branching vessels.

Nothing here is patient data. The chest is about 150 mm wide (half of an adult's), so that 128 pixels give the
nodules of `phantom_nodules` several pixels each. The lung holds vessels as wide and as bright as the nodules:
without them any bright blob would be a nodule, and random features would find it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipelines.phantom.shapes import Array, Grid, capsule_coverage, edge_coverage, paint_brighter

NOISE_HU = 15.0
"""Standard deviation of the white noise in every voxel."""

Fill = Callable[[Array, float | Array], None]
"""Moves the voxels that lie deep enough inside a surface to a value, HU."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of vessel between two points, (z, y, x) mm, with its radius at either end."""

    start_mm: NDArray[np.float64]
    end_mm: NDArray[np.float64]
    start_radius_mm: float
    end_radius_mm: float


@dataclass(frozen=True, slots=True)
class Thorax:
    """The proportions of one patient; lengths in mm, offsets from the middle of the volume."""

    middle_mm: tuple[float, float, float]
    half_height_mm: float
    half_width_mm: float
    half_depth_mm: float
    fat_mm: float
    mediastinum_mm: float
    heart_mm: float
    lung_hu: float
    rib_phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid) -> "Thorax":
        """Draw one patient's proportions and place; they fit a circular field of view of 160 mm.

        Patients differ as much as they do in a scanner: where all look alike, two views of one slice share too little
        for self-distillation to begin (docs/decisions/0002-cross-view-share.md).
        """
        z, y, x = grid.middle_mm
        half_width = rng.uniform(61, 76)
        return cls(
            middle_mm=(float(z), float(y + rng.uniform(-8, 8)), float(x + rng.uniform(-4, 4))),
            half_height_mm=max(float(z), 1.0),
            half_width_mm=half_width,
            half_depth_mm=half_width * rng.uniform(0.64, 0.84),
            fat_mm=rng.uniform(2, 7),
            mediastinum_mm=rng.uniform(7, 13),
            heart_mm=rng.uniform(13, 25),
            lung_hu=rng.normal(-850, 25),
            rib_phase=rng.uniform(0, 1),
        )

    def offsets(self, z: Array, y: Array, x: Array) -> tuple[Array, Array, Array]:
        """Positions relative to the middle: height in -1 .. 1, then y and x in mm."""
        middle = self.middle_mm
        height = (z - np.float32(middle[0])) / np.float32(self.half_height_mm)
        return height, y - np.float32(middle[1]), x - np.float32(middle[2])

    def cavity_depth_mm(self, z: Array, y: Array, x: Array) -> Array:
        """Depth under the inner chest wall, mm, approximate, good near the wall; negative outside."""
        height, y, x = self.offsets(z, y, x)
        width = np.float32(self.half_width_mm - 11) * (1 - np.float32(0.05) * (height + 1))
        depth = np.float32(self.half_depth_mm - 9) * (1 - np.float32(0.04) * (height + 1))
        return _ellipse_depth_mm(y, x, depth, width)

    def lung_depth_mm(self, z: Array, y: Array, x: Array) -> Array:
        """Depth inside the nearer lung, mm: under the chest wall, beside mediastinum, heart, spine and aorta."""
        cavity = self.cavity_depth_mm(z, y, x)
        height, y, x = self.offsets(z, y, x)
        waist = np.cos(y / 7 + 2 * height) * 1.5 + np.cos(y / 13 - height) * 2.5  # no straight border
        beside = np.abs(x) - np.asarray(self.mediastinum_mm + waist, dtype=np.float32)
        heart = -self.heart_depth_mm(height, y, x)
        spine = np.hypot(y - np.float32(self.half_depth_mm - 15), x) - 13
        aorta = np.hypot(y - np.float32(self.half_depth_mm - 27), x - 11) - 8
        return _intersection(cavity, beside, heart, spine, aorta)

    def lung_depth_at(self, point_mm: NDArray[np.float64]) -> float:
        """`lung_depth_mm` at one point (z, y, x)."""
        z, y, x = np.asarray(point_mm, dtype=np.float32).reshape(3, 1)
        return float(self.lung_depth_mm(z, y, x)[0])

    def heart_depth_mm(self, height: Array, y: Array, x: Array) -> Array:
        """Depth inside the heart, which leans to the patient's left and narrows toward the head."""
        size = np.float32(self.heart_mm) * (1 - np.float32(0.2) * (height + 1))
        return _ellipse_depth_mm(y + 13, x - 10, size * np.float32(0.85), size * np.float32(1.15))


def chest_hu(grid: Grid, thorax: Thorax, vessels: list[Segment], rng: np.random.Generator) -> Array:
    """Draw a chest without nodules and without noise, float32 HU (Z, Y, X)."""
    z, y, x = grid.axis_mm(0), grid.axis_mm(1), grid.axis_mm(2)
    height, dy, dx = thorax.offsets(z, y, x)
    edge_mm = float(grid.spacing_mm[2])
    volume = np.full(grid.shape, -1000, dtype=np.float32)

    def fill(depth_mm: Array, value_hu: float | Array) -> None:
        volume[...] += edge_coverage(depth_mm, edge_mm) * (np.float32(1) * value_hu - volume)

    body = _ellipse_depth_mm(dy, dx, thorax.half_depth_mm, thorax.half_width_mm)
    fill(
        np.minimum(1.5 - np.abs(dy - np.float32(thorax.half_depth_mm + 6)), 55 - np.abs(dx)), -350
    )  # the couch
    fill(body, -100)
    fill(body - np.float32(thorax.fat_mm), 50)
    cavity = thorax.cavity_depth_mm(z, y, x)
    fill(_rib_depth_mm(thorax, cavity, z, dy, dx), 420)
    fill(_ellipse_depth_mm(dy + np.float32(thorax.half_depth_mm - 5), dx, 3, 12), 350)  # sternum
    spine_y = np.float32(thorax.half_depth_mm - 15)
    fill(12 - np.hypot(dy - spine_y, dx), 550)
    fill(10.5 - np.hypot(dy - spine_y, dx), 220)
    fill(4 - np.hypot(dy - spine_y - 12, dx), 30)  # spinal canal
    lung = thorax.lung_depth_mm(z, y, x)
    fill(lung, _lung_texture_hu(grid, thorax, dy, rng))
    _draw_airways(fill, height, dy, dx)
    inside = lung > -2
    tree = np.full(grid.shape, -1000, dtype=np.float32)
    for vessel in vessels:
        box, coverage = capsule_coverage(
            grid, vessel.start_mm, vessel.end_mm, vessel.start_radius_mm, vessel.end_radius_mm
        )
        paint_brighter(tree, box, coverage, 45)
    np.maximum(volume, tree, out=volume, where=inside)
    return volume


def grow_vessels(thorax: Thorax, rng: np.random.Generator) -> list[Segment]:
    """Grow branching vessels from both hila, and some along z, which are round in a slice."""
    segments: list[Segment] = []
    middle = np.asarray(thorax.middle_mm)
    for side in (-1.0, 1.0):
        for height in np.linspace(-0.9, 0.9, 4):
            offset = [
                height * thorax.half_height_mm,
                rng.uniform(-4, 8),
                side * (thorax.mediastinum_mm + 6),
            ]
            heading = np.array([rng.normal(0, 0.4), rng.normal(0, 0.8), side])
            _branch(segments, thorax, middle + np.asarray(offset), heading, rng.uniform(2.4, 3.6), rng)
        for _ in range(4):
            offset = [-thorax.half_height_mm, rng.uniform(-22, 22), side * rng.uniform(22, 48)]
            heading = np.array([1.0, rng.normal(0, 0.3), rng.normal(0, 0.3)])
            _branch(segments, thorax, middle + np.asarray(offset), heading, rng.uniform(1.4, 2.8), rng)
    return segments


def _branch(
    segments: list[Segment],
    thorax: Thorax,
    start: NDArray[np.float64],
    heading: NDArray[np.float64],
    radius_mm: float,
    rng: np.random.Generator,
) -> None:
    """Grow one vessel and its children until they thin out or leave the lung."""
    pending = [(start, heading / np.linalg.norm(heading), radius_mm)]
    while pending:
        start, heading, radius_mm = pending.pop()
        end = start + heading * rng.uniform(6, 13)
        thinner = radius_mm * rng.uniform(0.82, 0.94)
        segments.append(Segment(start, end, radius_mm, thinner))
        is_near = abs(end[0] - thorax.middle_mm[0]) < thorax.half_height_mm + 8
        if not is_near or thorax.lung_depth_at(end) < 1:
            continue
        for scale, spread in ((0.95, 0.25), (0.7, 0.9)):
            if thinner * scale < 0.6 or (spread > 0.5 and rng.random() < 0.3):
                continue
            turned = heading + rng.normal(0, spread, 3)
            pending.append((end, turned / np.linalg.norm(turned), thinner * scale))


def _ellipse_depth_mm(y: Array, x: Array, half_y: float | Array, half_x: float | Array) -> Array:
    """Depth inside an ellipse, mm: exact on the axes' shorter half, about right near the edge."""
    radius = np.sqrt((y / half_y) ** 2 + (x / half_x) ** 2)
    return np.asarray((1 - radius) * np.minimum(half_y, half_x), dtype=np.float32)


def _intersection(*depths_mm: Array) -> Array:
    """Depth inside everything at once."""
    return np.asarray(reduce(np.minimum, depths_mm), dtype=np.float32)


def _rib_depth_mm(thorax: Thorax, cavity: Array, z: Array, dy: Array, dx: Array) -> Array:
    """Depth inside the ribs: bands in the chest wall that fall from the spine toward the front."""
    toward_front = (1 - dy / np.hypot(dy, dx).clip(1)) / 2
    phase = (z + 34 * toward_front) / 15 + np.float32(thorax.rib_phase) + np.float32(0.4) * (dx > 0)
    from_middle_mm = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 15
    in_wall_mm = 2.6 - np.abs(cavity + np.float32(4.2))
    return _intersection(3.6 - from_middle_mm, in_wall_mm, np.abs(dx) - 8)


def _lung_texture_hu(grid: Grid, thorax: Thorax, dy: Array, rng: np.random.Generator) -> Array:
    """Lung tissue: coarse and fine mottling, and denser toward the back where the patient lies."""
    texture = np.full(grid.shape, thorax.lung_hu, dtype=np.float32) + np.float32(0.5) * dy
    for scale_mm, strength_hu in ((1.3, 14.0), (5.0, 18.0)):
        sigma = [scale_mm / spacing for spacing in grid.spacing_mm]
        mottle = gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), sigma, truncate=3)
        texture += mottle * np.float32(strength_hu / max(float(mottle.std()), 1e-6))
    return texture


def _draw_airways(fill: Fill, thorax_height: Array, dy: Array, dx: Array) -> None:
    """The main bronchi, which meet in the trachea toward the head."""
    apart = np.float32(11) * np.clip(np.float32(0.4) - thorax_height, 0, 1)
    for side in (-1, 1):
        radius = np.hypot(dy - 8, dx - side * apart)
        fill(5.5 - radius, 30)
        fill(4.5 - radius, -980)
