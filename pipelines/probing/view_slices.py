"""Slices whose two views a probe compares, and the view configuration of a backbone's pretraining."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path

from pipelines.backbones.folder import LoadedBackbone
from pipelines.backbones.view_retrieval import SliceSample, sample_slices
from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import load_recipe, read_yaml
from pipelines.tracking.reading import fetch_artifact
from pipelines.training.config import PretrainConfig
from probes.refusals import TooFewError
from transforms.views.config import ViewConfig


def slices_of(
    loaded: LoadedBackbone, cohort: Cohort, patients: set[str], n_slices: int
) -> tuple[SliceSample, str]:
    """Choose up to `n_slices` slices of `patients`, and print how many are left out and why.

    Returns:
        The slices, and the origin of their view configuration.

    Raises:
        TooFewError: If they have fewer than two slices.
    """
    index = SliceIndex(cohort, patients)
    if len(index) < 2:
        raise TooFewError(
            f"{len(patients)} held-out patients have {len(index)} slices in cohort {cohort.root}; retrieval needs two"
        )
    views, origin = training_views(loaded)
    sample = sample_slices(index, views, n_slices)
    n_all, n_chosen = sum(int(shape[0]) for shape in cohort.series["shape"]), len(sample.rows)
    others = {
        "of patients that the backbone saw": n_all - len(index),
        f"beyond slices={n_slices}": len(index) - n_chosen,
    }
    print(Accounting("slices", n_all, "compared", n_chosen, +Counter(others)))  # + drops reasons with count 0
    return sample, origin


def training_views(loaded: LoadedBackbone) -> tuple[ViewConfig, str]:
    """Return the view configuration of a backbone's pretraining, and its origin as text.

    A backbone that does not come from a run gets the default views for its input size.
    """
    if not loaded.named_run:
        (r, g, b), (r_std, g_std, b_std) = loaded.backbone.mean, loaded.backbone.std
        views = ViewConfig(size_px=loaded.backbone.image_px, mean=(r, g, b), std=(r_std, g_std, b_std))
        return views, "default views"
    with tempfile.TemporaryDirectory() as folder:
        file = fetch_artifact(loaded.named_run, "config.yaml", Path(folder))
        views = load_recipe(PretrainConfig, read_yaml(file)).views
    return dataclasses.replace(views, size_px=loaded.backbone.image_px), "views of its pretraining"
