"""Features of a frozen backbone and of its random-weight twins, computed in the same way on the same nodules."""

import numpy as np
from numpy.typing import NDArray

from models.backbone import Backbone
from pipelines.backbones.features import FeatureCache, encode
from pipelines.backbones.folder import LoadedBackbone, random_twin
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig
from pipelines.runtime.distributed import choose_device
from pipelines.runtime.paths import PROJECT_ROOT
from probes.nodule_rays import NoduleRegion, nodule_region


class FrozenFeatures:
    """Features of one backbone on the nodules of a probe, from the cache if they were computed before."""

    def __init__(self, config: ProbeConfig, loaded: LoadedBackbone, nodules: NoduleSet) -> None:
        """Find the nodules in their crops if features are computed inside them (`roi`)."""
        self.config, self.loaded, self.nodules = config, loaded, nodules
        self.mm_per_px = float(np.median(nodules.mm_per_px))
        self.cache = FeatureCache(PROJECT_ROOT / config.runs_dir / "features")
        self.region: NoduleRegion | None = None
        if config.features == "roi":
            self.region = nodule_region(nodules.crops_hu[:, 1], self.mm_per_px)
            patch_mm = loaded.backbone.patch_px * self.mm_per_px
            coarse = int((self.region.diameter_mm < patch_mm).sum())
            if coarse:
                print(
                    f"{coarse} of {len(nodules.labels)} nodules are narrower than one patch of {patch_mm:.1f} mm"
                )

    def learned(self) -> NDArray[np.float32]:
        """Return the features of the backbone."""
        return self._read(self.loaded.backbone, self.loaded.sha256)

    def twin(self, seed: int) -> NDArray[np.float32]:
        """Return the features of the same architecture with random weights."""
        # Random weights have no hash; seed and architecture identify them, and their input is that of the backbone.
        name = f"random {seed} {self.loaded.config}"
        if self.loaded.config.stem == "whitened":  # whose whitening is the backbone's
            name += self.loaded.sha256
        return self._read(random_twin(self.loaded, seed), name)

    def _read(self, backbone: Backbone, name: str) -> NDArray[np.float32]:
        config, scale = self.config, self.loaded.hu_scale
        settings = {"mm_per_px": self.mm_per_px, "window": config.window, "features": config.features}
        gray = [scale, backbone.mean, backbone.std]
        key = self.cache.key(name, self.nodules.crops_hu, gray=gray, **settings)
        found = self.cache.read(key)
        if found is None:
            found = encode(
                backbone,
                self.nodules.crops_hu,
                self.mm_per_px,
                config.window,
                config.features,
                choose_device(config.device),
                scale,
                region=self.region,
            )
            self.cache.write(key, found)
        return found
