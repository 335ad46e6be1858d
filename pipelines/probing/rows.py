"""The rows of a malignancy probe: what each is fitted on, and its out-of-fold scores in the same folds."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.nodule.labeled import NoduleSet, nodule_set
from pipelines.probing.config import ProbeConfig
from pipelines.probing.folds import Fold
from pipelines.probing.reading import NoduleVectors
from pipelines.probing.setup import among, pixels_of
from probes.dictionary import PATCH_MM_PER_PX, Words, dictionary_features, learn_dictionary
from probes.nodule_rays import NoduleRegion, attenuation_inside, nodule_region
from probes.partial.base import Attenuation
from probes.scoring import Factory, Parts, Target, checked_diameter
from probes.splits import is_held_out
from probes.statistics.checks import UnmeasurableError
from transforms.nodule_crop import CropSpec

SPEC = CropSpec(size_mm=50.0, out_px=round(50.0 / PATCH_MM_PER_PX))
"""Crops for finding nodules and for the dictionary; every nodule of LIDC fits."""
_DICTIONARIES: tuple[tuple[str, Words], ...] = (("dictionary", "kmeans"), ("random_words", "random"))


@dataclass(frozen=True)
class Found:
    """The nodules as they are found in their images, from their centers alone.

    Attributes:
        slices_hu: Center slices at 0.5 mm per pixel, (n, 100, 100).
        region: Mask, ring and sizes of each nodule there.
        attenuation: HU inside each mask.
    """

    slices_hu: NDArray[np.float32]
    region: NoduleRegion
    attenuation: Attenuation

    def of_rows(self, rows: NDArray[np.int64]) -> "Found":
        """Return some of the nodules."""
        return Found(
            self.slices_hu[rows],
            NoduleRegion(*(values[rows] for values in astuple(self.region))),
            Attenuation(*(values[rows] for values in self.attenuation)),
        )

    def and_then(self, other: "Found") -> "Found":
        """Return these nodules and, after them, others."""
        regions = zip(astuple(self.region), astuple(other.region), strict=True)
        columns = zip(self.attenuation, other.attenuation, strict=True)
        return Found(
            np.concatenate([self.slices_hu, other.slices_hu]),
            NoduleRegion(*map(np.concatenate, regions)),
            Attenuation(*map(np.concatenate, columns)),
        )


@dataclass(frozen=True)
class Inputs:
    """What the rows are fitted on, each in the folds of the backbone.

    Attributes:
        features: Of the backbone, or of several that are cross-fitted.
        twins: Of the same architectures with random weights, one a seed; none where nothing can be randomized.
        others: Rows that need no network: `hu`, and `dictionary` and `random_words` where they could be learned.
        pixels: Gray values.
    """

    features: Parts
    twins: Sequence[Parts]
    others: dict[str, Parts]
    pixels: Parts


def find_nodules(
    config: ProbeConfig, cohort: Cohort, nodules: NoduleSet, diagnosis: pd.DataFrame | None
) -> "Found":
    """Find each nodule on its center slice."""
    wide = among(nodule_set(cohort, config.rule, SPEC, diagnosis=diagnosis), nodules)
    slices_hu = wide.crops_hu[:, 1]
    region = nodule_region(slices_hu, SPEC.mm_per_px)
    return Found(slices_hu, region, attenuation_inside(slices_hu, region.mask))


def gather_inputs(
    config: ProbeConfig,
    cohort: Cohort,
    found: Found,
    readers: Sequence[NoduleVectors],
    folds: Sequence[Sequence[Fold]],
    diagnosis: pd.DataFrame | None = None,
) -> Inputs:
    """Gather the inputs of every row.

    Args:
        config: Configuration of the probe.
        cohort: Cohort of the nodules.
        found: Its nodules in their images.
        readers: One per backbone, or of an encoder or a table.
        folds: Of each backbone.
        diagnosis: As in `nodule_set`.
    """
    nodules = readers[0].nodules
    every_fold = [fold for one in folds for fold in one]
    first = np.array([is_held_out(patient, "half_a") for patient in nodules.patient_ids])
    halves = [(~first, first), (first, ~first)] if first.any() and not first.all() else []
    return Inputs(
        [(reader.learned(), own) for reader, own in zip(readers, folds, strict=True)],
        [
            [(reader.twin(config.seed + twin), own) for reader, own in zip(readers, folds, strict=True)]
            for twin in range(min(reader.twins for reader in readers))
        ],
        without_network(found, every_fold, halves, config.seed) if config.baselines == "all" else {},
        [(pixels_of(config, cohort, nodules, diagnosis), every_fold)],
    )


def without_network(
    found: Found,
    folds: Sequence[Fold],
    halves: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    seed: int,
) -> dict[str, Parts]:
    """Return the inputs of the rows that need no network.

    Args:
        found: The nodules in their images.
        folds: Training and test rows.
        halves: Nodules on which a dictionary is learned, without labels, and nodules that it is tested on, (n,) each;
            none: no dictionary.
        seed: Of the dictionaries.
    """
    rows: dict[str, Parts] = {"hu": [(np.column_stack(found.attenuation), folds)]}
    for name, words in _DICTIONARIES if halves else ():
        parts = []
        for learned, own in halves:
            dictionary = learn_dictionary(found.slices_hu[learned], words, seed=seed)
            features = dictionary_features(dictionary, found.slices_hu, found.region)
            tested = [(train, test[own[test]]) for train, test in folds]
            parts.append((features, [fold for fold in tested if len(fold[1])]))
        rows[name] = [part for part in parts if part[1]]
    return rows


def score_rows(
    inputs: Inputs, target: Target, nodules: NoduleSet, found: Found, factory: Factory | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return out-of-fold scores by row, (n,) each, or (S, n) of random weights; NaN where a nodule is never tested.

    Args:
        inputs: Of the rows.
        target: What is fitted.
        nodules: Of the probe.
        found: In their images.
        factory: Head of the features and of the random weights; None: linear.
    """
    rows = {"features": target.score(inputs.features, factory)}
    if inputs.twins:
        rows["random_weights"] = np.stack([target.score(twin, factory) for twin in inputs.twins])
    rows["pixels"] = target.score_pixels(inputs.pixels)
    rows |= {name: target.score(parts) for name, parts in inputs.others.items()}
    size = found.region.diameter_mm
    rows["image_diameter"] = np.where(np.isfinite(rows["features"]), size, np.nan)
    has_vectors = np.asarray(inputs.features[0][0]).ndim == 2
    if has_vectors:
        rows["features_and_image_diameter"] = target.score_with_size(inputs.features, size)
    diameter = checked_diameter(nodules.diameter_mm, len(nodules.labels))
    if diameter is None:
        return rows
    try:
        return rows | joined_with(diameter, inputs, target, has_vectors)
    except UnmeasurableError as reason:
        if np.isfinite(diameter).all():
            raise
        print(f"no row with the diameter, which {np.isnan(diameter).sum()} nodules lack: {reason}")
        return rows


def joined_with(
    diameter_mm: NDArray[np.float64], inputs: Inputs, target: Target, has_vectors: bool
) -> dict[str, NDArray[np.float64]]:
    """Return the out-of-fold scores of the rows joined with the diameter; NaN too where it is not known."""
    rows: dict[str, NDArray[np.float64]] = {}
    if has_vectors:
        rows["features_and_diameter"] = target.score_with_size(inputs.features, diameter_mm)
        twins = [target.score_with_size(twin, diameter_mm) for twin in inputs.twins]
        if twins:
            rows["random_weights_and_diameter"] = np.stack(twins)
    rows["pixels_and_diameter"] = target.score_pixels(inputs.pixels, diameter_mm)
    for name, parts in inputs.others.items():
        rows[f"{name}_and_diameter"] = target.score_with_size(parts, diameter_mm)
    return rows
