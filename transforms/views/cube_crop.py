"""Random cubes of a volume as MONAI transforms: the geometry of `cubes` for one sample in a `Compose`.

Given the same generators, `RandCubed`, `RandWindowHUd` and a normalization show exactly the cubes of the batched path:
`set_random_state(state=sample_state(seed, step, key, "crop"))`, and "window".
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Randomizable, Transform
from numpy.typing import NDArray

from transforms.body_grid import GRID
from transforms.geometry import VolumeGeometry, lps_to_ras, unbroken_run
from transforms.refusal import TransformError, number_of
from transforms.triplet import VOLUME_KEYS
from transforms.views.config import ViewConfig
from transforms.views.crops import UNIFORMS_PER_CROP
from transforms.views.cube_render import cube_weights, resize_box
from transforms.views.cubes import CubeFrames, CubePlaces, holds_a_cube, in_mm, place_cubes, smallest_cube_mm


class RandCube(Randomizable, Transform):
    """Cut one random cube out of a volume; array form of `RandCubed`."""

    def __init__(self, config: ViewConfig) -> None:
        """Keep the settings of the global views.

        Raises:
            TransformError: If they are those of triplets.
        """
        if not config.is_3d:
            raise TransformError(
                "cubes have a depth: give a ViewConfig with depth_px in voxels and extent='mm'"
            )
        self.config = config
        self.uniforms = np.zeros((1, UNIFORMS_PER_CROP))
        self.spacing_mm: list[tuple[float, float, float]] = []

    def randomize(self, data: Any = None) -> None:
        """Draw the uniform numbers of the cube from `self.R`."""
        self.uniforms = self.R.random_sample(self.uniforms.shape)

    def __call__(  # type: ignore[override]  # where the cube lies is an argument, not a setting
        self,
        volume_hu: torch.Tensor | NDArray[Any],
        z: int,
        body: NDArray[np.uint8] | None = None,
        point_yx_px: Sequence[float] | None = None,
        spacing_mm: Sequence[float] | None = None,
        gaps: Collection[int] = (),
    ) -> torch.Tensor:
        """Cut the cube; `self.spacing_mm[0]` then holds the sides (z, y, x) of its voxels.

        Args:
            volume_hu: (Z, Y, X), or channel first (1, Z, Y, X). A MetaTensor brings its own spacing (affine) and gaps.
            z: Slice in whose thickness the middle of the cube lies.
            body: Grid (32, 32) over that slice: 0 outside, 1 body, 2 lung; None: the whole slice is body.
            point_yx_px: A point of that slice in pixel indices, for `center="point"`.
            spacing_mm: Voxel spacing (z, y, x) of a plain array.
            gaps: Indices i where slices are missing between slice i and i + 1 of a plain array.

        Returns:
            (1, D, S, S) float32 HU, axes as in the volume; a MetaTensor, with the affine of the cube, if one came in.

        Raises:
            TransformError: If the shape is not that of a volume, z is not in it, its spacing is unknown, it holds no
                cube or is a patch around a nodule, or its affine says that its axes are not (z toward the head, y, x).
        """
        self.randomize()
        volume = _Volume(self.config, volume_hu, spacing_mm, gaps)
        places = self.places(volume, z, body, point_yx_px)
        return self.cut(volume, places, 0)

    def places(
        self,
        volume: "_Volume",
        z: int,
        body: NDArray[np.uint8] | None,
        point_yx_px: Sequence[float] | None,
    ) -> CubePlaces:
        """Place the cubes of all uniform numbers that were drawn."""
        places = place_cubes(
            self.config, self.uniforms[:, None], len(self.uniforms), volume.frames(int(z), body, point_yx_px)
        )
        self.spacing_mm = [(z_mm, y_mm, x_mm) for z_mm, y_mm, x_mm in places.spacing_mm[:, 0].tolist()]
        return places

    def cut(self, volume: "_Volume", places: CubePlaces, view: int) -> torch.Tensor:
        """Resample one of the placed cubes."""
        shape = self.config.view_shapes()[0]
        cube = np.empty(shape, dtype=np.float32)
        resize_box(volume.box(places.read_zyx[view, 0]), cube_weights(places, view, 0, shape), cube)
        return volume.located(torch.from_numpy(cube)[None], places, view)


class _Volume:
    """A volume that cubes are cut from, with what is known of its geometry."""

    def __init__(
        self, config: ViewConfig, volume_hu: Any, spacing_mm: Sequence[float] | None, gaps: Collection[int]
    ) -> None:
        if not (volume_hu.ndim == 3 or (volume_hu.ndim == 4 and volume_hu.shape[0] == 1)):
            raise TransformError(
                f"a cube is cut from a volume (Z, Y, X) or (1, Z, Y, X), got shape {tuple(volume_hu.shape)}"
            )
        self.source, self.gaps = volume_hu, gaps
        self.geometry: VolumeGeometry | None = None
        if isinstance(volume_hu, MetaTensor):
            if volume_hu.meta.get("kind") == "patch":
                raise TransformError(
                    "this volume is a patch that was cut to the length of a nodule, which tells its label: a cube needs"
                    " a whole series, and a patch gives slice triplets alone"
                )
            self.geometry = VolumeGeometry.from_meta(volume_hu.shape, volume_hu.affine, volume_hu.meta)
            self.geometry.check_axes()
            spacing_mm, self.gaps = self.geometry.spacing_mm, self.geometry.gaps
            volume_hu = volume_hu.as_tensor()
        if spacing_mm is None:
            raise TransformError(
                "a cube has no scale without the voxel spacing; give spacing_mm, or a MetaTensor with an affine"
            )
        self.voxels = volume_hu[0] if volume_hu.ndim == 4 else volume_hu
        self.spacing_mm = np.array(spacing_mm, dtype=np.float64)
        sides_mm = self.spacing_mm * self.voxels.shape
        if not holds_a_cube(config, sides_mm):
            raise TransformError(
                f"a volume of {in_mm(sides_mm)} does not hold the smallest cube of {in_mm(smallest_cube_mm(config))};"
                " lower fov_mm and depth_mm"
            )

    def frames(
        self, z: int, body: NDArray[np.uint8] | None, point_yx_px: Sequence[float] | None
    ) -> CubeFrames:
        n_slices, *size_hw = self.voxels.shape
        if not 0 <= z < n_slices:
            raise TransformError(
                f"slice {z} is not in a volume of {number_of(n_slices, 'slice')}, counted from 0"
            )
        return CubeFrames(
            z=np.array([z]),
            run_z=np.array([unbroken_run(n_slices, self.gaps, z)]),
            size_hw=np.array([size_hw], dtype=np.int64),
            spacing_mm=self.spacing_mm[None],
            body=np.ones((1, GRID, GRID), np.uint8) if body is None else np.asarray(body)[None],
            point_yx_px=np.array(
                [(np.nan, np.nan) if point_yx_px is None else point_yx_px], dtype=np.float64
            ),
        )

    def box(self, read_zyx: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(self.voxels[tuple(slice(*ends) for ends in read_zyx.tolist())])

    def located(self, cube: torch.Tensor, places: CubePlaces, view: int) -> torch.Tensor:
        """Give a cube its affine, if the volume has one."""
        if self.geometry is None:
            return cube
        step = places.length_zyx[view, 0] / np.array(cube.shape[1:])
        first = places.start_zyx[view, 0] + step / 2 - 0.5
        if places.is_flipped[view, 0]:
            first[2] += step[2] * (cube.shape[3] - 1)
            step[2] = -step[2]
        affine = self.geometry.affine_ras @ np.diag([*step, 1.0])
        # From a slice that exists: behind a gap the affine alone is not where the slices are.
        slice_z = places.read_zyx[view, 0, 0, 0]
        origin = lps_to_ras(self.geometry.to_lps((slice_z, 0, 0)))
        affine[:3, 3] = origin + self.geometry.affine_ras[:3, :3] @ (first - np.array([slice_z, 0, 0]))
        meta = {name: value for name, value in self.source.meta.items() if name not in VOLUME_KEYS}
        return MetaTensor(cube, affine=torch.from_numpy(affine), meta=meta)


class RandCubed(Randomizable, MapTransform):
    """Cut a random cube for each key: the keys are the global views of one sample.

    Reads of the config what concerns the geometry of global views; window and normalization are the transforms that
    follow. Under `shared_scale` all keys get one scale, and around a point or in the lung one place. Adds
    `<key>_spacing_mm`, the sides (z, y, x) of the cube's voxels, beside each key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        config: ViewConfig,
        volume_key: str | None = None,
        z_key: str = "z",
        body_key: str | None = None,
        point_key: str | None = None,
        spacing_mm_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        """Name the views and what they are drawn from.

        Args:
            keys: The views. Without `volume_key` each holds its volume, in HU, which the cube replaces.
            config: Settings of the views, with `depth_px`.
            volume_key: Holds the volume of all views, so that it need not be copied.
            z_key: Holds the slice in whose thickness the middle of the cubes lies.
            body_key: Holds the body grid (32, 32) uint8 of that slice: 0 outside, 1 body, 2 lung.
            point_key: Holds a point (y, x) of it in pixel indices, for `center="point"`.
            spacing_mm_key: Holds the voxel spacing (z, y, x); a MetaTensor brings its own.
            allow_missing_keys: As in all MONAI transforms.

        Raises:
            TransformError: If the config is of triplets, or cubes are to be centered on something that no key holds.
        """
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.one = RandCube(config)
        needed = {"body": "body_key", "lung": "body_key", "point": "point_key", "uniform": ""}[config.center]
        if needed and {"body_key": body_key, "point_key": point_key}[needed] is None:
            raise TransformError(
                f"cubes centered on the {config.center} need {needed}; name it, or use center='uniform'"
            )
        self.volume_key, self.z_key, self.body_key = volume_key, z_key, body_key
        self.point_key, self.spacing_mm_key = point_key, spacing_mm_key

    def randomize(self, data: Any = None) -> None:
        """Draw the uniform numbers of all keys from `self.R`."""
        self.one.uniforms = self.R.random_sample((len(self.keys), UNIFORMS_PER_CROP))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut a cube for every key."""
        cut = dict(data)
        self.randomize()
        for view, key in enumerate(self.keys):
            source = key if self.volume_key is None else self.volume_key
            if source not in data and self.allow_missing_keys:
                continue
            spacing_mm, body, point = (
                data[own] if own else None for own in (self.spacing_mm_key, self.body_key, self.point_key)
            )
            volume = _Volume(self.one.config, data[source], spacing_mm, ())
            places = self.one.places(volume, data[self.z_key], body, point)
            cut[key] = self.one.cut(volume, places, view)
            cut[f"{key}_spacing_mm"] = self.one.spacing_mm[view]
        return cut
