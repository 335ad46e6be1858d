"""Folds and slices of a probe, with the patients that its backbone may test."""

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone
from pipelines.backbones.view_retrieval import SliceSample, sample_slices
from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import find_recipe, load_recipe, read_yaml
from pipelines.encoders.source import Source
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import FoldedProbe
from pipelines.probing.readers import ProbeError, Reader
from pipelines.tracking.reading import fetch_artifact
from pipelines.training.config import PretrainConfig
from probes.splits import patient_folds, split_60_20_20
from probes.statistics.checks import TooFewError
from transforms.refusal import number_of
from transforms.views.config import ViewConfig

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows to fit on and rows to test on."""


@dataclasses.dataclass(frozen=True)
class FoldPlan:
    """Folds, and the table that the run stores."""

    folds: list[Fold]
    table: pd.DataFrame


def fold_plan(config: FoldedProbe, reader: Reader[Source] | None, nodules: NoduleSet) -> FoldPlan:
    """Make the folds: test patients are those that the backbone may test, training patients all others.

    Args:
        config: How to split.
        reader: The backbone and its patients; None without one: all patients are tested.
        nodules: Nodules to split, by patient.

    Raises:
        TooFewError: If a class, or, for a probe that needs no label, all nodules have too few patients to test on.
    """
    try:
        return _plan(config, reader, nodules.patient_ids, nodules.labels)
    except TooFewError:
        if config.labels_needed:
            raise
        return _plan(config, reader, nodules.patient_ids, None)


def _plan(
    config: FoldedProbe,
    reader: Reader[Source] | None,
    patients: NDArray[np.str_],
    labels: NDArray[np.int64] | None,
) -> FoldPlan:
    tested = set(patients.tolist()) if reader is None else reader.tested
    if config.split == "article":
        rows = np.flatnonzero(np.isin(patients, sorted(tested)))
        truth = None if labels is None else labels[rows]
        fit, choose, score = split_60_20_20(patients[rows].tolist(), truth, config.seed)
        train = rows[np.sort(np.concatenate([fit, choose]))]
        table = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": np.unique(patients[rows[score]])})
        return FoldPlan([(train, rows[score])], table)
    splits = patient_folds(
        patients.tolist(),
        labels,
        tested=tested,
        n_folds=config.folds,
        n_repeats=config.repeats,
        seed=config.seed,
    )
    return FoldPlan([(fold.train, fold.test) for fold in splits], splits.table())


def slices_of(
    loaded: LoadedBackbone, cohort: Cohort, patients: set[str], n_slices: int, recipe: str = ""
) -> tuple[SliceSample, str]:
    """Choose up to `n_slices` slices of `patients`, and print how many are left out and why.

    Args:
        loaded: The backbone.
        cohort: Where the slices are.
        patients: Whose slices are chosen.
        n_slices: At most so many.
        recipe: Whose views are drawn; "" draws those of the backbone's pretraining.

    Returns:
        The slices, and the origin of their view configuration.

    Raises:
        TooFewError: If they have fewer than two slices.
        ProbeError: If the network reads cubes and the recipe draws slices, or the other way around.
    """
    views, origin = views_of_recipe(loaded, recipe) if recipe else training_views(loaded)
    index = SliceIndex(cohort, patients, views=views)
    for sentence in index.said:
        print(sentence)
    if len(index) < 2:
        raise TooFewError(
            f"{number_of(len(index), 'slice')} of {number_of(len(patients), 'held-out patient')} in cohort"
            f" {cohort.root}; retrieval needs two slices"
        )
    sample = sample_slices(index, views, n_slices)
    n_all, n_chosen = sum(int(shape[0]) for shape in cohort.series["shape"]), len(sample.rows)
    theirs = cohort.series.loc[cohort.series["patient_id"].isin(patients), "shape"]
    n_theirs = sum(int(shape[0]) for shape in theirs)
    others = {
        "of patients that the backbone saw": n_all - n_theirs,
        "in volumes that hold no cube": n_theirs - len(index),
        f"beyond slices={n_slices}": len(index) - n_chosen,
    }
    print(Accounting("slices", n_all, "compared", n_chosen, +Counter(others)))  # + drops reasons with count 0
    return sample, origin


def views_of_recipe(loaded: LoadedBackbone, recipe: str) -> tuple[ViewConfig, str]:
    """Return the views of a recipe at the backbone's own input size and scale of HU, and their origin as text.

    Raises:
        ProbeError: If the network reads cubes and the recipe draws slices, or the other way around.
    """
    views = load_recipe(PretrainConfig, read_yaml(find_recipe(recipe))).views
    if views.is_3d != bool(loaded.backbone.image_depth_px):
        reads, draws = ("slices", "cubes") if views.is_3d else ("cubes", "slices")
        raise ProbeError(
            f"backbone {loaded.source} reads {reads} and views={recipe} draws {draws}; name a recipe of {reads}"
        )
    window = dataclasses.replace(views.window, hu_scale=loaded.hu_scale)
    depth_px = loaded.backbone.image_depth_px if views.is_3d else views.depth_px
    views = dataclasses.replace(views, size_px=loaded.backbone.image_px, depth_px=depth_px, window=window)
    return views, f"views of recipe {recipe}"


def training_views(loaded: LoadedBackbone) -> tuple[ViewConfig, str]:
    """Return the view configuration of a backbone's pretraining, and its origin as text.

    A backbone that does not come from a run gets the default views for its input size.
    """
    if not loaded.named_run:
        # A network that reads cubes has one channel.
        (r, g, b), (r_std, g_std, b_std) = (
            (3 * own)[-3:] for own in (loaded.backbone.mean, loaded.backbone.std)
        )
        views = ViewConfig(size_px=loaded.backbone.image_px, mean=(r, g, b), std=(r_std, g_std, b_std))
        if loaded.backbone.image_depth_px:
            low, high = (mm * views.size_px for mm in loaded.record.get("mm_per_pixel") or (1.0, 1.0))
            depth_px = loaded.backbone.image_depth_px
            views = dataclasses.replace(views, depth_px=depth_px, extent="mm", fov_mm=(low, high))
        return views, "default views"
    with tempfile.TemporaryDirectory() as folder:
        file = fetch_artifact(loaded.named_run, "config.yaml", Path(folder))
        views = load_recipe(PretrainConfig, read_yaml(file)).views
    return dataclasses.replace(views, size_px=loaded.backbone.image_px), "views of its pretraining"
