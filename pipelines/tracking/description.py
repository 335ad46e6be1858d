"""What a person sees of a run first in MLflow's pages: its name and its description."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.utils.name_utils as mlflow_names

from pipelines.tracking.changes import changes_of, changes_said
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun

HEADLINE = {
    "teacher/gain": "information gain G, nats",
    "loss/total": "loss",
    "retrieval/top1": "retrieval top-1",
    "retrieval/random_top1": "retrieval top-1, random weights",
    "probe/nested_p": "p: do the features know the rating beyond size and HU?",
    "probe/partial_r2": "partial R2 beyond size and HU",
    "probe/over_random_r2": "partial R2 above random weights",
    "probe/auroc": "malignancy AUROC of the features",
    "probe/finetuned_auroc": "malignancy AUROC, trained on the labels",
    "probe/diameter_auroc": "malignancy AUROC, readers' diameter",
    "probe/image_diameter_auroc": "malignancy AUROC, diameter in the image",
    "probe/random_auroc": "malignancy AUROC, random weights",
    "probe/dictionary_auroc": "malignancy AUROC, dictionary of patches",
    "probe/gain_over_diameter": "features with diameter, minus diameter",
    "probe/n_nodules": "nodules",
    "probe/n_unknown_diameter": "of these without a diameter, left out where one is needed",
    "external/auroc": "test cohort: malignancy AUROC of the features",
    "external/diameter_auroc": "test cohort: malignancy AUROC, diameter",
    "aggregation/center_auroc": "malignancy AUROC of the center slice",
    "aggregation/attention_z_auroc": "malignancy AUROC, attention over z",
    "aggregation/attention_z_over_own_center": "attention over z, minus its own center slice",
    "representation/centered_effective_rank": "effective rank",
    "representation/random_centered_effective_rank": "effective rank, random weights",
    "dense/dice": "Dice",
    "dense/random_weights_dice": "Dice, random weights",
    "dense/pixels_dice": "Dice, pixels",
    "prepare/volumes": "volumes",
    "prepare/patients": "patients",
    "prepare/nodules": "nodules",
    "prepare/refused_files": "refused files",
}
"""The metrics of a description, those that a run has, in this order, in a few words each."""
_WARNINGS = {
    Tag.LEAK: "figures may be too good, some patients or labels were seen before",
    Tag.NODULES: "the table of nodules has changed since the pretraining, which drew by it",
    Tag.SCALE: "pixels were shown at a size that the pretraining never saw",
}


def is_made_up(name: str) -> bool:
    """Return whether MLflow made up the name of a run, such as `upset-moth-519`."""
    first, _, rest = name.partition("-")
    noun, _, number = rest.rpartition("-")
    return (
        first in getattr(mlflow_names, "_GENERATOR_PREDICATES", ())
        and noun in getattr(mlflow_names, "_GENERATOR_NOUNS", ())
        and number.isdigit()
    )


HEAD = ("", "", "95% interval")
"""Of the table of headline figures."""


def spoken_name(entry_point: str, recipe: str, config: Any, run_id: str) -> str:
    """Return a name that says what a run is: `pretrain vit_small lidc 3f1a`.

    Args:
        entry_point: Its first word.
        recipe: Name of the recipe; "" without one.
        config: Its `backbone` and `cohort`, where it has them, are named by their last part.
        run_id: Of which the first four digits tell equal runs apart.
    """
    named = [getattr(config, name, "") for name in ("backbone", "cohort")]
    words = [entry_point, recipe, *(last_parts(name) for name in named if isinstance(name, str)), run_id[:4]]
    return " ".join(filter(None, words))


def last_parts(names: str) -> str:
    """Return the folders or backbones of an option, with commas between, without their paths."""
    parts = []
    for name in names.split(","):
        run_id = name.strip().removeprefix("runs:/")
        parts.append(run_id[:4] if run_id != name.strip() else Path(run_id.rpartition(":")[2]).name)
    return " ".join(parts)


def description(run: StoredRun, next_step: str = "") -> str:
    """Describe a run in Markdown: how it ended, headline figures with intervals, cohort, warnings, what to do next."""
    ended = run.tags.get(Tag.ERROR) or run.tags.get(Tag.STATUS) or "done"
    lines = [f"**{run.tags.get(Tag.ENTRY_POINT, '')}: {ended}**", *_table(run.metrics)]
    if sha := run.tags.get(Tag.COHORT_SHA):
        name = last_parts(run.params.get("cohort", "")) or "cohort"
        lines += [
            "",
            f"Cohort {name}: {run.tags.get(Tag.COHORT_KIND, 'kind unknown')}, SHA-256 `{sha[:12]}`.",
        ]
    for tag, meaning in _WARNINGS.items():
        if run.tags.get(tag):
            lines += ["", f"**Warning** ({run.tags[tag]}): {meaning}."]
    if changes := changes_of(run.tags):
        lines += ["", f"**Changed on resume**: {changes_said(changes)}."]
    if next_step:
        lines += ["", f"Next: `{next_step}`"]
    return "\n".join(lines)


def headline(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Return label, value and interval of each headline figure that a run has."""
    known = {name: label for name, label in HEADLINE.items() if name in metrics}
    return [(f"{label} (`{name}`)", *_parts(metrics, name)) for name, label in known.items()]


def figure_of(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric as text, with its interval where there is one; "" without it."""
    if name not in metrics:
        return ""
    value, interval = _parts(metrics, name)
    return f"{value} [{interval}]" if interval else value


def _parts(metrics: Mapping[str, float], name: str) -> tuple[str, str]:
    low, high = (metrics.get(f"{name}_ci_{end}") for end in ("low", "high"))
    interval = f"{low:.3f} to {high:.3f}" if low is not None and high is not None else ""
    value = metrics[name]
    return f"{value:.0f}" if value == round(value) and abs(value) >= 2 else f"{value:.4g}", interval


def _table(metrics: Mapping[str, float]) -> list[str]:
    rows = headline(metrics)
    lines = [HEAD, ("---",) * len(HEAD), *rows] if rows else []
    return ["", *(f"| {' | '.join(line)} |" for line in lines)] if rows else []
