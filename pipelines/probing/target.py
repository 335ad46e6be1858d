"""What a malignancy probe is fitted to: the readers' mean rating, the label, or a column of the table of nodules."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig
from pipelines.probing.question import CONTROL_DRAWS, Question, rating_of
from pipelines.probing.readers import ProbeError
from pipelines.probing.rows import Found, Inputs
from pipelines.probing.setup import left_out, of_rows
from probes.scoring import Parts, Target
from probes.statistics.checks import UnmeasurableError
from probes.statistics.estimate import Estimate
from probes.statistics.metrics import auroc_with_interval

RATED = ("consensus", "article", "luna_fmcib")
"""Rules whose label sums up the readers' ratings."""
_NAMED = ("", "rating", "label")


@dataclasses.dataclass(frozen=True)
class Aim:
    """What is predicted of each nodule.

    Attributes:
        nodules: Those whose value is known; a column of two values has taken the place of their labels.
        rating: Numbers that a ridge is fitted to, (n,); None: the labels.
        asked: What the primary test is about, (n,).
        classes: Of a column of several names, (n,); the table is then fitted to the label, and each class has an AUROC.
    """

    nodules: NoduleSet
    rating: NDArray[np.float64] | None
    asked: NDArray[np.float64]
    classes: NDArray[np.str_] | None = None

    def target(self, config: ProbeConfig, tested: NDArray[np.int64]) -> Target:
        """Return the target of the rows; all scores are ranked together, so all folds share one prior."""
        labels = self.nodules.labels
        is_column = config.target not in _NAMED
        prior = float(labels[tested].mean())
        return Target(labels, self.nodules.patient_ids, prior, self.rating, config.seed, is_signed=is_column)


def aim_of(config: ProbeConfig, nodules: NoduleSet) -> Aim:
    """Return what the probe is fitted to.

    Raises:
        ProbeError: If ratings are asked for that not every nodule has, or a column that is not there, holds one value,
            or needs another head.
    """
    if config.target not in _NAMED:
        return _of_column(config, nodules)
    has_ratings = all(len(one) for one in nodules.table["malignancy_ratings"])
    is_rating = config.target == "rating"
    if is_rating and not has_ratings:
        raise ProbeError("target=rating needs readers' ratings of every nodule; use target=label")
    if not config.target and config.head == "logistic" and config.input == "crop":
        is_rating = has_ratings and config.rule in RATED
    return Aim(nodules, rating_of(nodules) if is_rating else None, rating_of(nodules, config.target))


def _of_column(config: ProbeConfig, nodules: NoduleSet) -> Aim:
    name = config.target
    if name not in nodules.table:
        raise ProbeError(
            f"target={name} is neither rating, label nor a column of the table of nodules;"
            f" it has {', '.join(sorted(map(str, nodules.table)))}"
        )
    values = nodules.table[name]
    if values.map(lambda value: isinstance(value, (list, np.ndarray))).any():
        raise ProbeError(f"target={name} holds lists; name a column of one number or name a nodule")
    is_known = (values.notna() & (values.astype(str) != "")).to_numpy()
    if not is_known.all():
        reason = f"the table states no {name}"
        nodules = of_rows(nodules, np.flatnonzero(is_known), left_out(nodules, ~is_known, reason))
        values = nodules.table[name]
    distinct = sorted(values.unique().tolist())
    if len(distinct) < 2:
        raise ProbeError(f"target={name} holds {len(distinct)} value; there is nothing to tell apart")
    if len(distinct) == 2:
        is_second = (values == distinct[1]).to_numpy()
        print(
            f"target={name}: {int(is_second.sum())} of {len(values)} nodules are {distinct[1]}, others {distinct[0]}"
        )
        table = nodules.table.assign(is_malignant=is_second)
        return Aim(dataclasses.replace(nodules, table=table), None, is_second.astype(np.float64))
    if config.head != "logistic":
        raise ProbeError(
            f"target={name} has {len(distinct)} values; head={config.head} is fitted to two classes"
        )
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(dtype=np.float64)
        return Aim(nodules, numbers, numbers)
    return Aim(nodules, None, rating_of(nodules), values.to_numpy(dtype=np.str_))


def column_metrics(config: ProbeConfig, aim: Aim, inputs: Inputs, found: Found) -> dict[str, float]:
    """Measure how well a column is predicted out of fold, as such: rank correlation, or AUROC of each class.

    Returns:
        `probe/target_spearman`, or `probe/target_auroc`, the mean over the classes; empty without such a column.
    """
    rows = {"": inputs.features} | dict(zip(("random_",), inputs.twins, strict=False))
    if config.target in _NAMED or config.features == "patches":
        return {}
    metrics: dict[str, float] = {}
    if aim.classes is not None:
        for prefix, parts in rows.items():
            areas = _class_areas(config, aim, aim.classes, parts)
            for name, area in areas.items():
                print(f"{config.target}={name} against the others, {prefix or 'features'}: AUROC {area}")
            if areas:
                metrics[f"probe/{prefix}target_auroc"] = float(
                    np.mean([area.value for area in areas.values()])
                )
    elif aim.rating is not None:
        question = Question.of(config, aim.nodules, found, aim.rating)
        alone = dataclasses.replace(question, base=np.ones((len(question.rows), 1)))
        for prefix, parts in rows.items():
            spearman = alone.answer(alone.test(parts, CONTROL_DRAWS)).spearman
            print(f"{config.target}, {prefix or 'features'}: Spearman {spearman}")
            metrics |= spearman.named(f"probe/{prefix}target_spearman")
    return metrics


def _class_areas(
    config: ProbeConfig, aim: Aim, classes: NDArray[np.str_], parts: Parts
) -> dict[str, Estimate]:
    patients = aim.nodules.patient_ids
    found: dict[str, Estimate] = {}
    names: Sequence[str] = np.unique(classes).tolist()
    for name in names:
        labels = (classes == name).astype(np.int64)
        try:
            scores = Target(labels, patients, seed=config.seed).score(parts)
            tested = np.isfinite(scores)
            found[name] = auroc_with_interval(
                labels[tested], scores[tested], patients[tested], config.n_bootstrap, config.seed
            )
        except UnmeasurableError as reason:
            print(f"{config.target}={name}: not measured: {reason}")
    return found
