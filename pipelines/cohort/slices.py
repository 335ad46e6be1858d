"""Every slice of some patients of a cohort, and the triplet or cubes around each, read straight from the page cache."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from pipelines.cohort.cubes import fitting_volumes
from pipelines.cohort.folder import Cohort
from pipelines.cohort.points import Places, Point, annotated_places, slice_points
from transforms.geometry import triplet_indices, unbroken_run
from transforms.views.batch import TripletBatch
from transforms.views.config import ViewConfig
from transforms.views.cube_render import CubeBatch
from transforms.views.cubes import CubeFrames, CubePlaces, smallest_cube_mm

PADDING_HU = -1024
_NOWHERE = Point(np.nan, np.nan, np.nan)


class SliceIndex:
    """Every slice of some patients of a cohort, by number, and how to read the triplet around it.

    Attributes:
        volume: Number of the volume of each slice, (n,) int32.
        z: Its index in that volume, (n,) int32.
        patient_ids: Patient of each volume, (volumes,).
        volume_ids: Id of each volume, (volumes,).
        n_small: How many volumes are left out because they hold no cube.
        said: Sentences for the user: volumes that were left out, and that are coarser than the cubes.
    """

    def __init__(
        self,
        cohort: Cohort,
        patients: Collection[str],
        inner: bool = False,
        views: ViewConfig | None = None,
        places: Places | None = None,
    ) -> None:
        """Index the volumes of `patients`; pixels are read later. Points are those of `places`, or of nodules.

        With `inner` slices are left out whose neighbor is missing or lies across a gap, so that no channel is a copy;
        where `views` are cubes, those around which the smallest cube would repeat a slice.

        Raises:
            CohortError: If `views` are cubes and a volume is a patch around a nodule.
        """
        series = cohort.series[cohort.series["patient_id"].isin(list(patients))].sort_values("volume_id")
        self.said: list[str] = []
        n_volumes = len(series)
        if views is not None and views.is_3d:
            series, self.said = fitting_volumes(series, views)
        self.n_small = n_volumes - len(series)
        self.cohort = cohort
        self.volume_ids = [str(value) for value in series["volume_id"]]
        self.patient_ids = [str(value) for value in series["patient_id"]]
        shapes = np.array([tuple(shape) for shape in series["shape"]], dtype=np.int64).reshape(-1, 3)
        self.size_hw = shapes[:, 1:]
        self.n_slices = shapes[:, 0]
        spacing_mm = np.array([tuple(s) for s in series["spacing_mm"]], dtype=np.float64).reshape(-1, 3)
        self.slice_mm, self.pixel_mm = spacing_mm[:, 0], spacing_mm[:, 1:]
        self.gaps = [tuple(int(gap) for gap in gaps) for gaps in series["gaps"]]
        self.volume = np.repeat(np.arange(len(shapes), dtype=np.int32), self.n_slices)
        self.z = np.concatenate(
            [np.arange(n, dtype=np.int32) for n in self.n_slices] or [np.zeros(0, np.int32)]
        )
        if inner:
            reach = np.ones(len(shapes), dtype=np.int64)
            if views is not None and views.is_3d:
                depth_mm = smallest_cube_mm(views)[0]
                reach = np.ceil(depth_mm / self.slice_mm / 2 - 1e-6).astype(np.int64)
            volumes = zip(self.n_slices, self.gaps, reach.tolist(), strict=True)
            is_whole = np.concatenate([_is_inner(*volume) for volume in volumes] or [np.zeros(0, bool)])
            self.volume, self.z = self.volume[is_whole], self.z[is_whole]
        places = annotated_places(cohort, self.volume_ids) if places is None else places
        self.points = slice_points(places, self.volume_ids, self.n_slices.tolist(), self.slice_mm.tolist())
        self._first_key = _global_keys(cohort, self.volume_ids)
        self._sizes = [(int(height), int(width)) for height, width in self.size_hw]
        self._depths = [int(depth) for depth in self.n_slices]

    @property
    def diameter_mm(self) -> NDArray[np.float64]:
        """Diameter of the nodule or blob that each slice shows, (n,); NaN where there is none."""
        places = zip(self.volume.tolist(), self.z.tolist(), strict=True)
        return np.array([self.points.get(place, _NOWHERE).diameter_mm for place in places])

    def leave_out_pointless(self) -> None:
        """Keep the slices that show a nodule or a blob."""
        is_kept = np.isfinite(self.diameter_mm)
        self.volume, self.z = self.volume[is_kept], self.z[is_kept]

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.z)

    def read(self, rows: Iterable[int]) -> TripletBatch:
        """Read the triplets around some slices, padded to the largest: `SliceTriplet` for a batch, without MONAI.

        Where a neighbor is missing (volume edge) or lies across a gap, z itself is repeated.
        """
        chosen = np.array(list(rows), dtype=np.int64)
        volumes, slices = self.volume[chosen], self.z[chosen]
        # The loop below is all there is between a copy and a sample: it works on Python's own numbers.
        places = list(zip(volumes.tolist(), slices.tolist(), strict=True))
        sizes = [self._sizes[volume] for volume, _ in places]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        triplets = np.empty((len(places), 3, height, width), dtype=np.int16)
        if len(set(sizes)) > 1:
            triplets.fill(PADDING_HU)
        body = np.empty((len(places), 32, 32), dtype=np.uint8)
        for i, (volume, z) in enumerate(places):
            (below, _, above), _ = triplet_indices(self._depths[volume], z, None, self.gaps[volume])
            volume_id, (h, w) = self.volume_ids[volume], sizes[i]
            voxels = self.cohort.volume(volume_id)
            if above - below == 2:  # Neighbors lie side by side: one copy.
                triplets[i, :, :h, :w] = voxels[below : above + 1]
            else:
                for channel, index in enumerate((below, z, above)):
                    triplets[i, channel, :h, :w] = voxels[index]
            body[i] = self.cohort.body(volume_id)[z]
        points = [self.points.get(place, _NOWHERE)[:2] for place in places]
        return TripletBatch(
            triplets_hu=torch.from_numpy(triplets),
            size_hw=torch.from_numpy(self.size_hw[volumes]),
            pixel_mm=torch.from_numpy(self.pixel_mm[volumes]),
            slice_mm=torch.from_numpy(self.slice_mm[volumes]),
            body=torch.from_numpy(body),
            sample_keys=torch.from_numpy(self.keys(chosen)),
            center_yx_px=torch.from_numpy(np.array(points, dtype=np.float64)),
        )

    def directions_ras(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Directions in the patient of the axes (z, y, x) of some slices' volumes, (B, 3, 3): one a row, RAS."""
        affines = self.cohort.series.set_index("volume_id")["affine_ras"]
        axes = [
            np.reshape(affines[self.volume_ids[volume]], (4, 4))[:3, :3].T for volume in self.volume[rows]
        ]
        return np.array(axes, dtype=np.float64).reshape(-1, 3, 3)

    def keys(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers that identify some slices in the random draws, the same for any choice of patients."""
        keys: NDArray[np.int64] = self._first_key[self.volume[rows]] + self.z[rows]
        return keys

    def frames(self, rows: NDArray[np.int64]) -> CubeFrames:
        """Return what drawing cubes needs of some slices; no voxels are read."""
        volumes, slices = self.volume[rows], self.z[rows]
        places = list(zip(volumes.tolist(), slices.tolist(), strict=True))
        runs = [unbroken_run(self._depths[volume], self.gaps[volume], z) for volume, z in places]
        body = [self.cohort.body(self.volume_ids[volume])[z] for volume, z in places]
        points = [self.points.get(place, _NOWHERE)[:2] for place in places]
        return CubeFrames(
            z=slices.astype(np.int64),
            run_z=np.array(runs, dtype=np.int64),
            size_hw=self.size_hw[volumes],
            spacing_mm=np.concatenate([self.slice_mm[volumes, None], self.pixel_mm[volumes]], axis=1),
            body=np.stack(body),
            point_yx_px=np.array(points, dtype=np.float64),
        )

    def read_cubes(self, rows: NDArray[np.int64], places: CubePlaces) -> CubeBatch:
        """Read the raw box of every cube of some slices, one behind the other."""
        volume_ids = [self.volume_ids[volume] for volume in self.volume[rows].tolist()]
        sizes = np.diff(places.read_zyx, axis=-1)[..., 0].prod(axis=-1)
        flat = _new_voxels(int(sizes.sum()))
        voxels = flat.numpy()
        middle = places.middle_z().tolist()
        body = np.empty((*sizes.shape, 32, 32), dtype=np.uint8)
        begin = 0
        for view, boxes in enumerate(places.read_zyx.tolist()):
            for b, ((z0, z1), (y0, y1), (x0, x1)) in enumerate(boxes):
                shape = (z1 - z0, y1 - y0, x1 - x0)
                end = begin + int(sizes[view, b])
                volume_hu = self.cohort.volume(volume_ids[b])
                voxels[begin:end].reshape(shape)[...] = volume_hu[z0:z1, y0:y1, x0:x1]
                body[view, b] = self.cohort.body(volume_ids[b])[middle[view][b]]
                begin = end
        return CubeBatch(flat, places.body_share(body, self.size_hw[self.volume[rows]]))

    def neighbors(self, rows: NDArray[np.int64], reach: int, uniforms: Sequence[float]) -> NDArray[np.int64]:
        """Choose for each row, by a number in [0, 1), another slice of the same nodule, at most `reach` away.

        It is in the same volume, not across a gap, and has the same point (or none, as the row's); a row that has no
        such neighbor is its own.
        """
        chosen = []
        for row, uniform in zip(rows.tolist(), uniforms, strict=True):
            around = range(max(row - reach, 0), min(row + reach + 1, len(self)))
            near = [other for other in around if other != row and self._are_alike(row, other, reach)] or [row]
            chosen.append(near[int(uniform * len(near))])
        return np.array(chosen, dtype=np.int64)

    def _are_alike(self, row: int, other: int, reach: int) -> bool:
        (a, low), (b, high) = sorted((int(self.volume[one]), int(self.z[one])) for one in (row, other))
        has_gap = any(low <= gap < high for gap in self.gaps[a])
        return (
            a == b
            and high - low <= reach
            and not has_gap
            and self.points.get((a, low)) == self.points.get((b, high))
        )


def _new_voxels(count: int) -> torch.Tensor:
    """Memory for voxels; in a loader process it is shared, as torch's own collation does: sent without a copy."""
    if get_worker_info() is None:
        return torch.empty(count, dtype=torch.int16)
    voxels = torch.empty(0, dtype=torch.int16)
    kind: Any = voxels.untyped_storage()
    voxels.set_(kind._new_shared(2 * count, device="cpu"), 0, (count,), (1,))
    return voxels


def _is_inner(n_slices: int, gaps: tuple[int, ...], reach: int) -> NDArray[np.bool_]:
    """Slices around which as many as `reach` lie on either side without a gap, (n_slices,)."""
    is_inner = np.ones(n_slices, dtype=bool)
    for cut in (0, *(gap + 1 for gap in gaps), n_slices):
        is_inner[max(cut - reach, 0) : cut + reach] = False
    return is_inner


def _global_keys(cohort: Cohort, volume_ids: list[str]) -> NDArray[np.int64]:
    # Keys count slices of the whole cohort, so a slice keeps its key for any choice of patients.
    everyone = cohort.series.sort_values("volume_id")
    depth = np.array([int(shape[0]) for shape in everyone["shape"]], dtype=np.int64)
    first = dict(zip(everyone["volume_id"], np.concatenate([[0], depth.cumsum()[:-1]]), strict=True))
    return np.array([first[volume_id] for volume_id in volume_ids], dtype=np.int64)
