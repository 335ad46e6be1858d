"""Vectors of the nodules of a probe: of a frozen backbone, of an encoder of cubes, or from a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.backbone import Backbone
from pipelines.backbones.config import FeatureName
from pipelines.backbones.cube_tokens import CubeTokens, cube_spec
from pipelines.backbones.features import FeatureCache, encode
from pipelines.backbones.folder import LoadedBackbone, random_twin
from pipelines.cohort.folder import Cohort
from pipelines.encoders.cube_encoder import CubeEncoder, Network, encode_cubes
from pipelines.encoders.opening import open_encoder
from pipelines.encoders.source import Source
from pipelines.encoders.table import FeatureTable, open_table
from pipelines.nodule.cubes import Cubes
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig, table_of
from pipelines.probing.readers import ProbeError, open_backbones
from pipelines.probing.setup import left_out, of_rows
from pipelines.runtime.distributed import choose_device
from pipelines.runtime.paths import PROJECT_ROOT
from probes.nodule_rays import NoduleRegion, nodule_region
from probes.statistics.metrics import auroc

TWINS = 5
"""Networks with random weights beside a backbone."""
IMAGE_PX = 100
"""Side of the crops of a probe without a 2D backbone."""
LABEL_AUROC = 0.995
"""Of one column of a table, from which it is said to hold the label."""

Floats = NDArray[np.float32]


class NoduleVectors(Protocol):
    """One vector a nodule, (n, D), or several, (n, N, D), and those of random weights made in the same way.

    Attributes:
        nodules: Whose they are.
        twins: How many random twins there are; 0 where nothing can be randomized.
    """

    nodules: NoduleSet
    twins: int

    @property
    def loaded(self) -> Source:
        """What they come from."""

    @property
    def cubes(self) -> Cubes | None:
        """What is read of the nodules, by what reads cubes."""

    def learned(self) -> Floats:
        """Return the vectors."""

    def twin(self, seed: int) -> Floats:
        """Return those of the same architecture with random weights."""


def open_sources(config: ProbeConfig) -> Sequence[Source]:
    """Open what a probe reads: backbones, of which several are cross-fitted, one encoder, or one table.

    Raises:
        Refusal: If it cannot be opened.
    """
    if config.encoder:
        return [open_encoder(config.encoder)]
    if table_of(config):
        return [open_table(table_of(config), config.match_mm)]
    return open_backbones(config.backbone, config.image_px or None)


def input_px(opened: Sequence[Source]) -> int:
    """Return the side of the crops, in pixels."""
    first = opened[0]
    return first.backbone.image_px if isinstance(first, LoadedBackbone) else IMAGE_PX


def readable(config: ProbeConfig, cohort: Cohort, opened: Sequence[Source], nodules: NoduleSet) -> NoduleSet:
    """Return the nodules that can be read; those whose cube cannot be cut are left out, counted by reason.

    Raises:
        ProbeError: If none is left, or an option does not go with what reads them.
    """
    source = opened[0].source
    cubes = cubes_read(config, cohort, opened[0], nodules)
    if cubes is None:
        if config.voxels == "own":
            raise ProbeError(f"voxels=own is of 3D backbones; {source} does not read cubes so")
        return nodules
    if config.input == "whole_slice":
        raise ProbeError(f"input=whole_slice shows slices; {source} reads cubes, input=crop")
    is_cut = cubes.can_be_cut()
    if not is_cut.any():
        raise ProbeError(f"slices are missing around every nodule, so that {source} has no cube")
    n_flat = int(cubes.is_flat()[is_cut].sum())
    if config.voxels == "own":  # Scales are those of the volumes, not of size_mm.
        nodules = replace(nodules, mm_per_px=np.sqrt(cubes.spacing_mm()[:, 1:].prod(1)))
    if not is_cut.all():
        reason = "no cube (slices are missing inside it)"
        nodules = of_rows(nodules, np.flatnonzero(is_cut), left_out(nodules, ~is_cut, reason))
    if n_flat:
        print(
            f"no z: {n_flat} of {len(nodules.labels)} nodules lie in patches as long as they are; {source}"
            " gets their center slice repeated along z"
        )
    return nodules


def cubes_read(
    config: ProbeConfig, cohort: Cohort, loaded: Source, nodules: NoduleSet | None = None
) -> Cubes | None:
    """Return the cubes that an encoder of cubes or a 3D backbone reads, around no place without nodules; else None."""
    own_voxels = config.voxels == "own"
    if isinstance(loaded, CubeEncoder) and not own_voxels:
        spec = loaded.spec
    elif isinstance(loaded, LoadedBackbone) and loaded.backbone.image_depth_px:
        spec = cube_spec(loaded, config.size_mm)
    else:
        return None
    if nodules is None:
        return Cubes(cohort, [], spec, own_voxels)
    return Cubes.around(cohort, nodules.table, spec, own_voxels)


def vectors_of(
    config: ProbeConfig,
    loaded: Source,
    cohort: Cohort,
    nodules: NoduleSet,
    others: Sequence[Cohort] = (),
) -> NoduleVectors:
    """Return the vectors of nodules that a probe reads.

    Args:
        config: Of the probe.
        loaded: What they come from.
        cohort: Of the nodules.
        nodules: As `readable` returns them.
        others: Further cohorts, whose nodules a table may hold too.

    Raises:
        TableError: If a table does not hold one vector for each nodule.
    """
    if isinstance(loaded, CubeEncoder):
        return CubeFeatures(config, loaded, cohort, nodules)
    if isinstance(loaded, FeatureTable):
        return TableFeatures(loaded, nodules, [cohort, *others])
    assert isinstance(loaded, LoadedBackbone)
    cubes = cubes_read(config, cohort, loaded, nodules)
    if cubes is None:
        return FrozenFeatures(config, loaded, nodules)
    twins = TWINS if config.head == "logistic" else 1
    features: FeatureName = config.features  # type: ignore[assignment]  # a table has no backbone
    cache = feature_cache(config)
    return CubeTokens(loaded, cubes, nodules, config.window, features, config.device, cache, twins)


class FrozenFeatures:
    """Features of one 2D backbone on the nodules of a probe, from the cache if they were computed before."""

    cubes = None

    def __init__(self, config: ProbeConfig, loaded: LoadedBackbone, nodules: NoduleSet) -> None:
        """Find the nodules in their crops if features are computed inside them (`roi`)."""
        self.config, self.loaded, self.nodules = config, loaded, nodules
        self.twins = TWINS if config.head == "logistic" else 1
        self.mm_per_px = float(np.median(nodules.mm_per_px))
        self.cache = feature_cache(config)
        self.region: NoduleRegion | None = None
        if config.features == "roi":
            self.region = nodule_region(nodules.crops_hu[:, 1], self.mm_per_px)
            patch_mm = loaded.backbone.patch_px * self.mm_per_px
            coarse = int((self.region.diameter_mm < patch_mm).sum())
            if coarse:
                print(
                    f"{coarse} of {len(nodules.labels)} nodules are narrower than one patch of {patch_mm:.1f} mm"
                )

    def learned(self) -> Floats:
        """Return the features of the backbone."""
        return self._read(self.loaded.backbone, self.loaded.sha256)

    def twin(self, seed: int) -> Floats:
        """Return the features of the same architecture with random weights."""
        # Random weights have no hash; seed and architecture identify them, and their input is that of the backbone.
        name = f"random {seed} {self.loaded.config}"
        if self.loaded.config.stem == "whitened":  # whose whitening is the backbone's
            name += self.loaded.sha256
        return self._read(random_twin(self.loaded, seed), name)

    def _read(self, backbone: Backbone, name: str) -> Floats:
        config, scale = self.config, self.loaded.hu_scale
        settings: dict[str, Any] = {
            "mm_per_px": self.mm_per_px,
            "window": config.window,
            "features": config.features,
        }
        gray = [scale, backbone.mean, backbone.std]
        slice_mm = self.nodules.table["spacing_z_mm"].tolist()
        if backbone.takes_spacing:
            settings["slice_mm"] = slice_mm
        key = self.cache.key(name, self.nodules.crops_hu, gray=gray, **settings)
        found = self.cache.read(key)
        if found is None:
            found = encode(
                backbone,
                self.nodules.crops_hu,
                self.mm_per_px,
                config.window,
                config.features,  # type: ignore[arg-type]  # a table has no backbone
                choose_device(config.device),
                scale,
                region=self.region,
                slice_mm=slice_mm,
            )
            self.cache.write(key, found)
        return found


class CubeFeatures:
    """Features of an encoder of cubes, from the cache if they were computed before."""

    def __init__(self, config: ProbeConfig, loaded: CubeEncoder, cohort: Cohort, nodules: NoduleSet) -> None:
        """Encode nothing yet."""
        self.loaded, self.nodules = loaded, nodules
        self.cubes = Cubes.around(cohort, nodules.table, loaded.spec)
        most = TWINS if config.head == "logistic" else 1
        self.twins = 0 if loaded.random is None else min(loaded.twins, most)
        self.cache = feature_cache(config)

    def learned(self) -> Floats:
        """Return the features of the encoder."""
        if not self.loaded.sha256:  # Nothing says whether a function is still what it was.
            return encode_cubes(self.loaded, self.cubes)
        return self._read(self.loaded.network, self.loaded.sha256)

    def twin(self, seed: int) -> Floats:
        """Return the features of the same architecture with random weights."""
        if self.loaded.random is None:
            raise ValueError(f"{self.loaded.source} has no random twin")
        name = f"random {seed} {self.loaded.architecture}"
        return self._read(self.loaded.random(seed), name)

    def _read(self, network: Network, name: str) -> Floats:
        key = self.cache.key(name, self.cubes.identity())
        found = self.cache.read(key)
        if found is None:
            found = encode_cubes(replace(self.loaded, network=network), self.cubes)
            self.cache.write(key, found)
        return found


class TableFeatures:
    """Vectors of a table."""

    cubes = None
    twins = 0

    def __init__(self, loaded: FeatureTable, nodules: NoduleSet, cohorts: Sequence[Cohort]) -> None:
        """Find the row of each nodule."""
        self.loaded, self.nodules = loaded, nodules
        self.rows = loaded.rows_of(nodules.table, [cohort.nodules for cohort in cohorts])

    def learned(self) -> Floats:
        """Return the vectors."""
        return self.loaded.vectors[self.rows]

    def tells(self, labels: NDArray[np.int64]) -> str:
        """Return a column that alone tells the labels (n,) apart, with its AUROC; "" if none does.

        No image predicts readers so well: the column was made from the labels.
        """
        once = np.ones((1, len(labels)))
        areas = [float(auroc(labels, column.astype(np.float64), once)[0]) for column in self.learned().T]
        best = int(np.argmax(np.abs(np.array(areas) - 0.5)))
        is_telling = abs(areas[best] - 0.5) >= LABEL_AUROC - 0.5
        return f"'{self.loaded.columns[best]}' (AUROC {areas[best]:.3f})" if is_telling else ""

    def twin(self, seed: int) -> Floats:
        """Nothing can be randomized."""
        raise ValueError(f"{self.loaded.source} has no random twin {seed}")


def feature_cache(config: ProbeConfig) -> FeatureCache:
    """Return the features on disk."""
    return FeatureCache(PROJECT_ROOT / config.runs_dir / "features")
