"""Frozen features of a 3D backbone on cubes around nodules, computed once."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.backbone import Backbone
from pipelines.backbones.config import FeatureName, WindowName
from pipelines.backbones.cube_features import encode_nodule_cubes
from pipelines.backbones.features import FeatureCache
from pipelines.backbones.folder import LoadedBackbone, random_twin
from pipelines.nodule.cubes import Cubes
from pipelines.nodule.labeled import NoduleSet
from pipelines.runtime.distributed import choose_device
from transforms.nodule_cube import CubeSpec

CUBES_AT_ONCE = 16


def cube_spec(loaded: LoadedBackbone, size_mm: float) -> CubeSpec:
    """Return the cubes of a 3D backbone: `size_mm` in the plane, voxels as long along z as those of its pretraining.

    Without a record of its pretraining, voxels are cubic.
    """
    backbone, record = loaded.backbone, loaded.record
    mm, along_z = size_mm / backbone.image_px, 1.0
    if record.get("mm_per_slice") and record.get("mm_per_pixel"):
        z_mm, in_plane_mm = (np.sqrt(np.prod(record[name])) for name in ("mm_per_slice", "mm_per_pixel"))
        along_z = float(z_mm / in_plane_mm)
    shape = (backbone.image_depth_px, backbone.image_px, backbone.image_px)
    return CubeSpec(shape=shape, spacing_mm=(mm * along_z, mm, mm))


class CubeTokens:
    """Features of one 3D backbone on the cubes of nodules, from the cache if they were computed before."""

    def __init__(
        self,
        loaded: LoadedBackbone,
        cubes: Cubes,
        nodules: NoduleSet,
        window: WindowName,
        features: FeatureName,
        device: str,
        cache: FeatureCache,
        twins: int,
    ) -> None:
        """Encode nothing yet."""
        self.loaded, self.cubes, self.nodules, self.twins = loaded, cubes, nodules, twins
        self.window, self.features, self.device, self.cache = window, features, choose_device(device), cache

    def learned(self) -> NDArray[np.float32]:
        """Return the features of the backbone."""
        return self._read(self.loaded.backbone, self.loaded.sha256, self.cubes)

    def twin(self, seed: int) -> NDArray[np.float32]:
        """Return the features of the same architecture with random weights."""
        return self._read(random_twin(self.loaded, seed), f"random {seed} {self.loaded.config}", self.cubes)

    def misinformed(self, seed: int) -> NDArray[np.float32] | None:
        """Return the features where each nodule is told another's spacing; None where the network takes none."""
        if not self.loaded.backbone.takes_spacing:
            return None
        order = np.random.default_rng(seed).permutation(len(self.cubes.places))
        return self._read(self.loaded.backbone, self.loaded.sha256, replace(self.cubes, order=order))

    def _read(self, backbone: Backbone, name: str, cubes: Cubes) -> NDArray[np.float32]:
        scale = self.loaded.hu_scale
        settings = {
            "window": self.window,
            "features": self.features,
            "gray": [scale, backbone.mean, backbone.std],
        }
        key = self.cache.key(name, cubes.identity(), **settings)
        found = self.cache.read(key)
        if found is None:
            batches = cubes.batches(CUBES_AT_ONCE)
            found = encode_nodule_cubes(backbone, batches, self.window, self.features, self.device, scale)
            self.cache.write(key, found)
        return found
