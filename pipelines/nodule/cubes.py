"""Cubes of HU around points of a cohort, cut in batches: what 3D backbones and encoders of cubes read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.nodule.labeled import center_of
from pipelines.runtime.progress import progress
from transforms.geometry import VolumeGeometry
from transforms.nodule_cube import CubeSpec, check_cube, cut_cube
from transforms.refusal import NoCropError

Row = Mapping[Any, Any]
Place = tuple[Row, Sequence[float]]
"""Row of series.parquet, and a point in LPS mm."""


class CubeBatch(NamedTuple):
    """Cubes of one shape."""

    hu: NDArray[np.float32]  # (B, D, P, P)
    affines_ras: NDArray[np.float64]  # (B, 4, 4), from (z, y, x, 1) to RAS mm
    spacing_mm: NDArray[np.float64]  # (B, 3), along z, y and x
    told_mm: NDArray[
        np.float64
    ]  # (B, 3), what a network that takes the spacing is told: `spacing_mm`, or a control's


@dataclass(frozen=True, eq=False)
class Cubes:
    """A cube around each of n points, such as nodules.

    Attributes:
        cohort: What they are cut from.
        places: The points.
        spec: Shape and spacing of the cubes.
        own_voxels: Cut each in the voxels of its volume; the spacing of `spec` is not read then.
        order: Cube whose spacing is told with each, (n,); None: its own. A control: a network that reads millimeters
            from the spacing fails on those of other cubes.
    """

    cohort: Cohort
    places: Sequence[Place]
    spec: CubeSpec
    own_voxels: bool = False
    order: NDArray[np.int64] | None = None

    @classmethod
    def around(
        cls, cohort: Cohort, nodules: pd.DataFrame, spec: CubeSpec, own_voxels: bool = False
    ) -> "Cubes":
        """Return the cubes around nodules, in the order of their table."""
        series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
        rows = nodules.to_dict("records")
        places = [(series[str(nodule["volume_id"])], center_of(nodule)) for nodule in rows]
        return cls(cohort, places, spec, own_voxels)

    def can_be_cut(self) -> NDArray[np.bool_]:
        """Return whether each can be cut, (n,); volumes are not read."""
        return np.array([self._can_be_cut(row, center) for row, center in self.places])

    def is_flat(self) -> NDArray[np.bool_]:
        """Return which lie in a patch as long as its nodule, whose center slice is repeated along z, (n,)."""
        return np.array([_is_patch(row) for row, _ in self.places])

    def spacing_mm(self) -> NDArray[np.float64]:
        """Return the spacing of each cube along z, y and x, (n, 3)."""
        return np.array([self._spec(row).spacing_mm for row, _ in self.places])

    def identity(self) -> NDArray[np.uint8]:
        """Return what features of the cubes depend on, as bytes: voxels by hash, geometry, centers, shape, spacing."""
        names = ("sha256", "kind", "affine_ras", "slice_offsets_mm")
        parts = [[str(np.asarray(row[name]).tolist()) for name in names] for row, _ in self.places]
        centers = [center for _, center in self.places]
        spec = self.spec.shape if self.own_voxels else self.spec
        order = () if self.order is None else (self.order.tolist(),)
        return np.frombuffer(repr((spec, parts, centers, *order)).encode(), dtype=np.uint8)

    def batches(self, size: int) -> Iterator[CubeBatch]:
        """Cut the cubes in their order, `size` at a time.

        Raises:
            NoCropError: If one cannot be cut, see `can_be_cut`.
        """
        places = self.places
        told_mm = self.spacing_mm() if self.order is None else self.spacing_mm()[self.order]
        starts = range(0, len(places), size)
        for start in progress(starts, desc="cubes", unit=f"{size} cubes", leave=False):
            own = places[start : start + size]
            specs = [self._spec(row) for row, _ in own]
            yield CubeBatch(
                np.stack(
                    [self._cut(row, center, spec) for (row, center), spec in zip(own, specs, strict=True)]
                ),
                np.stack([spec.affine_ras(center) for (_, center), spec in zip(own, specs, strict=True)]),
                np.array([spec.spacing_mm for spec in specs]),
                told_mm[start : start + size],
            )

    def _spec(self, row: Row) -> CubeSpec:
        if not self.own_voxels:
            return self.spec
        z, y, x = map(float, row["spacing_mm"])
        return replace(self.spec, spacing_mm=(z, y, x))

    def _can_be_cut(self, row: Row, center: Sequence[float]) -> bool:
        try:
            check_cube(VolumeGeometry.from_row(row), center, self._spec(row), _is_patch(row))
        except NoCropError:
            return False
        return True

    def _cut(self, row: Row, center: Sequence[float], spec: CubeSpec) -> NDArray[np.float32]:
        volume = self.cohort.volume(str(row["volume_id"]))
        return cut_cube(volume, VolumeGeometry.from_row(row), center, spec, _is_patch(row))


def _is_patch(row: Row) -> bool:
    return bool(row["kind"] == "patch")
